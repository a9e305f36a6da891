"""Runs side by side: worker processes, each with cores of its own."""

from collections.abc import Callable, Sequence
from concurrent import futures
import multiprocessing
import os
import pathlib
import signal
import sys
from typing import Any, NamedTuple, Self

from satjax import console, errors, runtime
from satjax.data import table

_GO_ON = 'run the same command again to go on'
_stopping: Any = None  # in a worker: whether the pool is to end


class Task(NamedTuple):
  """A call in a worker."""

  name: str  # for the progress
  cost: float  # how long it takes, in any unit that all tasks share
  log: pathlib.Path  # that its output goes to
  function: Callable[..., Any]
  arguments: tuple[Any, ...]


class Pool:
  """Workers that take tasks; asked to stop, they save what they are at."""

  def __init__(self, jobs: int):
    """Several workers share the cores; ConfigError: there are not so many."""
    found = runtime.cores()
    if not 1 <= jobs <= len(found):
      raise errors.ConfigError(
        f'--jobs={jobs}: this machine lends {len(found)} cores; give every job'
        ' one or more'
      )
    context = multiprocessing.get_context('spawn')
    self._stopping = context.Event()
    shares = context.SimpleQueue()
    for number in range(jobs):
      shares.put(found[number::jobs] if jobs > 1 else [])
    self.cores = {len(found[number::jobs]) for number in range(jobs)}  # of one
    self._pool = futures.ProcessPoolExecutor(
      jobs,
      mp_context=context,
      initializer=_begin,
      initargs=(shares, self._stopping),
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    if kind:
      self._stop()
    self._stopping.set()
    self._pool.shutdown(cancel_futures=True)
    del self._pool, self._stopping  # and with them their semaphores

  def _stop(self) -> None:
    """Asks the workers to save, once: a second time would end them at once."""
    if not self._stopping.is_set():
      self._stopping.set()
      for child in multiprocessing.active_children():
        child.terminate()

  def run(self, label: str, tasks: Sequence[Task]) -> list[Any]:
    """Results of all tasks, in their order.

    Raises:
      Preempted: asked to stop; every run under way is saved.
    """
    if not tasks:
      return []
    pending = {self._pool.submit(_call, t): t for t in tasks}
    total = sum(task.cost for task in tasks)
    # To this process alone; it reaches the workers, which save.
    old = signal.signal(signal.SIGTERM, lambda *_: self._stop())
    try:
      with console.Progress(label, total, seconds_between=0) as bar:
        for count, future in enumerate(futures.as_completed(pending), 1):
          future.result()
          task = pending[future]
          bar.advance(task.cost, f'{count}/{len(tasks)}: {task.name}')
    except futures.process.BrokenProcessPool as error:
      what = 'stopped' if self._stopping.is_set() else 'a worker ended'
      raise errors.Preempted(f'{what}; {_GO_ON}') from error
    finally:
      for future in pending:
        future.cancel()
      signal.signal(signal.SIGTERM, old)
    return [future.result() for future in pending]


def _begin(shares: Any, stopping: Any) -> None:
  """In a new worker, before JAX asks how many cores there are."""
  global _stopping  # noqa: PLW0603
  _stopping = stopping
  mine = shares.get()
  if mine and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, mine)
  runtime.prepare()
  table.share()  # runs read the same texts


def _call(task: Task) -> Any:
  """In a worker: its output goes to a file."""
  if _stopping.is_set():
    raise errors.Preempted(f'stopped; {_GO_ON}')
  task.log.parent.mkdir(parents=True, exist_ok=True)
  with task.log.open('a') as file:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  try:
    return task.function(*task.arguments)
  except errors.Preempted:
    _stopping.set()
    raise
  finally:
    # Another worker may have been killed with the lock of the queue, and who
    # goes back there then waits for ever.
    if _stopping.is_set():
      os._exit(errors.Preempted.exit_code)
