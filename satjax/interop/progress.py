"""How far some work of known size is, on stderr."""

from collections.abc import Callable, Iterator
import contextlib
import time

from rich import console as rich_console
from rich import progress as rich_progress

_SECONDS_BETWEEN = 5.0


@contextlib.contextmanager
def shown(what: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
  """A bar with the time left on a terminal; elsewhere a line now and then.

  Args:
    what: is being done.

  Yields:
    A function from the size of the work to one that is called with what was
    done of it.
  """
  console = rich_console.Console(stderr=True, highlight=False)
  if not console.is_terminal:
    yield lambda total: _lines(console, what, total)
    return
  with rich_progress.Progress(
    rich_progress.TextColumn('{task.description}'),
    rich_progress.BarColumn(bar_width=24),
    rich_progress.TaskProgressColumn(),
    rich_progress.TimeRemainingColumn(),
    console=console,
  ) as bar:

    def start(total):
      task = bar.add_task(what, total=total)
      return lambda done: bar.advance(task, done)

    yield start


def _lines(console, what, total):
  begin = last = time.monotonic()
  done = 0

  def advance(more):
    nonlocal last, done
    done += more
    now = time.monotonic()
    if now - last >= _SECONDS_BETWEEN:
      last = now
      left = (now - begin) / done * (total - done)
      console.print(f'{what}  {done / total:.0%}  {left:.0f} s left')

  return advance
