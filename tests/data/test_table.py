"""Rows worked by hand, and nothing lost between documents and table."""

import collections
import hashlib

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from satjax import errors
from satjax.data import rows as rows_lib
from satjax.data import sources, table, tokenizers
from satjax.data.encode import Encoder

BYTE = tokenizers.ByteTokenizer()
BOS, EOS = 256, 257


def make(tokens, starts):
  tokens, starts = np.array(tokens, np.uint16), np.array(starts, np.int64)
  return table.TokenTable(
    tokens, starts, table.fingerprint(tokens, starts), 'made up (train)'
  )


def check(row, **expected):
  assert {key: row[key].tolist() for key in row} == expected
  for key, value in row.items():
    assert value.dtype == (np.float32 if key == 'weights' else np.int32)


def test_rows_at_document_boundaries():
  # Documents 'a', 'bc' and '': the second crosses a row boundary.
  made = make([BOS, 1, EOS, BOS, 2, 3, EOS, BOS, EOS], [0, 3, 7])
  rows = rows_lib.rows(made, 4)
  assert len(rows) == 2
  check(
    rows[0],
    tokens=[BOS, 1, EOS, BOS],
    targets=[1, EOS, BOS, 2],
    positions=[0, 1, 2, 0],
    segments=[1, 1, 1, 2],
    weights=[1, 1, 0, 1],
  )
  check(
    rows[1],
    tokens=[2, 3, EOS, BOS],
    targets=[3, EOS, BOS, EOS],
    positions=[0, 1, 2, 0],
    segments=[1, 1, 1, 2],
    weights=[1, 1, 0, 1],
  )


def test_document_that_begins_with_the_next_row():
  made = make([BOS, 1, EOS, BOS, 2, EOS, BOS], [0, 3, 6])
  rows = rows_lib.rows(made, 3)
  assert len(rows) == 2
  for row, token in zip(rows, (1, 2)):
    check(
      row,
      tokens=[BOS, token, EOS],
      targets=[token, EOS, BOS],
      positions=[0, 1, 2],
      segments=[1, 1, 1],
      weights=[1, 1, 0],
    )


def test_long_document_fills_rows():
  made = make([BOS, *range(9)], [0])
  rows = rows_lib.rows(made, 4)
  assert len(rows) == 2  # the tenth token is not a row
  check(
    rows[1],
    tokens=[3, 4, 5, 6],
    targets=[4, 5, 6, 7],
    positions=[0, 1, 2, 3],
    segments=[1, 1, 1, 1],
    weights=[1, 1, 1, 1],
  )


@hypothesis.given(
  st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(2, 9)
)
def test_rows_agree_with_a_token_by_token_oracle(lengths, seq_len):
  tokens, starts = [], []
  for length in lengths:
    starts.append(len(tokens))
    tokens += [BOS, *range(1, length + 1), EOS]
  hypothesis.assume(len(tokens) > seq_len)
  rows = rows_lib.rows(make(tokens, starts), seq_len)
  assert len(rows) == (len(tokens) - 1) // seq_len
  for number in range(len(rows)):
    row, position, segment = rows[number], 0, 1
    for column in range(seq_len):
      at = number * seq_len + column
      if column and tokens[at] == BOS:
        position, segment = 0, segment + 1
      assert row['tokens'][column] == tokens[at]
      assert row['targets'][column] == tokens[at + 1]
      assert row['positions'][column] == position
      assert row['segments'][column] == segment
      assert row['weights'][column] == (tokens[at + 1] != BOS)
      position += 1


def test_rows_are_bounded():
  rows = rows_lib.rows(make([BOS, 1, EOS], [0]), 2)
  assert len(list(rows)) == 1
  for row in (-1, 1):
    with pytest.raises(IndexError, match='1 rows'):
      rows[row]


def test_short_table_is_refused_with_its_numbers():
  made = make([BOS, 1, EOS], [0])
  with pytest.raises(errors.DataError) as caught:
    rows_lib.rows(made, 3)
  for part in ('made up (train)', '3 tokens', '1 documents', '+ 1 = 4'):
    assert part in str(caught.value)


def test_split_is_fixed_for_ever():
  """A changed rule would move held-out text into training."""
  letters = {'train': '.', 'held_out': 'h', 'test': 't'}

  def of(*shares):
    ids = (f'a/{i}.txt#0' for i in range(40))
    return ''.join(letters[table.split_of(id, *shares)] for id in ids)

  assert of(0.25) == '...h.h..h......h......h..h.h.h.h.......h'
  assert of(0.25, 0.2) == 'ttth.h..h..t.tthtt...tht.h.h.h.ht.t.t..h'


@hypothesis.given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_larger_share_only_adds_to_the_held_out(document_id, one, other):
  low, high = sorted((one, other))
  if table.split_of(document_id, low) == 'held_out':
    assert table.split_of(document_id, high) == 'held_out'


@hypothesis.given(st.text(), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_split_grows_at_the_cost_of_training_alone(document_id, shares):
  held_out, test = sorted(shares[:2]), sorted(shares[2:])
  hypothesis.assume(held_out[1] + test[1] < 1)
  before = table.split_of(document_id, held_out[0], test[0])
  for more in ((held_out[1], test[0]), (held_out[0], test[1])):
    after = table.split_of(document_id, *more)
    if before != 'train':
      assert after == before
  assert table.split_of(document_id, held_out[0]) in (before, 'train')


def test_split_has_the_asked_share():
  found = collections.Counter(
    table.split_of(str(i), 0.1, 0.2) for i in range(20_000)
  )
  assert found['held_out'] == pytest.approx(2000, abs=150)
  assert found['test'] == pytest.approx(4000, abs=200)


@pytest.fixture
def source(tmp_path):
  for i in range(60):
    (tmp_path / f'{i:02}.txt').write_bytes(b'\r\nabc \x00\xff' * i)
  return f'text:{tmp_path}/*.txt'


def documents_of(built):
  pieces = np.split(built.tokens, built.starts[1:])
  assert all(p[0] == BOS and p[-1] == EOS for p in pieces)
  return [BYTE.decode(piece) for piece in pieces]


def test_splits_are_disjoint_and_complete(source):
  documents = list(sources.documents(source))
  assert len(documents) == 59  # one file is empty
  built = {
    split: table.build_table(
      source, Encoder(BYTE), split=split, held_out=0.3, test=0.2
    )
    for split in table.SPLITS
  }
  for split, result in built.items():
    assert result.is_trained is None  # nor any other array for the prompts
    assert documents_of(result) == [
      document.text
      for document in documents
      if table.split_of(document.id, 0.3, 0.2) == split
    ]
  num_tokens = sum(len(result.tokens) for result in built.values())
  assert num_tokens == sum(len(BYTE.encode(d.text)) + 2 for d in documents)
  assert len({result.fingerprint for result in built.values()}) == 3
  assert built['train'].tokens.dtype == np.uint16
  assert built['train'].starts.dtype == np.int64


def test_table_is_reproducible(source):
  one, two = (
    table.build_table(source, Encoder(BYTE), split='train', held_out=0.3)
    for _ in range(2)
  )
  assert one.fingerprint == two.fingerprint
  np.testing.assert_array_equal(one.tokens, two.tokens)


def test_fingerprint_sees_tokens_boundaries_and_types():
  tokens, starts = np.arange(6, dtype=np.uint16), np.array([0, 3])
  changed = tokens.copy()
  changed[5] = 9
  prints = {
    table.fingerprint(tokens, starts),
    table.fingerprint(changed, starts),
    table.fingerprint(tokens, np.array([0, 4])),
    table.fingerprint(tokens.astype(np.uint32), starts),
    table.fingerprint(tokens[:5], starts),
  }
  assert len(prints) == 5


def test_empty_split_is_refused_with_its_numbers(tmp_path):
  (tmp_path / 'a').write_text('x')
  with pytest.raises(errors.DataError, match='none of its 1 documents.*1e-09'):
    table.build_table(
      f'text:{tmp_path}/a', Encoder(BYTE), split='held_out', held_out=1e-9
    )
  with pytest.raises(errors.DataError, match="'test' .data.test 1e-09.; add"):
    table.build_table(
      f'text:{tmp_path}/a',
      Encoder(BYTE),
      split='test',
      held_out=0.1,
      test=1e-9,
    )
  (tmp_path / 'a').write_text('')
  with pytest.raises(errors.DataError, match='has no document'):
    table.build_table(
      f'text:{tmp_path}/a', Encoder(BYTE), split='train', held_out=0.1
    )


class WideTokenizer(tokenizers.ByteTokenizer):
  vocab_size = 100_000
  bos_id = 99_999

  def __init__(self, shift):
    self.shift = shift

  def encode(self, text):
    return super().encode(text).astype(np.int64) + self.shift


def test_large_vocabulary_takes_uint32(source):
  built = table.build_table(
    source, Encoder(WideTokenizer(70_000)), split='train', held_out=0.3
  )
  assert built.tokens.dtype == np.uint32
  assert built.tokens[0] == 99_999
  assert built.tokens[1] == 70_000 + ord('\n')


@pytest.mark.parametrize('shift', [-20, 99_900])
def test_ids_outside_of_the_tokenizers_vocabulary_are_refused(source, shift):
  with pytest.raises(errors.DataError, match=r"document '\d\d.txt#0'.*ids"):
    table.build_table(
      source, Encoder(WideTokenizer(shift)), split='train', held_out=0.3
    )


def test_five_megabyte_line(tmp_path):
  data = hashlib.shake_128(b'seed').hexdigest(2_500_000)
  (tmp_path / 'a').write_text(data)
  built = [
    table.build_table(
      f'text:{tmp_path}/a', Encoder(BYTE), split=split, held_out=0.2, test=0.3
    )
    for split in table.SPLITS
  ]
  num_bytes = sum(len(b.tokens) - 2 * len(b.starts) for b in built)
  assert num_bytes == 5_000_000


def test_shared_tables_are_those_that_would_be_built(tmp_path, monkeypatch):
  """Built once for equal questions, and for no others."""
  file = tmp_path / 'a.txt'
  file.write_text('one\n\ntwo')
  splits = {'split': 'train', 'held_out': 0.0}
  monkeypatch.setattr(table, '_shared', None)
  before = table.build_table(f'text:{file}', Encoder(BYTE), **splits)
  table.share()
  shared = table.build_table(f'text:{file}', Encoder(BYTE), **splits)
  assert shared is not before and shared.fingerprint == before.fingerprint
  file.write_text('three')  # what nobody is to do
  assert table.build_table(f'text:{file}', Encoder(BYTE), **splits) is shared
  other = table.build_table(f'text:{file}', Encoder(BYTE, 'chatml'), **splits)
  assert other.fingerprint != shared.fingerprint
