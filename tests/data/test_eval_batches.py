"""Evaluation reads the held-out rows in a fixed order, each exactly once."""

import dataclasses

import numpy as np
import pytest

from satjax import errors
from satjax.data import pipeline, table, tokenizers
from satjax.data import rows as rows_lib
from satjax.data.encode import Encoder
from satjax.train import evaluation
from tests import models

BYTE = tokenizers.ByteTokenizer()


@pytest.fixture
def data_config(folder):
  return models.make_data(train=(f'text:{folder}/a/*',), test=0.2)


@pytest.fixture
def rows(data_config):
  return rows_of(data_config, 'held_out')


def rows_of(data_config, split):
  (source,) = data_config.train
  built = table.build_table(
    source, Encoder(BYTE), split=split, held_out=0.2, test=0.2
  )
  return rows_lib.rows(built, 8, is_whole=True)


def evaluate(
  data_config, *, batch_size, max_rows=7000, vocab_size=258, **options
):
  return pipeline.eval_batches(
    data_config,
    data_config.train[0],
    batch_size=batch_size,
    tokenizer=BYTE,
    vocab_size=vocab_size,
    max_rows=max_rows,
    **options,
  )


def test_every_held_out_token_counts_once(data_config, rows):
  batches = evaluate(data_config, batch_size=7)
  assert len(rows) % 7  # the last batch is padded
  assert len(batches) == len(rows) // 7 + 1
  for batch in batches:
    assert {value.shape for value in batch.values()} == {(7, 8)}
  for number, row in enumerate(rows):
    batch = batches[number // 7]
    assert batch.keys() == row.keys()
    for key, value in row.items():
      np.testing.assert_array_equal(batch[key][number % 7], value)
      assert batch[key].dtype == value.dtype
  assert (batches[-1]['weights'][len(rows) % 7 :] == 0).all()
  assert (len(rows.table.tokens) - 1) % 8  # so is the last row
  weight = sum(batch['weights'].sum() for batch in batches)
  documents = len(rows.table.starts)
  assert weight == batches.num_tokens == len(rows.table.tokens) - documents
  assert (batches.num_documents, batches.num_found) == (documents, 40)


def test_full_batches_are_not_padded(data_config, rows):
  batches = evaluate(data_config, batch_size=len(rows))
  assert len(batches) == 1
  assert (batches[0]['weights'].sum(axis=1) > 0).all()


def test_rows_are_spread_over_the_table(data_config, rows):
  batches = evaluate(data_config, batch_size=3, max_rows=6)
  assert len(batches) == 2
  taken = [rows[i * len(rows) // 6]['tokens'] for i in range(6)]
  found = [row for batch in batches for row in batch['tokens']]
  np.testing.assert_array_equal(found, taken)
  assert all((batch['weights'].sum(axis=1) > 0).all() for batch in batches)


def test_less_than_one_batch_is_filled_up(data_config, rows):
  batches = evaluate(data_config, batch_size=4000)
  assert len(batches) == 1
  assert batches[0]['tokens'].shape == (4000, 8)
  assert (batches[0]['weights'][len(rows) :] == 0).all()


def test_the_test_split_is_read_on_demand(data_config):
  rows = rows_of(data_config, 'test')
  (batch,) = evaluate(data_config, batch_size=len(rows), split='test')
  for number, row in enumerate(rows):
    for key, value in row.items():
      np.testing.assert_array_equal(batch[key][number], value)
  (other,) = evaluate(data_config, batch_size=1, max_rows=1)
  assert not (batch['tokens'] == other['tokens'][0]).all(axis=1).any()


def test_a_test_split_that_nothing_fell_into_fails_when_it_is_read(data_config):
  data_config = dataclasses.replace(data_config, test=1e-9)
  assert evaluate(data_config, batch_size=4)
  with pytest.raises(pipeline.errors.DataError, match='data.test 1e-09'):
    evaluate(data_config, batch_size=4, split='test')


def test_a_test_split_is_not_read_where_there_is_none(data_config):
  data_config = dataclasses.replace(data_config, test=0.0)
  with pytest.raises(errors.ConfigError, match='data.test above 0, and it is'):
    evaluation.Evaluator(
      data_config,
      vocab_size=258,
      mesh=None,
      batch_size=4,
      max_rows=4,
      split='test',
    )


def test_ids_are_checked(data_config):
  with pytest.raises(pipeline.errors.DataError, match=r'\(held_out\), row 0'):
    evaluate(data_config, batch_size=4, vocab_size=256)
