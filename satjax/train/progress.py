"""The live line of a run: loss, speed, omission rate, time left."""

import time

from rich import console as rich_console
from rich import progress as rich_progress

from satjax import distributed


class Progress:
  """A bar on a terminal; elsewhere a plain line now and then, on stderr."""

  def __init__(self, num_steps: int, step: int, seconds_between: float = 5.0):
    self._console = rich_console.Console(
      stderr=True, highlight=False, quiet=not distributed.is_first()
    )
    self._num_steps, self._first = num_steps, step
    self._start = self._last = time.monotonic()
    self._between = seconds_between
    self._bar = None
    if self._console.is_terminal and not self._console.quiet:
      self._bar = rich_progress.Progress(
        rich_progress.TextColumn('{task.completed}/{task.total}'),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.TextColumn('{task.fields[text]}'),
        rich_progress.TimeRemainingColumn(),
        console=self._console,
      )
      self._task = self._bar.add_task(
        '', total=num_steps, completed=step, text='compiling'
      )
      self._bar.start()

  def update(self, step: int, record: dict[str, float]) -> None:
    """Shows the state after `step` steps."""
    text = (
      f'loss {record["train/loss"]:.4f}'
      f'  {record["speed/tokens_per_second"]:,.0f} tok/s'
      f'  omitted {record["sparsity/omission_rate"]:.0%}'
    )
    if self._bar:
      self._bar.update(self._task, completed=step, text=text)
      return
    now = time.monotonic()
    if now - self._last < self._between and step < self._num_steps:
      return
    self._last = now
    done = max(1, step - self._first)
    left = (now - self._start) / done * (self._num_steps - step)
    self._console.print(
      f'step {step}/{self._num_steps}  {text}  {left:.0f} s left'
    )

  def note(self, text: str) -> None:
    """A line above the bar."""
    self._console.print(text)

  def close(self) -> None:
    if self._bar:
      self._bar.stop()
