"""Prepared tables are read by stretches, and damage is found."""

from concurrent import futures
import json
import random

import numpy as np
import pytest

from satjax import cli, errors
from satjax.data import blocks, prepared, rows, table, tokenizers
from satjax.data.encode import Encoder
from tests.data import test_records

BYTE = tokenizers.get_tokenizer('byte')
KNOWN = {'held_out': 0.2, 'test': 0.2}


@pytest.fixture
def written(tmp_path):
  """Files of several sizes, and what they hold."""
  draw = np.random.default_rng(0)
  block = blocks.BLOCK_TOKENS
  sizes = [1, block, 3 * block + 7, block - 1]
  paths, tokens, masks = [], [], []
  for number, size in enumerate(sizes):
    paths.append(tmp_path / f'{number}.array_record')
    tokens.append(draw.integers(0, 2**16, size, dtype=np.uint16))
    masks.append(draw.random(size) < 0.5)
    writer = blocks.BlockWriter(paths[-1], np.uint16)
    at = 0
    while at < size:
      step = int(draw.integers(1, 2 * block))
      writer.add(tokens[-1][at : at + step], masks[-1][at : at + step])
      at += step
    writer.close()
    assert writer.num_tokens == size
  found = blocks.Blocks(paths, sizes, np.dtype(np.uint16))
  return found, np.concatenate(tokens), np.concatenate(masks)


def stretches(size, count=200):
  draw = random.Random(0)
  edges = [0, 1, 2, 8192, 8193, 8194, size - 1, size, size + 5]
  for _ in range(count):
    first = draw.choice([*edges, draw.randrange(size)])
    yield first, first + draw.choice([0, 1, 2, 100, 9000, size])


def test_any_stretch_is_what_was_written(written):
  found, tokens, masks = written
  for array, whole in (
    (blocks.Column(found, blocks.TOKENS), tokens),
    (blocks.Column(found, blocks.IS_TRAINED), masks),
  ):
    assert len(array) == len(whole)
    np.testing.assert_array_equal(array[:], whole)
    for first, last in stretches(len(whole)):
      part = array[first:last]
      assert part.dtype == whole.dtype
      np.testing.assert_array_equal(part, whole[first:last])


def test_threads_read_the_same(written):
  found, tokens, _ = written
  copy = blocks.Column(found, blocks.TOKENS)
  asked = list(stretches(len(tokens)))
  with futures.ThreadPoolExecutor(8) as pool:
    parts = pool.map(lambda pair: copy[slice(*pair)], asked)
  for (first, last), part in zip(asked, parts):
    np.testing.assert_array_equal(part, tokens[first:last])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('prepared')
  pairs = [{'prompt': f'q{i}', 'answer': f'a{i}' * i} for i in range(1, 90)]
  (root / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)))
  for i in range(40):
    (root / f'{i:02}.txt').write_text(f'text {i} ' * 50)
  run(root, f'--out={root}/out')
  return root


def run(root, *more):
  sources = (f'--source=text:{root}/*.txt', f'--source=jsonl:{root}/*.jsonl')
  shares = ['--held_out=0.2']
  shares += [] if any(m.startswith('--test=') for m in more) else ['--test=0.2']
  assert cli.main(['prepare', *sources, *shares, *more]) == 0


def opened(out, split='train', tokenizer=BYTE, template='plain', **changes):
  encoder = Encoder(tokenizer, template)
  return prepared.open_tables(out, split, encoder, **KNOWN | changes)


def test_rows_are_those_of_a_table_in_memory(folder):
  names = [f'text:{folder}/*.txt', f'jsonl:{folder}/*.jsonl']
  for split in table.SPLITS:
    for (found, weight), name in zip(opened(folder / 'out', split), names):
      oracle = table.build_table(
        name, Encoder(BYTE), split=split, held_out=0.2, test=0.2
      )
      assert weight == 0.5
      for packing in ('concat_then_split', 'best_fit'):
        mine = rows.rows(found, 512, packing, 'cut')
        other = rows.rows(oracle, 512, packing, 'cut')
        assert len(mine) == len(other) > 2
        for i in range(len(mine)):
          for key, value in other[i].items():
            np.testing.assert_array_equal(mine[i][key], value)


def test_an_older_table_is_what_it_was(folder, tmp_path):
  run(folder, f'--out={tmp_path / "new"}', '--template=bare')
  run(folder, f'--out={tmp_path / "old"}', '--template=bare')
  test_records.make_older(tmp_path / 'old' / prepared.NAME)
  with pytest.raises(errors.ConfigError, match="template 'bare'; .* 'plain'"):
    opened(tmp_path / 'old')
  old, new = (
    opened(tmp_path / name, template='bare')[1][0] for name in ('old', 'new')
  )
  assert old.fingerprint == new.fingerprint
  assert (old.unlearned, new.unlearned) == (None, 0)


def test_without_chats_the_template_of_an_older_table_is_any(tmp_path):
  (tmp_path / 'a.txt').write_text('some text')
  command = ['prepare', f'--source=text:{tmp_path}/a.txt', '--held_out=1e-9']
  command += [f'--out={tmp_path}/out', '--template=plain']
  assert cli.main(command) == 0
  path = tmp_path / 'out' / prepared.NAME
  path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
  assert cli.main(command) == 0  # it is finished


def test_other_settings_than_those_of_the_run(folder):
  class Other(tokenizers.ByteTokenizer):
    name = 'hf:other'
    fingerprint = 'other'

  message = 'with the tokenizer byte of 258 ids; .* hf:other of 258'
  with pytest.raises(errors.ConfigError, match=message):
    opened(folder / 'out', tokenizer=Other())
  with pytest.raises(errors.ConfigError, match='template .plain.; data.templ'):
    opened(folder / 'out', template='chatml')
  with pytest.raises(errors.ConfigError, match='held_out 0.2; data.held_out'):
    opened(folder / 'out', held_out=0.1)
  with pytest.raises(errors.ConfigError, match='test 0.2; data.test is 0.0'):
    opened(folder / 'out', test=0.0)
  with pytest.raises(errors.ConfigError, match='has no table.json'):
    opened(folder)


def test_split_without_documents_is_named(tmp_path):
  (tmp_path / 'a.txt').write_text('one document, in one of the splits')
  out = tmp_path / 'out'
  text = f'--source=text:{tmp_path}/a.txt'
  shares = ('--held_out=0.2', '--test=0.2')
  assert cli.main(['prepare', text, f'--out={out}', *shares]) == 0
  empty = []
  for split in table.SPLITS:
    try:
      opened(out, split)
    except errors.DataError as error:
      assert 'no document fell' in str(error)
      key = 'test' if split == 'test' else 'held_out'
      assert f'({key} 0.2); add documents' in str(error)
      assert str(error).endswith(f'another --{key}')
      empty.append(split)
  assert len(empty) == 2


def test_tables_from_before_the_test_split_stay_readable(
  folder, tmp_path, capsys
):
  out = tmp_path / 'out'
  run(folder, f'--out={out}', '--test=0.0', '--workers=0')
  assert not list(out.rglob('test'))  # off means absent
  path = out / prepared.NAME
  described = json.loads(path.read_text())
  assert described['made_from'].pop('test') == 0
  path.write_text(json.dumps(described))
  for split in ('train', 'held_out'):
    for found, _ in opened(out, split, test=0.0):
      assert len(found.tokens)
  with pytest.raises(errors.DataError, match=r'\(test 0.0\).*another --test'):
    opened(out, 'test', test=0.0)
  with pytest.raises(errors.ConfigError, match='test 0.0; data.test is 0.2'):
    opened(out)
  # The same command leaves it alone; another one is refused.
  before = path.read_bytes()
  run(folder, f'--out={out}', '--test=0.0')
  assert path.read_bytes() == before
  command = ['prepare', f'--source=text:{folder}/*.txt', f'--out={out}']
  command += [f'--source=jsonl:{folder}/*.jsonl', '--held_out=0.2']
  assert cli.main([*command, '--test=0.1']) == 78
  assert '--test=0.0, not 0.1' in capsys.readouterr().err


@pytest.fixture
def copy(folder, tmp_path):
  run(folder, f'--out={tmp_path}/copy', '--workers=0')
  return tmp_path / 'copy'


def files(out):
  found = sorted(path for path in out.rglob('*') if path.is_file())
  assert len(found) == 13
  return [path for path in found if path.name != prepared.NAME]


def test_every_flipped_bit_is_found(copy, capsys):
  assert cli.main(['prepare', '--verify', f'--out={copy}']) == 0
  assert 'is whole' in capsys.readouterr().out
  for path in files(copy):
    data = path.read_bytes()
    for place in (0, len(data) // 2, len(data) - 1):
      changed = bytearray(data)
      changed[place] ^= 1
      path.write_bytes(changed)
      with pytest.raises(errors.DataError, match=f'{path.name} is damaged'):
        prepared.verify(copy)
    path.write_bytes(data)
  assert prepared.verify(copy) == sum(p.stat().st_size for p in files(copy))


def test_missing_and_short_files_are_found_when_opened(copy):
  for path in files(copy):
    split = path.parent.name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(
      errors.DataError, match=f'{path.name} is damaged: it ha'
    ):
      opened(copy, split)
    path.unlink()
    with pytest.raises(errors.DataError, match='damaged: it is missing'):
      opened(copy, split)
    path.write_bytes(data)
    opened(copy, split)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda text: text[:-9], 'is damaged'),
    (lambda text: '[]', 'is damaged'),
    (lambda text: text.replace('"parts"', '"part"'), 'is damaged'),
    (lambda text: text.replace('"num_tokens"', '"n"'), 'is damaged'),
    (lambda text: text.replace('"format": 2', '"format": 99'), 'has format 99'),
  ],
)
def test_damaged_manifest_is_explained(copy, change, message):
  path = copy / prepared.NAME
  path.write_text(change(path.read_text()))
  with pytest.raises(errors.DataError, match=message):
    opened(copy)


def test_what_the_command_says(folder, tmp_path, capsys):
  run(folder, f'--out={tmp_path}/out', '--duplicates=exact', '--workers=0')
  out = capsys.readouterr().out
  assert '*.txt: 40 documents\n' in out
  assert 'MB/s' in out
  run(folder, f'--out={tmp_path}/out', '--duplicates=exact', '--workers=1')
  assert 'was finished before' in capsys.readouterr().out
  assert cli.main(['prepare', f'--out={tmp_path}/out']) == 78
  assert 'name at least one --source' in capsys.readouterr().err
