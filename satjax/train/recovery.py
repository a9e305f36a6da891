"""How long growth sets a run back, in steps."""

import dataclasses

WINDOW = 10  # steps in a mean


@dataclasses.dataclass
class Recovery:
  """Compares the mean loss of ten steps with that of the ten before a hop."""

  # Losses of the last steps, since the hop if there is a target.
  recent: list[float] = dataclasses.field(default_factory=list)
  target: float | None = None  # mean loss before the hop; None: there was none
  start: int = 0  # step of the hop

  def grown(self, step: int) -> None:
    """Growth after `step` steps."""
    if self.recent:
      self.target = sum(self.recent) / len(self.recent)
    self.recent, self.start = [], step

  def seen(self, step: int, loss: float) -> int | None:
    """Takes the loss of a step; steps since the hop, once they suffice."""
    self.recent = [*self.recent[1 - WINDOW :], loss]
    full = len(self.recent) == WINDOW
    if self.target is None or not full:
      return None
    if sum(self.recent) / WINDOW > self.target:
      return None
    self.target = None
    return step - self.start
