"""Whole documents in rows: nothing lost, nothing leaks, nothing cut."""

import collections

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import errors
from satjax.data import pipeline, rows, table
from satjax.data.encode import Encoded
from satjax.data.tokenizers import ByteTokenizer
from satjax.model import decoder
from satjax.train import loss
from tests import models

BYTE = ByteTokenizer()
BOS, EOS = 256, 257


def make(lengths, prompts=()):
  """Documents of so many tokens; the first of them unlearned where asked."""
  encoded = []
  for number, length in enumerate(lengths):
    tokens = np.full(length, number, np.uint16)
    tokens[0], tokens[-1] = BOS, EOS
    is_trained = None
    if prompts:
      is_trained = np.arange(length) > prompts[number]
    encoded.append(Encoded(tokens, is_trained))
  return table.join(encoded, 'made up (train)', EOS)


def documents_of(row):
  """Tokens of each document of a row, with its last target."""
  found = []
  for segment in range(1, row['segments'].max() + 1):
    here = row['segments'] == segment
    tokens, targets = row['tokens'][here], row['targets'][here]
    np.testing.assert_array_equal(tokens[1:], targets[:-1])
    np.testing.assert_array_equal(row['positions'][here], np.arange(here.sum()))
    found.append((*tokens.tolist(), int(targets[-1])))
  return found


@hypothesis.given(
  st.lists(st.integers(2, 14), min_size=1, max_size=30),
  st.integers(4, 12),
  st.sampled_from(['cut', 'drop']),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_every_document_is_in_one_row(lengths, seq_len, too_long):
  hypothesis.assume(any(length - 1 <= seq_len for length in lengths))
  made = make(lengths)
  packed = rows.rows(made, seq_len, 'best_fit', too_long)
  found = collections.Counter()
  for number in range(len(packed)):
    row = packed[number]
    found.update(documents_of(row))
    inside = row['segments'] > 0
    np.testing.assert_array_equal(row['weights'], inside)
    assert not row['tokens'][~inside].any()
  pieces = [tuple(p.tolist()) for p in np.split(made.tokens, made.starts[1:])]
  long = [p for p in pieces if len(p) - 1 > seq_len]
  cut = long if too_long == 'cut' else []
  expected = collections.Counter(p for p in pieces if p not in long)
  expected.update(p[: seq_len + 1] for p in cut)
  assert found == expected
  assert packed.num_cut == len(cut)
  assert packed.num_dropped == len(long) - len(cut)


def test_packing_by_hand():
  made = make([4, 3, 2], [1, 0, 0])
  packed = rows.rows(made, 5, 'best_fit')
  one, two = sorted(packed, key=lambda row: -row['segments'][-1])
  expected = {
    'tokens': [BOS, 0, 0, BOS, 1],
    'targets': [0, 0, EOS, 1, EOS],
    'positions': [0, 1, 2, 0, 1],
    'segments': [1, 1, 1, 2, 2],
    'weights': [0, 1, 1, 1, 1],
  }
  assert {name: values.tolist() for name, values in one.items()} == expected
  assert two['segments'].tolist() == [1, 0, 0, 0, 0]
  assert two['weights'].tolist() == [1, 0, 0, 0, 0]
  assert documents_of(two) == [(BOS, EOS)]


def test_rows_are_filled():
  lengths = np.random.default_rng(0).integers(4, 13, 200)
  packed = rows.rows(make(lengths), 16, 'best_fit')
  filled = np.mean([packed[i]['segments'] > 0 for i in range(len(packed))])
  assert filled > 0.9


def test_documents_that_are_all_too_long_are_refused():
  for too_long in ('cut', 'drop'):
    with pytest.raises(errors.DataError, match='all of its 3 documents'):
      rows.rows(make([9, 9, 12]), 4, 'best_fit', too_long)


def packed_batch():
  lengths = [6, 9, 5, 4, 7]
  made = make(lengths, [2, 3, 1, 0, 4])
  packed = rows.rows(made, 16, 'best_fit')
  empty = {name: np.zeros_like(values) for name, values in packed[0].items()}
  # As many rows as `alone` has, so that both are one program.
  batch = [*packed, *[empty] * (len(lengths) - len(packed))]
  stacked = {name: np.stack([row[name] for row in batch]) for name in empty}
  return made, stacked


def alone(made, seq_len):
  """The same documents, each in a row of its own."""
  ends = [*made.starts[1:], len(made.tokens)]
  found = []
  for start, end in zip(made.starts, ends):
    size = end - start - 1
    ids = made.tokens[start:end].astype(np.int32)
    row = {
      'tokens': ids[:-1],
      'targets': ids[1:],
      'positions': np.arange(size, dtype=np.int32),
      'segments': np.ones(size, np.int32),
      'weights': made.weights(start + 1, end),
    }
    found.append({n: np.pad(v, (0, seq_len - size)) for n, v in row.items()})
  return {name: np.stack([row[name] for row in found]) for name in found[0]}


MODEL = models.make(vocab_size=258)


@pytest.fixture(scope='module')
def params():
  return models.make_params(MODEL)


@jax.jit
def gradients(params, batch):
  def total(params):
    return loss.cross_entropy_sum(decoder.apply(MODEL, params, batch), batch)

  return jax.value_and_grad(total)(params)


def test_packed_loss_and_gradient_are_those_of_the_documents_alone(params):
  made, batch = packed_batch()
  other = alone(made, 16)
  assert batch['segments'].max() > other['segments'].max() == 1
  assert batch['weights'].sum() == other['weights'].sum() > 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    gradients(params, batch),
    gradients(params, other),
  )


def test_no_gradient_reaches_another_document(params):
  """Every place gets an embedding of its own, to see whose gradient it has."""
  _, batch = packed_batch()
  segments = batch['segments'][0]
  size = len(segments)
  places = jnp.take(params['embed'], batch['tokens'][0], axis=0)
  embed = jnp.zeros_like(params['embed']).at[:size].set(places)
  assert segments.max() > 1
  for segment in range(1, segments.max() + 1):
    own = {name: values.copy() for name, values in batch.items()}
    own['tokens'][0] = np.arange(size)
    own['weights'][0] *= segments == segment
    own['weights'][1:] = 0
    _, found = gradients(params | {'embed': embed}, own)
    reached = np.abs(found['embed'][:size]).max(axis=1) > 0
    assert reached.any() and not reached[segments != segment].any()


def test_batches_of_packed_rows_depend_on_their_number_alone(tmp_path):
  for i in range(40):
    (tmp_path / f'{i:02}.txt').write_text(f'{i:02}' * (1 + i % 9))
  data = models.make_data(
    train=(f'text:{tmp_path}/*.txt',), seq_len=20, packing='best_fit'
  )
  options = {'split': 'train', 'tokenizer': BYTE, 'vocab_size': 258}
  one = pipeline.make_batches(data, batch_size=3, **options)
  two = pipeline.make_batches(data, batch_size=3, **options)
  assert one.fingerprint == two.fingerprint
  (source,) = one.sources
  seen = collections.Counter()
  for number, batch in zip(range(len(source)), two.iterate(0)):
    for name, values in one[number].items():
      np.testing.assert_array_equal(values, batch[name])
    for i in range(3):
      seen.update(documents_of({n: v[i] for n, v in batch.items()}))
  # Three epochs of all documents.
  assert len(seen) == len(source.table.starts)
  assert set(seen.values()) == {3}
  other = models.make_data(
    train=data.train, seq_len=20, packing='concat_then_split'
  )
  other = pipeline.make_batches(other, batch_size=3, **options)
  assert other.fingerprint != one.fingerprint
