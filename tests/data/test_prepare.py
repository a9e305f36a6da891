"""A prepared table is what the sources say, whatever happens on the way."""

from collections import Counter
import dataclasses
import json
import os
import random

import numpy as np
import pytest

from satjax import errors
from satjax.data import (
  chunks,
  prepare,
  prepared,
  table,
  tokenise,
  tokenizers,
)
from satjax.data.encode import Encoder
from satjax.data.tokenise import Settings
from tests.data import subword_samples

SETTINGS = Settings(
  (), (), (), 2**20, 'byte', 'plain', 0.3, 0.2, 'keep', 0, None
)


def run(sources, out, count=0, **changes):
  """Prepares sources of weight 1."""
  changes = {'weights': (1.0,) * len(sources)} | changes
  settings = dataclasses.replace(SETTINGS, sources=tuple(sources), **changes)
  return prepare.prepare(
    settings, out, workers=count, start=lambda size: lambda done: None
  )


def files_of(out):
  """Everything that a directory holds."""
  paths = sorted(path for path in out.rglob('*') if path.is_file())
  return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def opened(out, split='train', spec='byte', template='plain'):
  encoder = Encoder(tokenizers.get_tokenizer(spec), template)
  shares = {'held_out': SETTINGS.held_out, 'test': SETTINGS.test}
  return prepared.open_tables(out, split, encoder, **shares)


def built(source, split, spec='byte', template='plain', columns=()):
  """The same table, in memory: the oracle."""
  encoder = Encoder(tokenizers.get_tokenizer(spec), template)
  shares = {'held_out': SETTINGS.held_out, 'test': SETTINGS.test}
  return table.build_table(
    source, encoder, split=split, columns=columns, **shares
  )


def assert_same(found, expected):
  np.testing.assert_array_equal(found.starts, expected.starts)
  np.testing.assert_array_equal(found.tokens[:], expected.tokens)
  assert found.tokens.dtype == expected.tokens.dtype
  assert len(found.tokens) == len(expected.tokens)
  assert (found.is_trained is None) == (expected.is_trained is None)
  if found.is_trained is not None:
    np.testing.assert_array_equal(found.is_trained[:], expected.is_trained)


@pytest.fixture
def small_steps(monkeypatch):
  """Many chunks, steps and shards out of little text."""
  monkeypatch.setattr(chunks, 'CHUNK_BYTES', 3000)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """Documents of many lengths, some of them twice, two files of them long."""
  root = tmp_path_factory.mktemp('texts')
  draw = random.Random(0)
  words = [f'word{i}' for i in range(300)]
  lines = []
  for i in range(120):
    text = ' '.join(draw.choices(words, k=draw.choice([0, 1, 9, 90, 400])))
    lines.append({'text': text})
    if i % 7 == 0:
      lines.append({'text': text.replace(' ', '\n')})
  for name, part in (('a', lines[:70]), ('b', lines[70:])):
    content = '\n'.join(map(json.dumps, part))
    (root / f'{name}.jsonl').write_text(content)
  (root / 'a.txt').write_text('\n'.join(line['text'] for line in lines))
  (root / 'b.txt').write_bytes(b'\r\n\xff\n' * 24_000)
  pairs = [{'prompt': f'q{i}' * i, 'answer': f'a{i}' * i} for i in range(40)]
  pairs.insert(20, {'text': 'between'})
  (root / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)))
  return root


@pytest.mark.parametrize('name', ['text:*.txt', 'jsonl:?.jsonl', 'jsonl:p*'])
@pytest.mark.parametrize('shard_tokens', [1, 20_000, 2**20])
def test_same_documents_as_in_memory(
  texts, tmp_path, monkeypatch, small_steps, name, shard_tokens
):
  monkeypatch.chdir(texts)
  found = run([name], tmp_path / 'out', shard_tokens=shard_tokens)
  for split in table.SPLITS:
    ((one, weight),) = opened(tmp_path / 'out', split)
    assert weight == 1
    assert_same(one, built(name, split))
    shards = found.parts[0].splits[split].shards
    assert sum(shard.num_tokens for shard in shards) == len(one.tokens)
    assert len(shards) > (3 if shard_tokens == 1 and 'text' in name else 0)


@pytest.mark.parametrize('kind', ['llama', 'bytelevel', 'sentencepiece'])
def test_same_tokens_with_subwords(texts, tmp_path, monkeypatch, kind):
  spec = subword_samples.write(tmp_path)[kind]
  monkeypatch.chdir(texts)
  run(['jsonl:*.jsonl'], tmp_path / 'o', tokenizer=spec, template='chatml')
  ((one, _),) = opened(tmp_path / 'o', spec=spec, template='chatml')
  assert_same(one, built('jsonl:*.jsonl', 'train', spec, 'chatml'))


def test_parts_have_their_weights(texts, tmp_path):
  names = [f'text:{texts}/a.txt', f'jsonl:{texts}/a.jsonl']
  found = run(names, tmp_path / 'out', weights=[1.0, 3.0])
  tables = opened(tmp_path / 'out')
  assert [weight for _, weight in tables] == [0.25, 0.75]
  for (one, _), name in zip(tables, names):
    assert_same(one, built(name, 'train'))
    assert name in one.name
  assert tables[0][0].fingerprint != tables[1][0].fingerprint
  assert [part.weight for part in found.parts] == [1, 3]


@pytest.mark.parametrize('rule', ['keep', 'exact', 'near'])
def test_no_document_is_lost(texts, tmp_path, small_steps, rule):
  names = [f'jsonl:{texts}/?.jsonl', f'jsonl:{texts}/*.jsonl']
  limits = {'min_tokens': 10, 'max_tokens': 900}
  found = run(names, tmp_path / 'out', duplicates=rule, **limits)
  for part in found.parts:
    counts = Counter(part.counts)
    kept = sum(split.num_documents for split in part.splits.values())
    reasons = ('empty', 'too_short', 'too_long', 'duplicates')
    assert counts['documents'] == kept + sum(counts[name] for name in reasons)
    assert counts['empty'] > 0
    assert counts['too_short'] > 0
    assert counts['too_long'] > 0
    assert (counts['duplicates'] > 0) == (rule != 'keep')
  if rule == 'exact':  # all of the first source is in the second one
    kept = sum(s.num_documents for s in found.parts[0].splits.values())
    assert found.parts[1].counts['duplicates'] >= kept


def test_first_of_the_same_documents_is_kept(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "x y"}\n{"text": "x  y"}\n' * 3)
  name = f'jsonl:{tmp_path}/a.jsonl'
  part = run([name], tmp_path / 'out', duplicates='exact').parts[0]
  assert part.counts['duplicates'] == 5
  assert sum(s.num_tokens for s in part.splits.values()) == len('x y') + 2


def test_source_of_duplicates_alone_is_named(texts, tmp_path):
  name = f'jsonl:{texts}/a.jsonl'
  with pytest.raises(errors.DataError, match='gives no .* 54 duplicates'):
    run([name, name], tmp_path / 'out', duplicates='exact')


def test_any_number_of_workers_writes_the_same(texts, tmp_path):
  names = [f'jsonl:{texts}/*.jsonl', f'text:{texts}/*.txt']
  for count in (0, 2):
    run(names, tmp_path / str(count), count, duplicates='near', shard_tokens=1)
  assert files_of(tmp_path / '0') == files_of(tmp_path / '2')


class Killed(Exception):
  """Stands for what ends a process; nothing catches it."""


def interrupted(monkeypatch, cls, name, call, after):
  """Makes a method raise at its n-th call, before or after what it does."""
  original, calls = getattr(cls, name), iter(range(10**6))

  def method(self, *args):
    is_now = next(calls) == call
    if is_now and not after:
      raise Killed
    result = original(self, *args)
    if is_now:
      raise Killed
    return result

  monkeypatch.setattr(cls, name, method)


STEPS = [
  (prepare.TableWriter, '_add', False),
  (prepare.SplitWriter, 'finish', True),
]
MORE_STEPS = [
  (prepare.TableWriter, '_add', True),
  (prepare.TableWriter, '_commit', False),
  (prepare.TableWriter, '_commit', True),
  (prepare.SplitWriter, 'finish', False),
]
MORE_STEPS = [
  pytest.param(*step, marks=pytest.mark.slow) for step in MORE_STEPS
]


@pytest.mark.parametrize('cls, name, after', STEPS + MORE_STEPS)
def test_goes_on_where_it_was(
  texts, tmp_path, small_steps, monkeypatch, cls, name, after
):
  names = [f'jsonl:{texts}/*.jsonl', f'text:{texts}/*.txt']
  options = {'duplicates': 'exact', 'min_tokens': 5, 'shard_tokens': 30_000}
  run(names, tmp_path / 'whole', **options)
  call = 0
  while True:
    out = tmp_path / f'{call}'
    with monkeypatch.context() as patched:
      interrupted(patched, cls, name, call, after)
      try:
        run(names, out, **options)
        break
      except Killed:
        assert not (out / prepared.NAME).exists()
    run(names, out, **options)
    assert files_of(out) == files_of(tmp_path / 'whole')
    call += 1 + call
  assert call > 4


@pytest.mark.slow
def test_interrupted_again_and_again(texts, tmp_path, small_steps, monkeypatch):
  names = [f'jsonl:{texts}/*.jsonl']
  run(names, tmp_path / 'whole', shard_tokens=1, duplicates='near')
  kills = 0
  while True:
    with monkeypatch.context() as patched:
      interrupted(patched, prepare.TableWriter, '_add', 2, False)
      try:
        run(names, tmp_path / 'out', shard_tokens=1, duplicates='near')
        break
      except Killed:
        kills += 1
  assert kills > 3
  assert files_of(tmp_path / 'out') == files_of(tmp_path / 'whole')


def test_goes_on_without_reading_again(
  texts, tmp_path, small_steps, monkeypatch
):
  names = [f'text:{texts}/a.txt', f'text:{texts}/b.txt']
  with monkeypatch.context() as patched:
    interrupted(patched, prepare.TableWriter, '_add', 12, False)
    with pytest.raises(Killed):
      run(names, tmp_path / 'out', shard_tokens=1)
  seen = []
  original = prepare.TableWriter._add

  def method(self, part, writers, found):
    seen.append(found)
    original(self, part, writers, found)

  monkeypatch.setattr(prepare.TableWriter, '_add', method)
  run(names, tmp_path / 'whole', shard_tokens=1)
  whole = len(seen)
  run(names, tmp_path / 'out', shard_tokens=1)
  assert len(seen) - whole == whole - 12


def test_another_command_is_refused(texts, tmp_path, monkeypatch, small_steps):
  names, out = [f'jsonl:{texts}/a.jsonl'], tmp_path / 'out'
  llama = subword_samples.write(tmp_path)['llama']
  others = [
    ({'held_out': 0.4}, '--held_out=0.3, not 0.4'),
    ({'test': 0.0}, '--test=0.2, not 0.0'),
    ({'duplicates': 'near'}, '--duplicates=keep, not near'),
    ({'columns': ('text',)}, '--columns='),
    ({'weights': [2.0]}, '--weight='),
    ({'tokenizer': llama}, 'another tokenizer, byte'),
  ]

  def check():
    for changes, message in others:
      with pytest.raises(errors.ConfigError, match=message):
        run(names, out, **changes)
    with pytest.raises(errors.ConfigError, match='--source='):
      run([f'jsonl:{texts}/b.jsonl'], out)

  with monkeypatch.context() as patched:
    interrupted(patched, prepare.TableWriter, '_add', 3, False)
    with pytest.raises(Killed):
      run(names, out)
  check()
  first = run(names, out)
  check()
  before = files_of(out)
  assert run(names, out) == first
  assert files_of(out) == before


def test_changed_files_are_refused(tmp_path, monkeypatch):
  (tmp_path / 'a.txt').write_text('one')
  name, out = f'text:{tmp_path}/*.txt', tmp_path / 'out'
  with monkeypatch.context() as patched:
    interrupted(patched, prepare.TableWriter, '_add', 0, False)
    with pytest.raises(Killed):
      run([name], out)
  (tmp_path / 'b.txt').write_text('two')
  with pytest.raises(errors.ConfigError, match='names or sizes have changed'):
    run([name], out)


def test_other_folders_and_other_writers_are_left_alone(texts, tmp_path):
  name = f'jsonl:{texts}/a.jsonl'
  (tmp_path / 'mine').write_text('x')
  with pytest.raises(errors.ConfigError, match='name a new folder'):
    run([name], tmp_path)
  out = tmp_path / 'out'
  out.mkdir()
  with (
    prepare.Journal(out / prepare._JOURNAL),
    pytest.raises(errors.StorageError, match='another satjax prepare'),
  ):
    run([name], out)
  run([name], out)


@pytest.mark.parametrize(
  'data, message',
  [
    (b'', 'gives no document'),
    (b'\n \r\n\n', 'gives no document'),
    (b'{"text": ""}\n' * 3, r'gives no document \(3 documents, 3 empty\)'),
    (b'{"text": "a"}\n{"txt": "b"}', "line 2: .*its keys are .'txt'"),
    (b'{"text": "a"}\nno', 'line 2: not JSON'),
    (b'{"messages": [{"role": "user", "content": "q"}]}', 'none of them by an'),
    (b'{"text": "a"}', 'gives no document .1 documents, 1 too_short'),
  ],
)
def test_bad_input_is_explained(tmp_path, data, message):
  (tmp_path / 'a.jsonl').write_bytes(data)
  with pytest.raises(errors.DataError, match=message) as caught:
    run([f'jsonl:{tmp_path}/a.jsonl'], tmp_path / 'out', min_tokens=4)
  assert 'a.jsonl' in str(caught.value)
  assert not (tmp_path / 'out' / prepared.NAME).exists()


def test_bad_input_is_explained_by_workers(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "a"}\n' * 99 + 'no')
  with pytest.raises(errors.DataError, match='a.jsonl, line 100: not JSON'):
    run([f'jsonl:{tmp_path}/a.jsonl'], tmp_path / 'out', 1)


def test_odd_input_is_counted(tmp_path):
  data = b'one\r\ntwo\x00\xff\xfe\xef\xbf\xbd'
  (tmp_path / 'a.txt').write_bytes(data)
  (tmp_path / 'b.txt').write_bytes(b'')
  found = run([f'text:{tmp_path}/*.txt'], tmp_path / 'out').parts[0]
  counts = {name: count for name, count in found.counts.items() if count}
  assert counts == {'documents': 2, 'empty': 1, 'replaced': 3}
  sizes = [split.num_tokens for split in found.splits.values()]
  assert sorted(sizes) == [
    0,
    0,
    len('one\ntwo\0') + 3 * len('\ufffd'.encode()) + 2,
  ]


def test_line_of_ten_megabytes(tmp_path):
  text = 'word ' * 2_000_000
  (tmp_path / 'a.jsonl').write_text(json.dumps({'text': text}))
  found = run([f'jsonl:{tmp_path}/a.jsonl'], tmp_path / 'out').parts[0]
  assert found.counts['cut'] == 1
  assert found.counts['documents'] == 10
  splits = found.splits.values()
  # All pieces are of one split, each with its begin and end.
  assert sorted(s.num_documents for s in splits) == [0, 0, 10]
  assert sum(s.num_tokens for s in splits) == len(text) + 20


def test_ids_out_of_range_are_refused(tmp_path, monkeypatch):
  (tmp_path / 'a.txt').write_text('\u00ff')
  monkeypatch.setattr(tokenizers.ByteTokenizer, 'vocab_size', 100)
  with pytest.raises(errors.DataError, match='a.txt#0.*its vocabulary has 100'):
    run([f'text:{tmp_path}/a.txt'], tmp_path / 'out')


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'weights': []}, '--weight'),
    ({'weights': [0.0]}, '--weight'),
    ({'columns': ('a', 'b', 'c')}, '--columns'),
    ({'template': 'gemma'}, "--template gemma; allowed: 'auto'"),
    ({'held_out': 1.1}, '--held_out 1.1; allowed: from 0 to 1'),
    ({'test': -0.1}, '--test -0.1; allowed: from 0, and with --held_out up'),
    ({'test': 0.8}, '--test 0.8; allowed: from 0, and with --held_out up to 1'),
    ({'duplicates': 'all'}, '--duplicates all; allowed: keep, exact, near'),
    ({'min_tokens': 9, 'max_tokens': 8}, '--max_tokens 8'),
    ({'shard_tokens': 0}, '--shard_tokens'),
    ({'count': -1}, '--workers -1'),
    ({'tokenizer': 'no'}, 'not a known tokenizer'),
  ],
)
def test_settings_are_checked_before_anything_is_written(
  texts, tmp_path, changes, message
):
  with pytest.raises(errors.ConfigError, match=message):
    run([f'text:{texts}/a.txt'], tmp_path / 'out', **changes)
  assert not (tmp_path / 'out').exists()


@dataclasses.dataclass
class Deadly:
  """A chunk that ends the process that reads it."""

  done: int = 1
  volume: int = 1

  def documents(self, counts):
    os._exit(1)


def test_killed_worker_is_explained():
  pool = tokenise.Workers(SETTINGS, 1)
  with pool, pytest.raises(errors.SatjaxError, match='fewer --workers'):
    list(pool.tokenise([[Deadly()]]))
