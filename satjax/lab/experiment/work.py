"""Runs side by side: worker processes, each with cores of its own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import time
from typing import Any, NamedTuple, Self

from rich import console as rich_console
from rich import progress as rich_progress

from satjax import errors

_stopping: Any = None  # in a worker: whether the pool is to end


class Task(NamedTuple):
  """A call in a worker.

  Attributes:
    name: for the progress.
    cost: how long it takes, in any unit that all tasks share.
    log: file that its output goes to.
    function: of `satjax.lab.experiment.tasks`.
    arguments: of the function.
  """

  name: str
  cost: float
  log: pathlib.Path
  function: Callable[..., Any]
  arguments: tuple[Any, ...]


class Pool:
  """Workers that take tasks; asked to stop, they save what they are at."""

  def __init__(self, jobs: int):
    """`jobs`: workers; more than one share the cores among them.

    Raises:
      ConfigError: there are not so many cores.
    """
    found = cores()
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
    self._pool = futures.ProcessPoolExecutor(
      jobs,
      mp_context=context,
      initializer=_begin,
      initargs=(shares, self._stopping),
    )
    self._console = rich_console.Console(stderr=True, highlight=False)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    if kind and kind is not KeyboardInterrupt:  # which workers get as well
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
    pending = {
      self._pool.submit(_call, str(t.log), t.function, *t.arguments): t
      for t in tasks
    }
    order = list(pending)
    with self._forwarded_signal(), self._shown(label, tasks) as done:
      try:
        for future in futures.as_completed(pending):
          future.result()
          done(pending[future])
      except futures.process.BrokenProcessPool as error:
        what = 'stopped' if self._stopping.is_set() else 'a worker ended'
        raise errors.Preempted(
          f'{what}; run the same command again to go on'
        ) from error
      finally:
        for future in order:
          future.cancel()
    return [future.result() for future in order]

  @contextlib.contextmanager
  def _forwarded_signal(self) -> Iterator[None]:
    """SIGTERM to this process alone reaches the workers, which save."""
    old = signal.signal(signal.SIGTERM, lambda *_: self._stop())
    try:
      yield
    finally:
      signal.signal(signal.SIGTERM, old)

  @contextlib.contextmanager
  def _shown(self, label, tasks) -> Iterator[Callable[[Task], None]]:
    """A bar on a terminal; elsewhere a line a task. Both say how long yet."""
    total, start = sum(task.cost for task in tasks), time.monotonic()
    spent, count = 0.0, 0
    bar = rich_progress.Progress(
      rich_progress.TextColumn('{task.description}'),
      rich_progress.BarColumn(bar_width=24),
      rich_progress.TextColumn('{task.fields[text]}'),
      rich_progress.TimeElapsedColumn(),
      rich_progress.TimeRemainingColumn(),
      console=self._console,
      disable=not self._console.is_terminal,
    )

    def done(task: Task) -> None:
      nonlocal spent, count
      spent, count = spent + task.cost, count + 1
      text = f'{count}/{len(tasks)}'
      bar.update(shown, completed=spent, text=text)
      if not self._console.is_terminal:
        left = (time.monotonic() - start) * (total / max(spent, 1e-9) - 1)
        self._console.print(
          f'{label} {text}: {task.name}; {left:.0f} s left', soft_wrap=True
        )

    with bar:
      shown = bar.add_task(label, total=total, text=f'0/{len(tasks)}')
      yield done


def cores() -> list[int]:
  """Numbers of the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def _begin(shares: Any, stopping: Any) -> None:
  """In a new worker, before JAX asks how many cores there are."""
  global _stopping  # noqa: PLW0603
  _stopping = stopping
  mine = shares.get()
  if mine and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, mine)


def _call(log: str, function: Callable[..., Any], *arguments: Any) -> Any:
  """In a worker: its output goes to a file."""
  if _stopping.is_set():
    raise errors.Preempted('stopped; run the same command again to go on')
  pathlib.Path(log).parent.mkdir(parents=True, exist_ok=True)
  with open(log, 'a') as file:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  try:
    return function(*arguments)
  except errors.Preempted:
    _stopping.set()
    raise
  finally:
    # Another worker may have been killed with the lock of the queue, and who
    # goes back there then waits for ever.
    if _stopping.is_set():
      os._exit(errors.Preempted.exit_code)
