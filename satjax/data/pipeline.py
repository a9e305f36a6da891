"""Batches: shuffled, mixed and checked, each a pure function of its number."""

from collections.abc import Iterator, Sequence
import hashlib
import json
from typing import Any

from absl import logging
import numpy as np

from satjax import errors
from satjax.config.data import DataConfig
from satjax.data import prepared
from satjax.data import rows as rows_lib
from satjax.data import table as tables
from satjax.data.encode import Encoder
from satjax.data.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]


class Batches:
  """An endless sequence of batches; batch t needs no earlier one.

  Every row of a source comes once an epoch, in another order each epoch; an
  epoch may end inside a batch.

  Attributes:
    sources: the rows of each, once.
    fingerprint: of the tables, their weights, the row length and the seed;
      with the batch size and t it determines a batch.
  """

  def __init__(
    self, dataset: Any, sources: Sequence[rows_lib.Rows], fingerprint: str
  ):
    self._dataset = dataset
    self.sources = tuple(sources)
    self.fingerprint = fingerprint

  def __getitem__(self, step: int) -> Batch:
    """Returns batch `step`: the keys of `rows.rows`, all [B, T]."""
    return self._dataset[_counted(step)]

  def iterate(self, start_step: int, *, prefetch: int = 4) -> Iterator[Batch]:
    """Yields batches from `start_step` on, at the cost of one, in order.

    A background thread keeps `prefetch` batches ready; 0: there is no thread.
    """
    import grain

    # Rows are in memory: a second thread would only wait for the first.
    options = grain.ReadOptions(
      num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch
    )
    rest = self._dataset.slice(slice(_counted(start_step), None))
    return iter(rest.to_iter_dataset(options))


def _counted(step: int) -> int:
  if step < 0:
    raise IndexError(f'batch {step}; batches count from 0 and never end')
  return step


def make_batches(
  data_config: DataConfig,
  *,
  split: str,
  batch_size: int,
  tokenizer: Tokenizer,
  vocab_size: int,
) -> Batches:
  """Tokenises the sources and mixes their rows by weight.

  Every id is checked against the `vocab_size` of the model.

  Raises:
    ConfigError: a source is unknown.
    DataError: a source cannot be used; or, when a batch is read, it holds
      an id outside of the vocabulary.
  """
  import grain

  parts, weights, datasets = [], [], []
  for source, weight in weighted(data_config.train):
    found = _parts(data_config, source, split, tokenizer, vocab_size)
    for part, share in found:
      dataset = grain.MapDataset.source(part)
      dataset = dataset.shuffle(seed=_seed(data_config.seed, len(parts)))
      datasets.append(dataset.repeat(reseed_each_epoch=True))
      parts.append(part)
      weights.append(weight * share)
  mixed = grain.MapDataset.mix(datasets, weights)
  packing = [data_config.packing, data_config.too_long]
  if data_config.attend == 'row':  # else as before there was a choice
    packing.append('row')
  identity = {
    'tables': [part.table.fingerprint for part in parts],
    'weights': [weight / sum(weights) for weight in weights],
    'seq_len': data_config.seq_len,
    'packing': packing,
    'seed': data_config.seed,
    'tokenizer': tokenizer.fingerprint,
  }
  return Batches(
    # Without it, the length of an endless set overflows at batch size 1.
    mixed.batch(batch_size, drop_remainder=True),
    parts,
    _hash(identity, 16).hex(),
  )


def eval_batches(
  data_config: DataConfig,
  source: str,
  *,
  batch_size: int,
  tokenizer: Tokenizer,
  vocab_size: int,
  max_batches: int,
  split: str = 'held_out',
) -> list[Batch]:
  """Returns rows of a split in a fixed order, the same at every evaluation.

  If there are more rows than fit, those taken are spread evenly over the
  table. The last batch is filled up with rows of weight 0, so that a
  token-weighted loss is exact.

  Raises:
    ConfigError, DataError: as `make_batches`; DataError also if the rows taken
      hold prompts alone, whose loss is of nothing.
  """
  parts = _parts(data_config, source, split, tokenizer, vocab_size)
  ends = np.cumsum([len(part) for part, _ in parts])
  count = min(int(ends[-1]), max_batches * batch_size)
  taken = []
  for row in (i * int(ends[-1]) // count for i in range(count)):
    number = int(np.searchsorted(ends, row, side='right'))
    part, _ = parts[number]
    taken.append(part[row - int(ends[number]) + len(part)])
  if not any(row['weights'].any() for row in taken):
    raise errors.DataError(
      f'{source} ({split}): the {count} rows that are evaluated hold no'
      ' token of an answer; raise train.eval_batches or data.seq_len'
    )
  padding = taken[0] | {'weights': np.zeros_like(taken[0]['weights'])}
  taken += [padding] * (-count % batch_size)
  return [
    {
      key: np.stack([row[key] for row in taken[i : i + batch_size]])
      for key in padding
    }
    for i in range(0, len(taken), batch_size)
  ]


def weighted(mixture: Sequence[Any]) -> list[tuple[str, float]]:
  """Returns (source, weight) pairs; a source alone has weight 1."""
  return [(s, 1.0) if isinstance(s, str) else tuple(s) for s in mixture]


def _parts(
  c: DataConfig, source: str, split: str, tokenizer: Tokenizer, vocab_size: int
) -> list[tuple[rows_lib.Rows, float]]:
  """Rows of a source, in as many parts as it was prepared from, and shares."""
  shares = {'held_out': c.held_out, 'test': c.test}
  if source.startswith('tokens:'):
    found = prepared.open_tables(
      source.removeprefix('tokens:'),
      split,
      tokenizer,
      template=c.template,
      reasoning=c.reasoning,
      **shares,
    )
  else:
    encoder = Encoder(tokenizer, c.template, c.reasoning)
    built = tables.build_table(
      source, encoder, split=split, columns=c.columns, **shares
    )
    found = [(built, 1.0)]
  parts = []
  for table, share in found:
    rows = rows_lib.rows(
      table, c.seq_len, c.packing, c.too_long, vocab_size, c.attend
    )
    if rows.num_cut or rows.num_dropped:
      logging.warning(
        f'{table.name}: {rows.num_cut} of {len(table.starts)} documents are'
        f' longer than data.seq_len {c.seq_len} and were cut,'
        f' {rows.num_dropped} were left out'
      )
    if rows.num_unlearned:
      _report_unlearned(rows, c, split)
    parts.append((rows, share))
  return parts


def _report_unlearned(rows: rows_lib.Rows, c: DataConfig, split: str) -> None:
  """Warns of documents that teach nothing; raises DataError if most do."""
  total = len(rows.table.starts)
  what = (
    f'{rows.table.name}: nothing is learned of {rows.num_unlearned} of {total}'
    f' documents: their prompts fill data.seq_len {c.seq_len}, or their answers'
    ' are empty, of weight 0, or not found in the template'
  )
  is_most = split == 'train' and 2 * rows.num_unlearned > total
  if is_most and c.unlearned == 'refuse':
    raise errors.DataError(
      f"{what}; raise data.seq_len, leave them out (data.too_long='drop' does,"
      " of long ones), or ask for it with data.unlearned='keep'"
    )
  logging.warning(what)


def _seed(seed: int, number: int) -> int:
  """A seed of its own for each source of the mixture.

  Grain adds the epoch to the seed: without a hash, the second epoch of seed 0
  would be the first of seed 1.
  """
  return int.from_bytes(_hash([seed, number], 4), 'big')


def _hash(values: Any, num_bytes: int) -> bytes:
  data = json.dumps(values, sort_keys=True).encode()
  return hashlib.blake2b(data, digest_size=num_bytes).digest()
