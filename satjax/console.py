"""What a person reads of long work: a progress bar, a table."""

from collections.abc import Callable, Sequence
import math
import sys
import threading
import time
from typing import Any, Self

from rich import console as rich_console
from rich import progress as rich_progress


class Progress:
  """How far some work is, on stderr: a bar on a terminal, elsewhere lines.

  Both say how much time is left. Any thread may advance it.

  Attributes:
    total: size of the work, in any unit.
    done: how much of it is done.
  """

  def __init__(
    self,
    what: str,
    total: float = 0,
    done: float = 0,
    *,
    counts: bool = False,
    quiet: bool = False,
    seconds_between: float = 5.0,
  ):
    """Nothing is shown before the first advance, unless on a terminal.

    Args:
      what: is being done.
      total: of the work; may be told later, by `start`.
      done: before this work began.
      counts: show 'done/total' instead of a percentage.
      quiet: show nothing.
      seconds_between: two lines, where there is no terminal.
    """
    self.total, self.done = total, done
    self._what, self._counts = what, counts
    self._console = rich_console.Console(
      stderr=True, highlight=False, markup=False, emoji=False, quiet=quiet
    )
    self._lock = threading.Lock()
    self._begun_with = done
    self._start = self._last = time.monotonic()
    self._between = seconds_between
    self._bar = rich_progress.Progress(
      rich_progress.TextColumn('{task.description}'),
      rich_progress.BarColumn(bar_width=24),
      rich_progress.TextColumn('{task.fields[text]}'),
      rich_progress.TimeRemainingColumn(),
      console=self._console,
      disable=quiet or not self._console.is_terminal,
      # Else nothing is known of the rate of pieces that take half a minute.
      speed_estimate_period=math.inf,
    )
    self._task = self._bar.add_task(
      what, total=total or None, completed=done, text=''
    )

  def __enter__(self) -> Self:
    self._bar.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._bar.stop()

  def start(self, total: float) -> Callable[[float], None]:
    """Tells the size of the work; returns `advance`."""
    self.total = total
    self._bar.update(self._task, total=total)
    return self.advance

  def advance(self, more: float, text: str = '') -> None:
    """Some more is done; `text` says what is worth knowing of it."""
    with self._lock:
      self.done += more
      amount = f'{self.done / max(self.total, 1e-9):.0%}'
      if self._counts:
        amount = f'{self.done:g}/{self.total:g}'
      said = f'{amount}  {text}'.rstrip()
      self._bar.update(self._task, completed=self.done, text=said)
      now = time.monotonic()
      is_due = now - self._last >= self._between
      is_end = self._counts and self.done >= self.total
      if self._bar.disable and (is_due or is_end):
        self._last = now
        rate = (self.done - self._begun_with) / (now - self._start + 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        self.note(f'{self._what} {said}  {left:.0f} s left')

  def note(self, text: str) -> None:
    """A line of its own, above the bar."""
    self._console.print(text, soft_wrap=True)


def say(text: str) -> None:
  """A line on stderr that is for whoever typed a command."""
  print(f'satjax: {text}', file=sys.stderr, flush=True)


def markdown(
  columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = False
) -> str:
  """A table of GitHub's Markdown; ends with a line break.

  Args:
    columns: heads, as they stand in Markdown.
    rows: cells, likewise, as many as there are columns.
    right: whether all but the first column are numbers, set to the right.
  """
  side = '---:' if right else '---'
  lines = [columns, ['---', *[side] * (len(columns) - 1)], *rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)
