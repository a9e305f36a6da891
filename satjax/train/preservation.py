"""Which checkpoints of a run stay for their held-out losses."""

import dataclasses

from orbax.checkpoint import checkpoint_managers


@dataclasses.dataclass
class Best(checkpoint_managers.PreservationPolicy):
  """Keeps the checkpoints of the lowest losses that are known.

  Orbax's BestN has the losses in files of their own, without a fingerprint,
  and its manager does not open where one of these is damaged.
  """

  count: int
  losses: dict[int, float | None] = dataclasses.field(default_factory=dict)

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    steps = [one.step for one in checkpoints]
    known = [step for step in steps if self.losses.get(step) is not None]
    best = sorted(known, key=self.losses.get)[: self.count]
    return [step in best for step in steps]
