"""Chunks to tokens, in this process or in others; results come in order."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from typing import Any, NamedTuple

from satjax import errors
from satjax.data import chunks, duplicates, table, tokenizers
from satjax.data.chunks import Chunk
from satjax.data.encode import Encoded, Encoder

# Text that all processes together have before them.
_MAX_VOLUME = 16 * chunks.CHUNK_BYTES


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is prepared, and all that its tokens depend on."""

  sources: tuple[str, ...]  # of `sources.FORMS`
  weights: tuple[float, ...]  # of each in training
  columns: tuple[str, ...]  # of records, as `documents.from_record` has them
  shard_tokens: int  # a file ends with the step that reaches so many
  tokenizer: str
  template: str
  held_out: float  # share of the documents, as `table.split_of` has it
  test: float
  duplicates: str  # of `duplicates.RULES`
  min_tokens: int  # of a document that is taken, with begin and end of text
  max_tokens: int | None
  reasoning: str = 'template'  # of `chat.REASONING`


class Taken(NamedTuple):
  """A document that is not left out for its length."""

  encoded: Encoded
  split: str  # of `table.SPLITS`
  keys: list[bytes]  # see `duplicates`; []: all are kept


class Tokenised(NamedTuple):
  """What comes of a batch."""

  documents: list[Taken]
  counts: Counter[str]  # of the documents that there were


class Tokeniser:
  """Turns chunks into tokens."""

  def __init__(self, settings: Settings):
    self._settings = settings
    tokenizer = tokenizers.get_tokenizer(settings.tokenizer)
    self.encoder = Encoder(tokenizer, settings.template, settings.reasoning)
    self._keys = duplicates.finder(settings.duplicates)

  def __call__(self, batch: Sequence[Chunk]) -> Tokenised:
    """The documents of some chunks, one after the other.

    Raises:
      DataError: a document cannot be used.
    """
    s, counts, found = self._settings, Counter(), []
    documents = (d for chunk in batch for d in chunk.documents(counts))
    for document, encoded in self.encoder.each(documents, counts):
      counts['documents'] += 1
      if self._is_taken(encoded, counts):
        name = document.group or document.id
        split = table.split_of(name, s.held_out, s.test)
        keys = self._keys(document) if self._keys else []
        found.append(Taken(encoded, split, keys))
    counts['documents'] += counts['empty']
    return Tokenised(found, counts)

  def _is_taken(self, encoded: Encoded, counts: Counter[str]) -> bool:
    size, most = len(encoded.tokens), self._settings.max_tokens
    is_short = size < self._settings.min_tokens
    is_long = most is not None and size > most
    counts['too_short'] += is_short
    counts['too_long'] += is_long
    return not (is_short or is_long)


Batch = Sequence[Chunk]


class Workers(contextlib.AbstractContextManager):
  """Tokenises batches in processes, or in this one."""

  def __init__(self, settings: Settings, count: int):
    """Starts `count` processes, with one thread each.

    0: none, and the threads of the tokenizer's library in this one.
    """
    self._settings = settings
    self._count = count
    self._here = Tokeniser(settings) if not count else None
    self._pool = count and futures.ProcessPoolExecutor(
      count, multiprocessing.get_context('spawn'), _begin
    )

  def __exit__(self, *_: Any) -> None:
    if self._pool:
      self._pool.shutdown(cancel_futures=True)

  def tokenise(
    self, batches: Iterable[Batch]
  ) -> Iterator[tuple[Batch, Tokenised]]:
    """Yields batches and their tokens, in order.

    Raises:
      DataError: the first of the documents that cannot be used.
      SatjaxError: a process was killed.
    """
    if self._here:
      yield from ((batch, self._here(batch)) for batch in batches)
      return
    waiting = deque()
    try:
      for batch in batches:
        job = self._pool.submit(_tokenise, self._settings, batch)
        waiting.append((batch, job))
        while self._is_enough(waiting):
          first, job = waiting.popleft()
          yield first, job.result()
      for batch, job in waiting:
        yield batch, job.result()
    except futures.process.BrokenProcessPool as error:
      raise errors.SatjaxError(
        'a worker process was killed, most likely for want of memory; run the'
        ' same command again with fewer --workers, and it goes on'
      ) from error

  def _is_enough(self, waiting: deque) -> bool:
    volume = sum(chunk.volume for batch, _ in waiting for chunk in batch)
    return len(waiting) > 2 * self._count or volume > _MAX_VOLUME


def _tokenise(settings: Settings, batch: Batch) -> Tokenised:
  return _tokeniser(settings)(batch)


_tokeniser = functools.cache(Tokeniser)  # once in each process


def _begin() -> None:
  """Prepares a process."""
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # there are processes enough
  with contextlib.suppress(ValueError):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
  threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
  """Ends with the parent process, however that ends."""
  multiprocessing.parent_process().join()
  os._exit(1)
