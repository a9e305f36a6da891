"""Which documents of a source are evaluated, and that all of them counts."""

import numpy as np
import pytest

from satjax import cli, errors
from satjax.data import pipeline, rows, sources, table, tokenizers
from satjax.data.encode import Encoder
from tests import models

BYTE = tokenizers.ByteTokenizer()


@pytest.fixture
def texts(tmp_path, monkeypatch):
  """Files of one document each, in two folders; here is the one above them."""
  monkeypatch.chdir(tmp_path)
  for folder in ('train', 'own'):
    (tmp_path / folder).mkdir()
    for i in range(30):
      (tmp_path / folder / f'{i:02}.txt').write_text(
        f'{folder}{i}' * (i % 7 + 1)
      )
  return tmp_path


def read(source, *trained, **changes):
  """What is evaluated of a source, by a model that was trained on others."""
  data = models.make_data(train=trained or ('text:none',), **changes)
  return pipeline.eval_batches(
    data, source, batch_size=3, tokenizer=BYTE, vocab_size=258
  )


def names(batches):
  return {batches.name(i) for i in range(batches.num_in_split)}


def held_out(source, share=0.2):
  found = sources.documents(source)
  return {d.id for d in found if table.split_of(d.id, share) == 'held_out'}


@pytest.mark.parametrize('packing', ['concat_then_split', 'best_fit'])
@pytest.mark.parametrize('attend', ['document', 'row'])
def test_every_token_of_a_file_of_its_own_counts_once(texts, packing, attend):
  how = {'packing': packing, 'attend': attend, 'too_long': 'drop'}
  batches = read('text:own/*.txt', 'text:train/*.txt', **how)
  wanted = sorted(
    token
    for path in (texts / 'own').iterdir()
    for token in [*path.read_bytes(), BYTE.eos_id]
  )
  counted = [b['targets'][b['weights'] > 0] for b in batches]
  assert sorted(np.concatenate(counted).tolist()) == wanted
  assert batches.num_tokens == len(wanted)
  assert batches.num_documents == batches.num_found == 30


def test_a_long_document_goes_on_in_another_row(texts):
  """Each part begins with the last token of the part before."""
  text = bytes(range(97, 97 + 21))
  (texts / 'long.txt').write_bytes(text)
  (batch,) = read('text:long.txt', packing='best_fit')
  ids = [BYTE.bos_id, *text, BYTE.eos_id]
  parts = [ids[i : i + 9] for i in (0, 8, 16)]
  found = {}
  for row in range(3):
    size = int((batch['weights'][row] > 0).sum())
    tokens = batch['tokens'][row, :size].tolist()
    found[tokens[0]] = [*tokens, int(batch['targets'][row, size - 1])]
    assert batch['positions'][row, :size].tolist() == [*range(size)]
  assert found == {part[0]: part for part in parts}


def test_documents_own_their_targets(texts):
  for packing in ('concat_then_split', 'best_fit'):
    batches = read('text:own/*.txt', packing=packing)
    found = {}
    for number, batch in enumerate(batches):
      owners, counts = batches.documents(number), batch['weights'] > 0
      for owner, id in zip(owners[counts], batch['targets'][counts]):
        found.setdefault(batches.name(owner), []).append(int(id))
    assert len(found) == 30
    for document in sources.documents('text:own/*.txt'):
      wanted = [*document.text.encode(), BYTE.eos_id]
      assert sorted(found[document.id]) == sorted(wanted)


def test_what_was_trained_on_is_read_as_far_as_it_was_held_out(texts):
  wanted = held_out('text:train/*.txt')
  assert 0 < len(wanted) < 30
  same = ('text:train/*.txt', f'text:{texts}/train/*.txt', 'text:./train/*.txt')
  for source in same:
    assert names(read(source, 'text:train/*.txt')) == wanted
  assert len(names(read('text:train/*.txt', 'text:own/*.txt'))) == 30


def test_files_have_the_names_that_they_were_trained_under(texts):
  """The glob decides how a file is called, and that what is held out."""
  (texts / 'train' / 'more.txt').write_text('came later')
  wanted = held_out('text:**/*.txt')
  trained = 'text:**/*.txt'
  found = names(read('text:train/*.txt', trained))
  mine = {f'train/{name}' for name in found}
  assert mine == {id for id in wanted if id.startswith('train/')}
  # Some of the files alone were trained on: the others are read whole.
  found = names(read('text:train/*.txt', 'text:train/0*.txt'))
  part = held_out('text:train/0*.txt')
  assert {id for id in found if id[0] == '0'} == part
  assert {id for id in found if id[0] != '0'} == {
    d.id for d in sources.documents('text:train/*.txt') if d.id[0] != '0'
  }


def test_a_copy_elsewhere_is_known_by_its_fingerprint(texts):
  trained = sources.identify('text:train/*.txt')
  (texts / 'train').rename(texts / 'moved')
  found = names(read('text:moved/*.txt', *trained))
  assert found == held_out('text:moved/*.txt')
  (texts / 'moved' / '00.txt').write_text('other0')  # of the same size
  assert len(names(read('text:moved/*.txt', *trained))) == 30


def test_the_library_of_python_is_never_read_whole():
  batches = read('stdlib:docs', 'text:none', held_out=0.002)
  assert 0 < batches.num_documents < 0.01 * batches.num_found


def test_what_is_not_trained_on_is_no_part_of_the_test(texts):
  from satjax.train import evaluation

  data = models.make_data(
    train=('text:train/*.txt',),
    eval=('text:train/*.txt', 'text:own/*.txt'),
    test=0.2,
  )
  how = {'vocab_size': 258, 'mesh': None, 'batch_size': 2, 'max_rows': None}
  found = evaluation.Evaluator(data, split='test', **how).batches
  assert list(found) == ['text:train/*.txt']
  found = evaluation.Evaluator(data, **how).batches
  assert found['text:own/*.txt'].num_documents == 30


@pytest.fixture
def table_of(texts):
  def make(out, folder, *options):
    source = f'--source=text:{folder}/*.txt'
    command = ['prepare', source, f'--out={out}', '--workers=0', *options]
    return cli.main(command)

  return make


def test_a_table_may_be_all_held_out(table_of, texts):
  assert table_of('validation', 'own', '--held_out=1') == 0
  assert table_of('all', 'train', '--held_out=0') == 0
  batches = read('tokens:validation', 'tokens:all', held_out=0.0)
  assert batches.num_documents == batches.num_found == 30
  plain = read('text:own/*.txt', 'tokens:all', held_out=0.0)
  assert batches.num_tokens == plain.num_tokens
  # The text that a table was made from was trained on.
  with pytest.raises(errors.DataError, match='none of its 30 documents'):
    read('text:train/*.txt', 'tokens:all', held_out=0.0)
  with pytest.raises(errors.DataError, match=r'held_out 0.0\)'):
    read('tokens:all', 'tokens:all', held_out=0.0)
  settings = models.make_data(train=('tokens:validation',), held_out=1.0)
  with pytest.raises(errors.DataError, match='no document fell'):
    pipeline.make_batches(
      settings, split='train', batch_size=1, tokenizer=BYTE, vocab_size=258
    )


def test_shares_of_another_table_are_its_own(table_of):
  assert table_of('other', 'own', '--held_out=0.4') == 0
  batches = read('tokens:other', 'text:train/*.txt')
  assert batches.num_documents == len(held_out('text:own/*.txt', 0.4))
  with pytest.raises(errors.ConfigError, match='held_out 0.4'):
    read('tokens:other', 'tokens:other')


def test_shares_together(table_of, capsys):
  assert table_of('a', 'own', '--held_out=0.6', '--test=0.5') == 78
  assert 'up to 1 together' in capsys.readouterr().err


def test_rows_to_train_on_are_as_ever(texts):
  made = table.build_table(
    'text:own/*.txt', Encoder(BYTE), split='held_out', held_out=1.0
  )
  assert len(made.ids) == made.num_found == 30
  for packing in ('concat_then_split', 'best_fit'):
    train, whole = (
      rows.rows(made, 16, packing, is_whole=is_whole)
      for is_whole in (False, True)
    )
    assert len(train) <= len(whole)
  assert (len(made.tokens) - 1) % 16
  cut = rows.rows(made, 16)
  whole = rows.rows(made, 16, is_whole=True)
  assert len(whole) == len(cut) + 1
  for i in range(len(cut)):
    for key, value in cut[i].items():
      np.testing.assert_array_equal(whole[i][key], value)
