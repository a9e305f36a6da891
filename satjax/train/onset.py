"""Warns of a run that is worse after its warm-up than where it began.

A learning rate that is too high for a pretrained model shows there first, in
the losses of its steps and, less noisily, in those of held-out text.
"""

from collections.abc import Mapping
import dataclasses
import math
import statistics

from absl import logging

_WINDOW = 10  # steps, at most, in the means before and after
_ERRORS = 2  # standard errors that a difference of them has to exceed


@dataclasses.dataclass
class Onset:
  """What a new run has seen so far; of one that goes on, it says nothing."""

  warmup: int  # steps
  losses: list[float] = dataclasses.field(default_factory=list)
  held_out: Mapping[str, float] | None = None  # by source, before any step
  is_done: bool = False  # whether held-out text was compared

  def trained(self, step: int, loss: float) -> None:
    """Takes the loss of a step, and compares as soon as there are enough."""
    if step != len(self.losses) + 1:
      return
    self.losses.append(loss)
    if step != self.warmup + _WINDOW:
      return
    before = self.losses[: min(max(self.warmup, 1), _WINDOW)]
    after = self.losses[-_WINDOW:]
    error = math.sqrt(1 / len(before) + 1 / len(after))
    error *= statistics.stdev(after)
    means = statistics.fmean(before), statistics.fmean(after)
    if means[1] - means[0] > _ERRORS * error:
      self._warn(step, 'of training', *means)

  def evaluated(self, step: int, losses: Mapping[str, float]) -> None:
    """The same for held-out losses: before the run, and after warm-up."""
    if step == 0:
      self.held_out = losses
    elif self.held_out and step > self.warmup and not self.is_done:
      self.is_done = True
      for source, loss in losses.items():
        if loss > self.held_out[source]:
          name = f'of held-out {source}'
          self._warn(step, name, self.held_out[source], loss)

  def _warn(self, step: int, what: str, before: float, after: float) -> None:
    logging.warning(
      f'Step {step}: the loss {what} is {after:.4f} after warm-up, and was'
      f' {before:.4f} where the run began: is the learning rate too high for'
      ' this model? Lower config.optimizer.peak_lr'
    )
