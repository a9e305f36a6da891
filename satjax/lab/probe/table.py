"""Damage by metric, rate and axis, and how far estimates of it are off."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any

from satjax.config.groups import AXES, METRICS
from satjax.lab.probe.allocation import Costs
from satjax.lab.probe.damage import Prober

# What the table has of each axis.
RATES = {
  'heads': (1 / 3, 2 / 3),
  'mlp': (1 / 4, 1 / 2),
  'layers': (1 / 8, 1 / 4),
}
COMPARED = {
  axis: tuple(m for m in some if m != 'cyclic')
  for axis, some in METRICS.items()
}


@dataclasses.dataclass
class Table:
  """Losses of all layers at a rate, by axis and metric."""

  rows: list[dict[str, Any]]
  best: dict[str, str]  # metric, by axis
  calibration: dict[str, tuple[Sequence[float], Sequence[float]]]


def counts(costs, axis) -> list[int]:
  """How many units the rates of the table keep, fewer each time."""
  total = costs.units[axis]
  kept = costs.kept(axis, RATES[axis])[1:]
  if axis == 'layers' and total > 1:
    kept = kept or [total - 1]
  return kept


def table(
  prober: Prober,
  costs: Costs,
  dense: float,
  compared: Mapping[str, Sequence[str]] = COMPARED,
) -> Table:
  """Damage by axis, metric and rate, and how far estimates are off."""
  rows, best, calibration = [], {}, {}
  for some in itertools.zip_longest(*(compared[axis] for axis in AXES)):
    prober.measure({a: m for a, m in zip(AXES, some) if m})
  for axis in AXES:
    kept, total = counts(costs, axis), costs.units[axis]
    sums = {}
    for metric, count in itertools.product(compared[axis], kept):
      loss = prober.loss({axis: prober.keep(axis, metric, count)})
      rows.append(
        {
          **{'axis': axis, 'metric': metric},
          **{'left_out': total - count, 'of': total},
          **{'loss': loss, 'damage': loss - dense},
        }
      )
      sums[metric] = sums.get(metric, 0.0) + loss - dense
    if not sums:
      continue
    best[axis] = min(sums, key=sums.__getitem__)
    own = [r for r in rows if (r['axis'], r['metric']) == (axis, best[axis])]
    guessed = [_guess(prober, axis, best[axis], count) for count in kept]
    calibration[axis] = (
      [1 - count / total for count in kept],
      [max(r['damage'], 1e-3) / max(g, 1e-30) for r, g in zip(own, guessed)],
    )
  return Table(rows, best, calibration)


def _guess(prober, axis, metric, count) -> float:
  """What is estimated of a row of the table, over all layers."""
  kept = prober.keep(axis, metric, count)
  if axis == 'layers':
    return float(prober.estimate(axis)[~kept].sum())
  return float(prober.estimate(axis, kept).sum())
