"""Processes that tokenise, whose results come in order."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from typing import Any

from satjax import errors
from satjax.data import chunks
from satjax.data.chunks import Chunk
from satjax.data.tokenise import Settings, Tokenised, Tokeniser

# Text that all processes together have before them.
_MAX_VOLUME = 16 * chunks.CHUNK_BYTES

Batch = Sequence[Chunk]


class Workers:
  """Tokenises batches in processes, or in this one."""

  def __init__(self, settings: Settings, count: int):
    """Starts processes.

    Args:
      settings: of the tokens.
      count: of processes, with one thread each; 0: none, and the threads of
        the tokenizer's library in this one.
    """
    self._settings = settings
    self._count = count
    self._here = Tokeniser(settings) if not count else None
    self._pool = count and futures.ProcessPoolExecutor(
      count, multiprocessing.get_context('spawn'), _begin
    )

  def __enter__(self) -> 'Workers':
    return self

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
          yield _result(waiting.popleft())
      while waiting:
        yield _result(waiting.popleft())
    except futures.process.BrokenProcessPool as error:
      raise errors.SatjaxError(
        'a worker process was killed, most likely for want of memory; run the'
        ' same command again with fewer --workers, and it goes on'
      ) from error

  def _is_enough(self, waiting: deque) -> bool:
    volume = sum(chunk.volume for batch, _ in waiting for chunk in batch)
    return len(waiting) > 2 * self._count or volume > _MAX_VOLUME


def _result(pair: tuple[Batch, futures.Future]) -> tuple[Batch, Tokenised]:
  return pair[0], pair[1].result()


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
