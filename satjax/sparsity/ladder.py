"""LORS, the ladder omission rate scheduler (Ma et al., 2024).

The rate is constant for a share `split` of the run and then falls in equal
rungs to 0, so that the model ends dense. Rates become whole numbers of neurons
here, once; the realised rate is what metrics and FLOPs use.
"""

from collections.abc import Sequence
import dataclasses
import fractions
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Ladder:
  """Omission rate over a run.

  Attributes:
    rate: share of the neurons left out before the ladder, in [0, 1).
    split: share of the run at that rate, in (0, 1].
    rungs: steps down to 0; the last one is dense. 1: drop to dense at once.
    num_steps: length of the run, in optimizer steps.
  """

  rate: float
  split: float = 2 / 3
  rungs: int = 4
  num_steps: int = 1000

  def __post_init__(self):
    if not 0 <= self.rate < 1:
      raise ValueError(f'rate {self.rate} must be from 0 to below 1')
    if not 0 < self.split <= 1:
      raise ValueError(f'split {self.split} must be above 0 and up to 1')
    if self.rungs < 1 or self.num_steps < 1:
      raise ValueError(
        f'rungs {self.rungs} and num_steps {self.num_steps} must be at least 1'
      )

  @property
  def boundaries(self) -> tuple[int, ...]:
    """The first step of rung 1, 2, ... `rungs`."""
    # Exact arithmetic: a boundary must not move by a step with rounding.
    split = fractions.Fraction(self.split).limit_denominator(10**6)
    length = (1 - split) * self.num_steps / self.rungs
    start = split * self.num_steps
    return tuple(math.ceil(start + i * length) for i in range(self.rungs))

  def rung(self, step: int | jax.Array) -> int | jax.Array:
    """0 before the ladder, then 1 to `rungs`; `step` may be traced."""
    if isinstance(step, int):
      return sum(step >= boundary for boundary in self.boundaries)
    return jnp.sum(step >= jnp.array(self.boundaries))

  def rate_of(self, rung: int) -> float:
    """The nominal omission rate of a rung."""
    return self.rate * (1 - rung / self.rungs)

  def omission_rate(self, step: int) -> float:
    """The nominal omission rate at a step."""
    return self.rate_of(self.rung(step))

  def kept_by_rung(self, total: int, multiple: int = 1) -> Sequence[int]:
    """How many of `total` neurons take part on each rung, 0 to `rungs`."""
    return [
      kept_count(total, self.rate_of(rung), multiple)
      for rung in range(self.rungs + 1)
    ]


def kept_count(total: int, rate: float, multiple: int = 1) -> int:
  """How many of `total` neurons an omission rate keeps.

  Args:
    total: neurons of the unit.
    rate: omission rate; exactly 0 keeps all.
    multiple: the count is the nearest multiple of this, at least one and at
      most `total`.
  """
  if rate == 0:
    return total
  tiles = math.floor((1 - rate) * total / multiple + 0.5)
  return min(total, multiple * max(1, tiles))
