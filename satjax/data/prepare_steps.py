"""A table on its way to disk: what is written, and how far that is."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from satjax import errors
from satjax.data import chunks, manifest, table
from satjax.data.chunks import Position, Source
from satjax.data.journal import Journal
from satjax.data.manifest import Manifest, Part
from satjax.data.split_writer import SplitWriter
from satjax.data.tokenise import Tokenised
from satjax.data.workers import Batch, Workers


class Progress:
  """Writes parts one after the other, in steps that the journal keeps.

  A step ends with its shards: they are on disk before the journal says so.

  Attributes:
    manifest: of the documents so far.
    number: of the part that is written.
    done: bytes of its source.
  """

  def __init__(self, out: Path, journal: Journal, fresh: Manifest):
    """Goes on after the last step of a journal, if it has one.

    Args:
      out: directory to write.
      journal: of that directory.
      fresh: manifest of the table while it is empty.

    Raises:
      ConfigError: the journal is of another table.
    """
    self._out = out
    self._journal = journal
    self.manifest, self.number = fresh, 0
    self._next, self.done = (), 0
    if state := journal.state():
      self.manifest = Manifest.from_json(state['manifest'])
      manifest.check_same(self.manifest, fresh, out)
      self.number, self.done = state['number'], state['done']
      self._next = tuple(state['next'])
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
    dtype = np.dtype(self.manifest.dtype)
    writers = {
      name: SplitWriter(
        self._out / manifest.folder(self.number, name), dtype, split
      )
      for name, split in part.splits.items()
    }
    batches = _batches(source, self._next)
    try:
      for batch, tokenised in pool.tokenise(batches):
        self._add(part, writers, tokenised)
        if batch[-1].done > self.done:
          advance(batch[-1].done - self.done)
        self._next, self.done = batch[-1].next, batch[-1].done
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
    self.number, self._next, self.done = self.number + 1, (), 0
    self._commit()

  def _add(
    self, part: Part, writers: dict[str, SplitWriter], found: Tokenised
  ) -> None:
    for name, count in found.counts.items():
      part.counts[name] += count
    is_kept = np.ones(len(found.lengths), bool)
    if found.keys is not None:
      is_kept[:] = [self._journal.add(keys) for keys in found.keys]
      part.counts['duplicates'] += int(np.sum(~is_kept))
    for name, writer in writers.items():
      is_mine = (found.splits == table.SPLITS.index(name)) & is_kept
      is_token = np.repeat(is_mine, found.lengths)
      writer.add(
        found.tokens[is_token],
        found.lengths[is_mine],
        None if found.is_trained is None else found.is_trained[is_token],
      )

  def _commit(self) -> None:
    self._journal.commit(
      {
        'manifest': self.manifest.to_json(),
        'number': self.number,
        'next': self._next,
        'done': self.done,
      }
    )


def _batches(source: Source, start: Position) -> Iterator[Batch]:
  """Chunks of about the same volume together."""
  batch, volume = [], 0
  for chunk in source.chunks(start, chunks.CHUNK_BYTES):
    batch.append(chunk)
    volume += chunk.volume
    if volume >= chunks.CHUNK_BYTES:
      yield batch
      batch, volume = [], 0
  if batch:
    yield batch
