"""LORS, the ladder omission rate scheduler (Ma et al., 2024), and its variants.

The rate is constant for a share `split` of the run and then falls in equal
rungs to 0, so that the model ends dense. Nominal rates become whole numbers of
neurons by the one rule of `counts`; metrics and FLOPs use what is realised.
"""

import bisect
import dataclasses
import fractions
import functools
import math

import jax
import jax.numpy as jnp

from satjax import errors
from satjax.sparsity import counts

SHAPES = ('ladder', 'linear', 'reversed')


@dataclasses.dataclass(frozen=True)
class Ladder:
  """Omission rate over a run.

  Attributes:
    rate: the highest share of the neurons that is left out, in [0, 1).
    split: share of the run at that rate, in (0, 1].
    rungs: steps down to 0; the last one is dense. 1: drop to dense at once.
    num_steps: length of the run, in optimizer steps.
    shape: 'ladder'; 'linear', which falls a little every step; or 'reversed',
      the ladder in a mirror: dense first, up in rungs, then constant.
    warm_start: share of the run that is dense before anything else.
  """

  rate: float
  split: float = 2 / 3
  rungs: int = 4
  num_steps: int = 1000
  shape: str = 'ladder'
  warm_start: float = 0.0

  def __post_init__(self):
    for name in ('rate', 'warm_start'):
      if not 0 <= (value := getattr(self, name)) < 1:
        raise ValueError(f'{name} {value} must be from 0 to below 1')
    if not 0 < self.split <= 1:
      raise ValueError(f'split {self.split} must be above 0 and up to 1')
    if self.rungs < 1 or self.num_steps < 1:
      raise ValueError(
        f'rungs {self.rungs} and num_steps {self.num_steps} must be at least 1'
      )
    if self.shape not in SHAPES:
      raise ValueError(f'shape {self.shape!r}; allowed: {" | ".join(SHAPES)}')

  @functools.cached_property
  def levels(self) -> tuple[tuple[int, float], ...]:
    """(first step, nominal rate) of every stretch of the run, in order.

    Stretches between the rungs of a ladder; every step of a linear descent.
    """
    # Exact arithmetic: a boundary must not move by a step with rounding.
    split, warm = (
      fractions.Fraction(x).limit_denominator(10**6)
      for x in (self.split, self.warm_start)
    )
    first = math.ceil(warm * self.num_steps)
    steps, rate, rungs = self.num_steps - first, self.rate, self.rungs
    length = (1 - split) * steps
    begin = first if self.shape == 'reversed' else first + steps - length
    starts = [math.ceil(begin + i * length / rungs) for i in range(rungs + 1)]
    if self.shape == 'reversed':
      found = [(s, rate * i / rungs) for i, s in enumerate(starts)]
    elif self.shape == 'linear':
      slope = range(math.ceil(begin), self.num_steps)
      falling = (rate * float(1 - (s + 1 - begin) / length) for s in slope)
      found = [(first, rate), *zip(slope, falling)]
    else:
      down = [rate * (1 - i / rungs) for i in range(rungs + 1)]
      found = [*zip([first, *starts], down)]
    return ((0, 0.0), *found) if first else tuple(found)

  @functools.cached_property
  def boundaries(self) -> tuple[int, ...]:
    """The first step of every level but the first."""
    return tuple(start for start, _ in self.levels[1:])

  def rung(self, step: int | jax.Array) -> int | jax.Array:
    """Which level a step is on, from 0; `step` may be traced."""
    if isinstance(step, int):
      return bisect.bisect_right(self.boundaries, step)
    return jnp.sum(step >= jnp.array(self.boundaries, jnp.int32))

  def rate_of(self, rung: int) -> float:
    """The nominal omission rate of a level."""
    return self.levels[rung][1]

  def omission_rate(self, step: int) -> float:
    """The nominal omission rate at a step."""
    return self.rate_of(self.rung(step))

  def kept_by_rung(
    self, total: int, multiple: int = 1, groups: int = 1
  ) -> tuple[int, ...]:
    """How many of `total` neurons take part on each level.

    Whole multiples, and as many in each of the equal groups.

    Raises:
      ConfigError: a rate above 0 that would leave nothing out, or what
        `counts.common_step` refuses.
    """
    if not self.rate:
      return (total,) * len(self.levels)
    step = counts.common_step(total, multiple, groups)
    kept = tuple(counts.kept_count(total, r, step) for _, r in self.levels)
    if said := counts.not_realised(
      self.rate, total, step, 'neurons', all_but_one=True
    ):
      raise errors.ConfigError(f'rate {said}')
    return kept

  def realised_rates(
    self, total: int, multiple: int = 1, groups: int = 1
  ) -> tuple[float, ...]:
    """The omission rate of each level in whole neurons, as `kept_by_rung`."""
    kept = self.kept_by_rung(total, multiple, groups)
    return tuple(1 - count / total for count in kept)
