"""Compiled train steps, one for each phase; the next one compiles meanwhile."""

from collections.abc import Callable
from concurrent import futures
from typing import Any

from satjax.train.phases import Phase


class Programs:
  """Compiles each distinct shape once, in the background where asked ahead.

  Attributes:
    count: how many programs have been compiled or are being compiled.
  """

  def __init__(self, compile_step: Callable[[Phase], Any]):
    self._compile = compile_step
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix='compile')
    self._programs: dict[Any, futures.Future] = {}

  @property
  def count(self) -> int:
    return len(self._programs)

  def prepare(self, phase: Phase) -> None:
    """Starts to compile the step of a phase, unless that is done or begun."""
    shapes = (phase.num_layers, phase.heads, phase.channels)
    if shapes not in self._programs:
      self._programs[shapes] = self._pool.submit(self._compile, phase)

  def get(self, phase: Phase) -> Any:
    """The compiled step of a phase; waits for it if need be."""
    self.prepare(phase)
    return self._programs[
      phase.num_layers, phase.heads, phase.channels
    ].result()

  def close(self) -> None:
    """Drops what has not begun to compile."""
    self._pool.shutdown(wait=False, cancel_futures=True)
