"""Batch t depends on the seed, t and the batch size, and on nothing else."""

import collections
import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from satjax import errors
from satjax.data import pipeline, table, tokenizers
from satjax.data import rows as rows_lib
from satjax.data.encode import Encoder
from tests import models

BYTE = tokenizers.ByteTokenizer()
KEYS = {'tokens', 'targets', 'positions', 'segments', 'weights'}


def settings(folder, *train, **changes):
  train = tuple(train) or (f'text:{folder}/a/*',)
  return models.make_data(train=train, **changes)


def make(
  data_config, *, split='train', batch_size=4, vocab_size=258, **options
):
  return pipeline.make_batches(
    data_config,
    split=split,
    batch_size=batch_size,
    tokenizer=BYTE,
    vocab_size=vocab_size,
    **options,
  )


def built(folder):
  """What `settings(folder)` trains on."""
  return table.build_table(
    f'text:{folder}/a/*', Encoder(BYTE), split='train', held_out=0.2
  )


def rows_in(batches):
  return sum(map(len, batches.sources))


def num_tokens(batches):
  return sum(len(source.table.tokens) for source in batches.sources)


def assert_equal(one, two):
  assert one.keys() == two.keys() == KEYS
  for key in KEYS:
    np.testing.assert_array_equal(one[key], two[key], key)


def rows_of(batches):
  return [row.tobytes() for batch in batches for row in batch['tokens']]


def test_shapes_and_types(folder):
  batch = make(settings(folder))[0]
  assert batch.keys() == KEYS
  for key, value in batch.items():
    assert value.shape == (4, 8)
    assert value.dtype == (np.float32 if key == 'weights' else np.int32)


@pytest.mark.parametrize('batch_size', [1, 3])
def test_iterating_equals_indexing_beyond_epoch_two(folder, batch_size):
  batches = make(settings(folder), batch_size=batch_size)
  per_epoch = rows_in(batches) / batch_size
  for epoch in (0, 1, 2, 1000):
    start = int(per_epoch * epoch) - (epoch > 0)
    found = batches.iterate(start)
    for step in range(start, start + 4):
      assert_equal(next(found), batches[step])


def test_batches_do_not_depend_on_what_was_read_before(folder):
  forward, backward = make(settings(folder)), make(settings(folder))
  expected = [forward[step] for step in range(200)]
  for step in reversed(range(200)):
    assert_equal(backward[step], expected[step])


@pytest.mark.parametrize('packing', ['concat_then_split', 'best_fit'])
def test_a_row_may_be_one_sequence(folder, packing):
  apart = make(settings(folder, packing=packing, seq_len=128))
  whole = make(settings(folder, packing=packing, seq_len=128, attend='row'))
  assert whole.fingerprint != apart.fingerprint
  expected, found = apart[3], whole[3]
  assert found.keys() == KEYS - {'segments'}
  for key in ('tokens', 'targets', 'weights'):
    np.testing.assert_array_equal(found[key], expected[key])
  assert expected['segments'].max() > 1
  np.testing.assert_array_equal(found['positions'], [np.arange(128)] * 4)
  assert found['positions'].dtype == np.int32


def test_the_fingerprint_is_that_of_before_there_was_a_choice(tmp_path):
  (tmp_path / 'one.txt').write_text('fingerprint ' * 20)
  batches = make(models.make_data(train=(f'text:{tmp_path}/one.txt',)))
  assert batches.fingerprint == 'fd9f42b5413921f56e6bed160e373e63'


PROGRAM = """
import hashlib, sys
from satjax.config.data import DataConfig
from satjax.data import pipeline, tokenizers
a, b = sys.argv[1:]
data = DataConfig(
  train=(a, (b, 0.5)), eval=(), columns=(), template='plain',
  reasoning='template', unlearned='keep',
  packing='concat_then_split', too_long='cut', attend='document',
  tokenizer='byte', seq_len=8,
  held_out=0.2, test=0.0, seed=3)
batches = pipeline.make_batches(
  data, split='train', batch_size=4, vocab_size=258,
  tokenizer=tokenizers.get_tokenizer('byte'))
digest = hashlib.blake2b(digest_size=8)
for step in range(300):
  for key, value in sorted(batches[step].items()):
    digest.update(value)
print(batches.fingerprint, digest.hexdigest())
"""


def test_batches_are_the_same_in_every_process(folder):
  a, b = f'text:{folder}/a/*', f'text:{folder}/b/*'
  run = [sys.executable, '-c', PROGRAM, a, b]
  env = os.environ | {'PYTHONHASHSEED': '1', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(run, capture_output=True, text=True, env=env)
  batches = make(settings(folder, a, (b, 0.5), seed=3))
  digest = hashlib.blake2b(digest_size=8)
  for step in range(300):
    for _, value in sorted(batches[step].items()):
      digest.update(value)
  assert done.stdout.split() == [batches.fingerprint, digest.hexdigest()]


def test_every_row_comes_once_an_epoch_in_another_order(folder):
  batches = make(settings(folder), batch_size=1)
  num_rows = rows_in(batches)
  epochs = [
    rows_of(batches[epoch * num_rows + i] for i in range(num_rows))
    for epoch in range(3)
  ]
  counts = [collections.Counter(epoch) for epoch in epochs]
  assert counts[0] == counts[1] == counts[2]
  for one, two in itertools.combinations(epochs, 2):
    assert one != two
  rows = rows_lib.rows(built(folder), 8)
  in_order = [row['tokens'].tobytes() for row in rows]
  assert collections.Counter(in_order) == counts[0]
  assert in_order != epochs[0]


def test_batches_cross_the_end_of_an_epoch(folder):
  single = make(settings(folder), batch_size=1)
  batched = make(settings(folder), batch_size=5)
  count = 2 * rows_in(single) // 5
  expected = rows_of(single[i] for i in range(5 * count))
  assert rows_of(batched[i] for i in range(count)) == expected


def test_seeds_give_orders_of_their_own(folder):
  """Also seed 1 is not seed 0, one epoch later."""
  zero = make(settings(folder), batch_size=1)
  num_rows = rows_in(zero)
  one = make(settings(folder, seed=1), batch_size=1)
  first = rows_of(one[i] for i in range(num_rows))
  for epoch in range(2):
    order = rows_of(zero[epoch * num_rows + i] for i in range(num_rows))
    assert order != first
  assert zero.fingerprint != one.fingerprint


def test_single_row_table(tmp_path):
  (tmp_path / 'a').write_text('1234567')
  data_config = settings(tmp_path, f'text:{tmp_path}/a')
  batches = make(data_config, batch_size=2)
  assert rows_in(batches) == 1
  assert num_tokens(batches) == 9
  assert_equal(batches[0], batches[7])


def test_mixture_weights_are_respected(folder):
  sources = f'text:{folder}/a/*', f'text:{folder}/b/*'
  data_config = settings(folder, (sources[0], 3), (sources[1], 1.0))
  batches = make(data_config, batch_size=10)
  capitals = small = 0
  for step in range(40):
    for row in batches[step]['tokens']:
      capitals += ((row >= ord('A')) & (row <= ord('Z'))).any()
      small += ((row >= ord('a')) & (row <= ord('z'))).any()
  assert small + capitals == 400
  assert small == pytest.approx(300, abs=3)
  parts = [make(settings(folder, source)) for source in sources]
  assert rows_in(batches) == sum(map(rows_in, parts))
  assert num_tokens(batches) == sum(map(num_tokens, parts))


def test_mixed_source_keeps_its_own_epochs(folder):
  """A weight changes how often a source comes, not that rows come once."""
  sources = f'text:{folder}/a/*', f'text:{folder}/b/*'
  alone = make(settings(folder, sources[0]), batch_size=1)
  mixed = make(settings(folder, sources[0], (sources[1], 0.25)), batch_size=1)
  expected = rows_of(alone[i] for i in range(rows_in(alone)))
  capitals = set(map(chr, range(ord('A'), ord('Z') + 1)))
  found = []
  for step in range(2 * rows_in(alone)):
    row = mixed[step]['tokens'][0]
    if not capitals & set(BYTE.decode(row)):
      found.append(row.tobytes())
  assert found[: rows_in(alone)] == expected


def test_fingerprint_changes_with_what_a_batch_depends_on(folder):
  base = settings(folder)
  a, b = f'text:{folder}/a/*', f'text:{folder}/b/*'
  prints = {
    make(base).fingerprint,
    make(base, split='held_out').fingerprint,
    make(settings(folder, test=0.2)).fingerprint,
    make(settings(folder, test=0.2), split='test').fingerprint,
    make(settings(folder, seed=1)).fingerprint,
    make(settings(folder, seq_len=9)).fingerprint,
    make(settings(folder, a, b)).fingerprint,
    make(settings(folder, a, (b, 2))).fingerprint,
  }
  assert len(prints) == 8
  assert make(base).fingerprint in prints
  scaled = make(settings(folder, (a, 0.5), (b, 0.5))).fingerprint
  assert scaled in prints


def test_batches_count_from_zero(folder):
  batches = make(settings(folder))
  with pytest.raises(IndexError, match='batch -1'):
    batches[-1]
  with pytest.raises(IndexError, match='batch -1'):
    batches.iterate(-1)


def test_far_batch_costs_no_more_than_the_first(folder):
  batches = make(settings(folder))
  assert_equal(next(batches.iterate(10**12)), batches[10**12])


@pytest.mark.parametrize('is_iterated', [False, True])
def test_id_outside_of_the_model_is_refused_before_it_leaves(
  folder, is_iterated
):
  batches = make(settings(folder), batch_size=1, vocab_size=ord('z'))
  found = (batches[step] for step in itertools.count())
  if is_iterated:
    found = batches.iterate(0)
  seen = 0
  message = r'text:.* \(train\), row \d+: token id 25[67] .* 0 to 121'
  with pytest.raises(errors.DataError, match=message):
    for batch in itertools.islice(found, rows_in(batches)):
      seen += 1
      assert max(batch['tokens'].max(), batch['targets'].max()) < ord('z')
  assert 0 < seen < rows_in(batches)


@pytest.mark.parametrize('column', [0, 8])
def test_mutated_table_is_detected(folder, column):
  made = built(folder)
  rows = rows_lib.rows(made, 8, vocab_size=320)
  number = len(rows) - 1
  rows[number]
  made.tokens[number * 8 + column] = 320
  with pytest.raises(errors.DataError, match=f'row {number}: token id 320'):
    rows[number]


def test_unusable_sources_are_refused_at_once(folder, tmp_path):
  with pytest.raises(errors.ConfigError, match='stdlib:docs'):
    make(settings(folder, 'wiki'))
  with pytest.raises(errors.DataError, match='matches no file'):
    make(settings(folder, f'text:{tmp_path}/*'))
  with pytest.raises(errors.DataError, match='a row needs data.seq_len'):
    make(settings(folder, seq_len=100_000))


def test_training_never_reads_documents_of_the_other_splits(folder):
  """Each document repeats a number that no other has."""
  seen, data_config = {}, settings(folder, test=0.2)
  for split in table.SPLITS:
    batches = make(data_config, split=split, batch_size=1)
    found = [BYTE.decode(batches[i]['tokens']) for i in range(rows_in(batches))]
    seen[split] = {i for i in range(40) if f'{i:02}' in ' '.join(found)}
    for i in seen[split]:
      assert table.split_of(f'{i:02}.txt#0', 0.2, 0.2) == split
  assert len(set().union(*seen.values())) >= 37  # but for remainders


def test_weighted_accepts_both_forms():
  assert pipeline.weighted(('a', ('b', 2))) == [('a', 1.0), ('b', 2)]
