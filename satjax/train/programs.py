"""Compiled programs, one set for each shape; the next compile meanwhile."""

from collections.abc import Callable, Hashable
from concurrent import futures
from typing import Any

from satjax.train.phases import Phase


class Programs:
  """Compiles each distinct shape once, in the background where asked ahead.

  Attributes:
    count: how many shapes have been compiled or are being compiled.
  """

  def __init__(
    self,
    compile_phase: Callable[[Phase], Any],
    key: Callable[[Phase], Hashable],
  ):
    """Phases with the same `key` share what `compile_phase` makes."""
    self._compile = compile_phase
    self._key = key
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix='compile')
    self._programs: dict[Hashable, futures.Future] = {}

  @property
  def count(self) -> int:
    return len(self._programs)

  def prepare(self, phase: Phase) -> None:
    """Starts to compile for a phase, unless that is done or begun."""
    key = self._key(phase)
    if key not in self._programs:
      self._programs[key] = self._pool.submit(self._compile, phase)

  def get(self, phase: Phase) -> Any:
    """What has been compiled for a phase; waits for it if need be."""
    self.prepare(phase)
    return self._programs[self._key(phase)].result()

  def close(self) -> None:
    """Drops what has not begun to compile."""
    self._pool.shutdown(wait=False, cancel_futures=True)
