"""Batches: shuffled, mixed and checked, each a pure function of its number."""

from collections.abc import Iterator, Sequence
import glob
import hashlib
import json
import os
from typing import Any

from absl import logging
import numpy as np

from satjax import errors
from satjax.config.data import DataConfig
from satjax.data import prepared, readers, sources, tfds
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

  def iterate(self, start_step: int) -> Iterator[Batch]:
    """Yields batches from `start_step` on, at the cost of one, in order.

    A background thread keeps some of them ready.
    """
    import grain

    # Rows are in memory: a second thread would only wait for the first.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
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


class EvalBatches(Sequence):
  """Batches of what is evaluated of a source, the same at every evaluation.

  Every token of its documents is a target once, but for those that begin a
  document. The last batch is filled up with rows of weight 0, so that a
  token-weighted loss is exact.

  Attributes:
    num_tokens: that count.
    num_documents: that they are of.
    num_in_split: documents of the split, which are numbered in their order.
    num_found: documents of the source.
    num_left: rows of the split that are not taken.
  """

  def __init__(
    self, parts: Sequence[rows_lib.Rows], batch_size: int, count: int
  ):
    """Takes `count` of the rows, spread evenly over them."""
    self._parts, self._batch_size = parts, batch_size
    ends = np.cumsum([len(part) for part in parts])
    numbers = np.arange(count) * ends[-1] // count
    of = np.searchsorted(ends, numbers, side='right')
    rows = numbers - np.array([0, *ends])[of]
    self._taken = np.stack([of, rows], axis=1)  # part, and row in it
    self.num_left = int(ends[-1]) - count
    sizes = [len(part.table.starts) for part in parts]
    self._firsts = np.cumsum([0, *sizes[:-1]])
    self.num_found = sum(part.table.num_found for part in parts)
    self.num_tokens, self.num_in_split = 0, sum(sizes)
    is_read = np.zeros(self.num_in_split, bool)
    for number, batch in enumerate(self):
      counts = batch['weights'] > 0
      self.num_tokens += int(counts.sum())
      is_read[self.documents(number)[counts]] = True
    self.num_documents = int(is_read.sum())

  def __len__(self) -> int:
    return -(-len(self._taken) // self._batch_size)

  def __getitem__(self, number: int) -> Batch:
    """Returns a batch: the keys of `rows.rows`, all [B, T]."""
    taken = [self._parts[part][row] for part, row in self._rows(number)]
    padding = taken[0] | {'weights': np.zeros_like(taken[0]['weights'])}
    taken += [padding] * (self._batch_size - len(taken))
    return {key: np.stack([row[key] for row in taken]) for key in padding}

  def documents(self, number: int) -> np.ndarray:
    """int64 [B, T]: the document of each target of a batch, where it counts."""
    taken = [
      self._firsts[part] + self._parts[part].documents(row)
      for part, row in self._rows(number)
    ]
    return np.stack(taken + taken[:1] * (self._batch_size - len(taken)))

  def name(self, document: int) -> str:
    """What the source calls a document; its number, where it is a table."""
    number = int(np.searchsorted(self._firsts, document, side='right')) - 1
    ids, place = self._parts[number].table.ids, document - self._firsts[number]
    return ids[place] if ids else f'{self._parts[number].table.name}#{place}'

  def _rows(self, number: int) -> list[tuple[int, int]]:
    """Of a batch: the part of each row, and its number there."""
    first = range(len(self))[number] * self._batch_size  # or IndexError
    return self._taken[first : first + self._batch_size].tolist()


def eval_batches(
  data_config: DataConfig,
  source: str,
  *,
  batch_size: int,
  tokenizer: Tokenizer,
  vocab_size: int,
  max_rows: int | None = None,
  split: str = 'held_out',
) -> EvalBatches:
  """What is evaluated of a source.

  Of what `data.train` has too it is a split. Files that are not there are read
  whole, and so are data sets; of a prepared table it is what it holds out.

  Args:
    max_rows: of more, some are taken; None: all.

  Raises:
    ConfigError, DataError: as `make_batches`; DataError also if the rows taken
      hold prompts alone, whose loss is of nothing.
  """
  found = _parts(
    data_config, source, split, tokenizer, vocab_size, is_whole=True
  )
  parts = [part for part, _ in found]
  count = sum(map(len, parts))
  if max_rows is not None:
    count = min(count, max_rows)
  made = EvalBatches(parts, batch_size, count)
  if not made.num_tokens:
    raise errors.DataError(
      f'{source} ({split}): the {count} rows that are evaluated hold no'
      ' token of an answer; raise train.eval_batches or data.seq_len'
    )
  return made


def weighted(mixture: Sequence[Any]) -> list[tuple[str, float]]:
  """Returns (source, weight) pairs; a source alone has weight 1."""
  return [(s, 1.0) if isinstance(s, str) else tuple(s) for s in mixture]


def files(source: str) -> list[str]:
  """Paths of the files whose content is that of a source, in order.

  None of what comes with Python; of a prepared table that which has the digests
  of all others. DataError: the source has none.
  """
  kind, _, name = source.partition(':')
  if kind in readers.READERS:
    return [file.path for file in readers.matching(source)]
  if kind == 'tokens':
    return [os.path.join(os.path.expanduser(name), prepared.NAME)]
  if kind == 'tfds':
    return sorted(glob.glob(os.path.join(tfds.folder(name), '*')))
  return []


def is_trained_on(data_config: DataConfig, source: str) -> bool:
  """Whether `data.train` has a source, or a file of it."""
  return sources.trained_names(source, _trained(data_config)) != {}


def _trained(c: DataConfig) -> list[str]:
  """Sources that are trained on, and those that tables were made from."""
  found = [source for source, _ in weighted(c.train)]
  for source in found[:]:
    if source.startswith('tokens:'):
      found += prepared.sources_of(source.removeprefix('tokens:'))
  return found


def _parts(
  c: DataConfig,
  source: str,
  split: str,
  tokenizer: Tokenizer,
  vocab_size: int,
  *,
  is_whole: bool = False,
) -> list[tuple[rows_lib.Rows, float]]:
  """Rows of a source, in as many parts as it was prepared from, and shares."""
  shares = {'held_out': c.held_out, 'test': c.test}
  encoder = Encoder(tokenizer, c.template, c.reasoning)
  if source.startswith('tokens:'):
    if split != 'train' and not is_trained_on(c, source):
      shares = dict.fromkeys(shares)
    found = prepared.open_tables(
      source.removeprefix('tokens:'), split, encoder, **shares
    )
  else:
    trained = None
    if split != 'train':
      trained = sources.trained_names(source, _trained(c))
    built = tables.build_table(
      source,
      encoder,
      split=split,
      columns=c.columns,
      trained=trained,
      **shares,
    )
    found = [(built, 1.0)]
  parts = []
  for table, share in found:
    rows = rows_lib.rows(
      table,
      c.seq_len,
      c.packing,
      c.too_long,
      vocab_size,
      c.attend,
      is_whole=is_whole,
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
