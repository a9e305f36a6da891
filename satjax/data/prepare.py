"""`satjax prepare`: sources to a table on disk, whatever stops it on the way.

Parts, one for each source, are written one after the other, in steps that the
journal keeps. A step ends with its shards: they are on disk before the journal
says so. What came after it is written again by whoever goes on from there, and
is the same.
"""

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import math
import os
from pathlib import Path

import numpy as np

from satjax import errors, files
from satjax.config import data as config_data
from satjax.data import (
  blocks,
  chunks,
  duplicates,
  prepared,
  sources,
)
from satjax.data import table as tables
from satjax.data.chunks import Source
from satjax.data.encode import Encoded
from satjax.data.journal import Journal
from satjax.data.prepared import Manifest, Part, Shard, Split
from satjax.data.tokenise import Settings, Tokenised, Tokeniser, Workers

_JOURNAL = 'progress.sqlite'
STARTS = 'starts.npy'
# What is counted of every source, be it 0; the rest of `encode.COUNTS` only
# where there is some of it.
_COUNTED = ('documents', 'empty', 'cut', 'replaced')
_COUNTED += ('too_short', 'too_long', 'duplicates')


def prepare(
  settings: Settings,
  out: str | os.PathLike,
  *,
  workers: int,
  start: Callable[[int], Callable[[int], None]],
) -> Manifest:
  """Writes a table, or goes on with one.

  Args:
    out: directory, new or of an earlier call with the same arguments.
    workers: processes; 0: none but this one.
    start: shows progress: from a whole in bytes to what is told of parts of it.

  Raises:
    ConfigError: a setting is wrong, or another one than before.
    DataError: a source cannot be used, or gives no document.
    StorageError: somebody else writes there.
  """
  _check(settings, workers)
  out = Path(out).expanduser()
  found = [sources.find(name, settings.columns) for name in settings.sources]
  made = _manifest(settings, found)
  if finished := prepared.read(out):
    prepared.check_same(finished, made, out)
    made = finished
  else:
    if out.exists() and any(out.iterdir()) and not (out / _JOURNAL).exists():
      raise errors.ConfigError(
        f'--out={out} has files that satjax prepare did not write; name a new'
        ' folder'
      )
    out.mkdir(parents=True, exist_ok=True)
    with Journal(out / _JOURNAL) as journal:
      writer = TableWriter(out, journal, made)
      left = found[writer.number :]
      advance = start(sum(source.size for source in left) - writer.done)
      with Workers(settings, workers) as pool:
        for source in left:
          writer.write_part(source, pool, settings.shard_tokens, advance)
      made = writer.manifest
      files.write_json(out / prepared.NAME, made.to_json())
  for path in out.glob(f'{_JOURNAL}*'):
    path.unlink()
  return made


def _manifest(settings: Settings, found: Sequence[Source]) -> Manifest:
  """The manifest of a table that is still empty."""
  encoder = Tokeniser(settings).encoder
  tokenizer = encoder.tokenizer
  made_from = dataclasses.asdict(settings)
  made_from['tokenizer'] = tokenizer.fingerprint
  made_from['template'] = encoder.chat.identity
  made_from['inputs'] = [source.identity for source in found]
  described = {
    'name': tokenizer.name,
    'vocab_size': tokenizer.vocab_size,
    'stop_id': encoder.stop_id,
  }
  splits = [name for name in tables.SPLITS if name != 'test' or settings.test]
  counts = dict.fromkeys(_COUNTED, 0)
  parts = [
    Part(name, weight, dict(counts), {split: Split() for split in splits})
    for name, weight in zip(settings.sources, settings.weights)
  ]
  return Manifest(made_from, described, encoder.dtype.name, parts)


def _check(s: Settings, workers: int) -> None:
  """Raises ConfigError if a setting is out of range."""
  is_weight = (0 < weight < math.inf for weight in s.weights)
  fits_in = s.max_tokens is None or s.max_tokens >= max(1, s.min_tokens)
  rules = {
    'weight': (
      len(s.weights) == len(s.sources) and all(is_weight),
      'one above 0 for each --source, or none at all',
    ),
    'columns': (len(s.columns) <= 2, 'two at most'),
    'shard_tokens': (s.shard_tokens > 0, 'above 0'),
    'template': (
      config_data.names_template(s.template),
      config_data.TEMPLATES,
    ),
    'held_out': (0 <= s.held_out <= 1, 'from 0 to 1'),
    'test': (
      s.test >= 0 and s.held_out + s.test <= 1,
      'from 0, and with --held_out up to 1 together',
    ),
    'duplicates': (
      s.duplicates in duplicates.RULES,
      ', '.join(duplicates.RULES),
    ),
    'min_tokens': (s.min_tokens >= 0, '0 or more'),
    'max_tokens': (fits_in, 'at least --min_tokens, and 1'),
    'workers': (workers >= 0, '0 or more'),
  }
  values = vars(s) | {'weight': s.weights, 'workers': workers}
  for flag, (is_right, allowed) in rules.items():
    if not is_right:
      raise errors.ConfigError(f'--{flag} {values[flag]}; allowed: {allowed}')


class TableWriter:
  """A table on its way to disk: its manifest, of the documents so far.

  Attributes:
    number: of the part that is written.
    done: bytes of its source.
  """

  def __init__(self, out: Path, journal: Journal, empty: Manifest):
    """Goes on after the last step of a journal, if it has one.

    Raises:
      ConfigError: the journal is of another table than the empty one.
    """
    self._out = out
    self._journal = journal
    self.manifest, self.number = empty, 0
    self._num_chunks, self.done = 0, 0
    if state := journal.state():
      self.manifest = Manifest.from_json(state['manifest'])
      prepared.check_same(self.manifest, empty, out)
      self.number, self.done = state['number'], state['done']
      self._num_chunks = state['num_chunks']
    else:
      self._commit()

  def write_part(
    self,
    source: Source,
    pool: Workers,
    shard_tokens: int,
    advance: Callable[[int], None],
  ) -> None:
    """Writes what is left of a source.

    Raises:
      DataError: it cannot be used, or gives no document.
    """
    part = self.manifest.parts[self.number]
    writers = {
      name: SplitWriter(
        self._out / prepared.folder(self.number, name),
        np.dtype(self.manifest.dtype),
        split,
      )
      for name, split in part.splits.items()
    }
    every = source.chunks(chunks.CHUNK_BYTES)
    left = itertools.islice(every, self._num_chunks, None)
    batches = chunks.grouped(left, lambda c: c.volume, chunks.CHUNK_BYTES)
    try:
      for batch, found in pool.tokenise(batches):
        self._add(part, writers, found)
        advance(batch[-1].done - self.done)
        self._num_chunks += len(batch)
        self.done = batch[-1].done
        if sum(w.num_tokens for w in writers.values()) >= shard_tokens:
          for writer in writers.values():
            writer.finish()
          self._commit()
    except errors.DataError as error:
      raise errors.DataError(f'{part.source!r}, {error}') from error
    for writer in writers.values():
      writer.close()
    if not any(split.num_documents for split in part.splits.values()):
      counts = ', '.join(f'{n} {key}' for key, n in part.counts.items() if n)
      raise errors.DataError(
        f'{part.source!r} gives no document ({counts or "it has none"}); leave'
        ' it out, or change --min_tokens or --max_tokens; and name another'
        ' --out'
      )
    self.number, self._num_chunks, self.done = self.number + 1, 0, 0
    self._commit()

  def _add(
    self, part: Part, writers: dict[str, 'SplitWriter'], found: Tokenised
  ) -> None:
    for name, count in (+found.counts).items():
      part.counts[name] = part.counts.get(name, 0) + count
    for encoded, split, keys in found.documents:
      if keys and not self._journal.add(keys):
        part.counts['duplicates'] += 1
      else:
        writers[split].add(encoded)

  def _commit(self) -> None:
    self._journal.commit(
      {
        'manifest': self.manifest.to_json(),
        'number': self.number,
        'num_chunks': self._num_chunks,
        'done': self.done,
      }
    )


class SplitWriter:
  """Writes the documents of one split below a folder, shard after shard."""

  def __init__(self, folder: Path, dtype: np.dtype, split: Split):
    """Goes on after what a split has; it counts what is added at once."""
    self._folder = folder
    self._dtype = dtype
    self._split = split
    self._shard, self._starts = None, []
    folder.mkdir(parents=True, exist_ok=True)

  @property
  def num_tokens(self) -> int:
    """Tokens that are not finished yet."""
    return self._shard.num_tokens if self._shard else 0

  @property
  def _path(self) -> Path:
    return self._folder / f'{len(self._split.shards):05}.array_record'

  def add(self, encoded: Encoded) -> None:
    """Appends a document."""
    if self._shard is None:
      self._shard = blocks.BlockWriter(self._path, self._dtype)
    tokens, is_trained = encoded
    self._starts.append(self._split.num_tokens)
    self._split.num_documents += 1
    self._split.num_tokens += len(tokens)
    if is_trained is None:
      is_trained = np.arange(len(tokens)) > 0
    else:
      self._split.has_turns = True
      self._split.num_unlearned += not is_trained.any()
    self._shard.add(tokens, is_trained)

  def finish(self) -> None:
    """Ends the shard; afterwards it is on disk."""
    starts = np.array(self._starts, np.int64)
    count = self._split.num_documents - len(starts)
    _append(self._folder / STARTS, starts, count)
    if self._shard is not None:
      self._shard.close()
      files.sync(self._path)
      written = dataclasses.asdict(prepared.file_of(self._path))
      shard = Shard(**written, num_tokens=self.num_tokens)
      self._split.shards.append(shard)
    files.sync(self._folder)
    self._shard, self._starts = None, []

  def close(self) -> None:
    """Ends the shard, and the split."""
    self.finish()
    self._split.starts = prepared.file_of(self._folder / STARTS)


def _append(path: Path, starts: np.ndarray, count: int) -> None:
  """Adds to an .npy file after `count` numbers; drops what came after them."""
  path.touch()
  with path.open('r+b') as file:
    # The header has room for any length: it is always as long.
    header = {'descr': '<i8', 'fortran_order': False}
    header['shape'] = (count + len(starts),)
    np.lib.format.write_array_header_1_0(file, header)
    file.seek(8 * count, 1)
    file.write(starts.astype('<i8').tobytes())
    file.truncate()
  files.sync(path)
