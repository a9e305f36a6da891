"""What leaving out costs at once, and where it costs least.

A table of losses by metric, rate and axis; estimates for each layer from one
forward and one backward pass; and the best of a few allocations of rates, each
with its true loss.
"""

from collections.abc import Mapping
import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np

from satjax import console, errors, sharding
from satjax.config import allocation
from satjax.config.groups import AXES
from satjax.data import pipeline
from satjax.lab.probe import table as tables
from satjax.lab.probe.allocation import RATES, Allocation, Costs, settings
from satjax.lab.probe.damage import PASS, Prober
from satjax.train import subjects

# How far estimates may be off: by a factor, and by how much layers differ (a
# power of their ratios), by axis. Two rounds of allocations to try.
_NEVER = 1e9
_AS_IT_IS = {axis: (1.0, 1.0) for axis in AXES}
_FIRST = tuple(
  _AS_IT_IS | {'mlp': (1.0, mlp), 'layers': (factor, layers)}
  for mlp, (factor, layers) in itertools.product(
    (1.0, 0.5, 0.25), ((_NEVER, 1.0), (1.0, 1.0), (1.0, 2.0), (0.5, 1.0))
  )
)
# Equal rates to compare with: of which axes, by which metric ('': the best).
_EQUAL = (
  (('heads', 'mlp'), 'maxip'),
  (('heads', 'mlp'), ''),
  (('mlp',), ''),
  (('layers',), ''),
)
_NEXT = ((0.7, 1.0), (1.4, 1.0), (1.0, 0.7), (1.0, 1.4))


def of_subject(
  subject: subjects.Subject,
  *,
  source: str | None = None,
  saving: float = 0.3,
  sizes: int = 4,
  channel_multiple: int = 64,
  rows: int = 4,
  seq_len: int = 128,
) -> dict[str, Any]:
  """What `satjax probe --out` writes of a model, or of a run.

  Args:
    subject: of `subjects`.
    source: of text; None: the first that it is evaluated on.
    saving: the share of a step's FLOPs that the allocation saves at least.
    sizes: how many groups of equal layers it may have.
    channel_multiple: of kept channels.
    rows: of text that units are scored on, and as many that losses are of.
    seq_len: tokens in a row.

  Raises:
    ConfigError: an option is out of range, or the saving cannot be reached.
    DataError: the source cannot be used, or has too few rows.
  """
  model = subject.stage.model
  for name, number in (
    *(('sizes', sizes), ('channel_multiple', channel_multiple)),
    *(('rows', rows), ('seq_len', seq_len)),
  ):
    if number < 1:
      raise errors.ConfigError(f'{name} {number} must be at least 1')
  costs = Costs(model, seq_len, channel_multiple)
  check(costs, saving)
  named = [name for name, _ in pipeline.weighted(subject.data.eval)]
  source = source or next(iter(named), 'stdlib:docs')
  look, test = _rows(subject, source, rows, seq_len)
  with (
    console.Progress('probe') as bar,
    jax.sharding.set_mesh(subject.mesh),
  ):
    prober = Prober(model, subject.params, look, test, bar.advance)
    bar.start(_passes(costs))
    found = probe(prober, costs, saving, sizes)
  return {
    'kind': allocation.KIND,
    'of': subject.what,
    'model': {key: getattr(model, key) for key in allocation.SHAPE},
    'text': {
      'source': source,
      'rows': rows,
      'seq_len': seq_len,
      'tokens': int(test['weights'].sum()),
    },
    **found,
  }


def _rows(subject, source, rows, seq_len):
  """Two batches: to look at, and to take losses of."""
  rows = math.lcm(rows, subject.mesh.shape['data'])
  batches = pipeline.eval_batches(
    dataclasses.replace(subject.data, seq_len=seq_len),
    source,
    batch_size=rows,
    tokenizer=subject.tokenizer,
    vocab_size=subject.stage.model.vocab_size,
    max_rows=2 * rows,
  )
  if len(batches) < 2 or not all(b['weights'].any() for b in batches):
    raise errors.DataError(
      f'{source} has at most {rows} rows of {seq_len} tokens, and a probe takes'
      f' 2 x {rows}; use fewer or shorter ones (--rows, --seq_len), or more'
      ' text'
    )
  return tuple(sharding.put_rows(subject.mesh, batch) for batch in batches)


def check(costs: Costs, saving: float) -> None:
  """Raises ConfigError where no allocation saves that much."""
  if not 0 < saving < 1:
    raise errors.ConfigError(
      f'saving {saving}; allowed: above 0 and below 1, the share of a dense'
      " step's FLOPs to save, such as 0.3"
    )
  if saving > costs.most:
    raise errors.ConfigError(
      f'saving {saving} cannot be reached: with one layer, and the fewest heads'
      f' and channels in it, a step saves {costs.most:.4g}; ask for less'
    )


def probe(prober: Prober, costs: Costs, saving: float, sizes: int) -> dict:
  """The JSON of a probe, without what says of which model and text it is.

  Args:
    prober: a model, and rows to look at.
    costs: of the same model.
    saving: the share of a step's FLOPs that the allocation saves at least.
    sizes: how many groups of equal layers it may have.
  """
  dense = prober.loss()
  if not math.isfinite(dense):
    raise errors.DataError(
      f'the loss of the whole model is {dense}: its weights overflow or are'
      ' damaged; `satjax inspect` looks at them'
    )
  table = tables.table(prober, costs, dense)
  layers = {
    metric: prober.scores('layers', metric).tolist()
    for metric in ('influence', 'sensitivity')
  }
  search = _Search(prober, costs, table, saving, sizes)
  found, loss = search.best()
  equal = _equal(prober, costs, table.best, saving, dense)
  return {
    'dense_loss': dense,
    'damage': table.rows,
    'best': table.best,
    'by_layer': layers | search.by_layer(),
    'wanted_saving': saving,
    'equal': equal,
    'allocation': {
      'saving': costs.saving(found.kept),
      'loss': loss,
      'damage': loss - dense,
      'tried': search.tried,
      'groups': [
        {
          'layers': [start, stop],
          'heads': layer.heads,
          'channels': layer.channels,
          'left_out': gone,
        }
        for start, stop, layer, gone in found.groups
      ],
    },
    'sparsity': settings(costs, found, table.best),
  }


def _passes(costs) -> int:
  """About how many forward passes a probe takes: each counts, known or not."""
  equal = len(_EQUAL) + sum('layers' not in axes for axes, _ in _EQUAL)
  table = sum(
    len(tables.COMPARED[axis]) * len(tables.counts(costs, axis))
    for axis in AXES
  )
  measures = max(map(len, tables.COMPARED.values()))
  search = len(_FIRST) + len(AXES) * len(_NEXT)
  return 1 + measures + table + PASS + search + equal


class _Search:
  """Allocations that estimates suggest, and their true losses."""

  def __init__(
    self, prober, costs, table: tables.Table, saving: float, sizes: int
  ):
    self._prober, self._costs, self._best = prober, costs, table.best
    self._saving, self._sizes = saving, sizes
    self.tried = 0
    nothing_L = np.zeros(prober.model.num_layers)
    self._rows = {}  # [L] by how many take part, by axis
    for axis in ('heads', 'mlp'):
      whole, *fewer = costs.kept(axis, RATES)
      self._rows[axis] = {n: self._nats(table, axis, n) for n in fewer[::-1]}
      self._rows[axis][whole] = nothing_L
    self._omit_L = np.full(prober.model.num_layers, _NEVER)
    if 'layers' in table.best:
      _, factors = table.calibration['layers']
      self._omit_L = prober.estimate('layers') * max(factors)

  def _nats(self, table, axis, count):
    """The damage to each layer: as estimated, times how far that is off."""
    kept = self._prober.keep(axis, self._best[axis], count)
    rates, factors = table.calibration[axis]
    rate = 1 - count / self._costs.units[axis]
    factor = np.interp(rate, rates, factors)
    return self._prober.estimate(axis, kept) * factor

  def by_layer(self) -> dict[str, list[float]]:
    """The damage that is estimated, where about half is left out, or all."""
    found = {}
    for axis, by_count in self._rows.items():
      half = self._costs.units[axis] / 2
      cut = sorted(by_count)[:-1]
      if cut:
        count = min(cut, key=lambda count: (abs(count - half), count))
        found[axis] = by_count[count].tolist()
    if self._omit_L.max() < _NEVER:
      found['layers'] = self._omit_L.tolist()
    return found

  def _allocate(self, off: Mapping[str, tuple[float, float]]) -> Allocation:
    """The cheapest one, if estimates are off so far."""
    rows = {
      (axis, count): _corrected(x_L, *off[axis])
      for axis, by_count in self._rows.items()
      for count, x_L in by_count.items()
    }
    options = self._costs.options
    each = [rows['heads', x.heads] + rows['mlp', x.channels] for x in options]
    omit_L = _corrected(self._omit_L, *off['layers'])
    limits = self._saving, self._sizes
    return self._costs.cheapest(np.stack(each, axis=1), omit_L, *limits)

  def _loss(self, found: Allocation) -> float:
    kept = {'layers': ~np.array(found.left_out)}
    for axis in ('heads', 'mlp'):
      each = found.counts(axis)
      if min(each) < self._costs.units[axis]:
        kept[axis] = self._prober.keep(axis, self._best[axis], each)
    return self._prober.loss(kept)

  def best(self) -> tuple[Allocation, float]:
    """Of equal rates and others, the lowest true loss.

    The others: if estimates are off as `_FIRST` has it; then near the best.
    """
    of_rows = [axes for axes, _ in _EQUAL if 'layers' not in axes]
    equal = [self._costs.equal(self._saving, axes) for axes in of_rows]
    results = {found: self._loss(found) for found in equal if found}

    def attempt(off):
      found = self._allocate(off)
      results[found] = self._loss(found)
      return results[found]

    losses = [(attempt(off), n, off) for n, off in enumerate(_FIRST)]
    _, _, found = min(losses)
    for axis, (factor, power) in itertools.product(AXES, _NEXT):
      moved = (found[axis][0] * factor, found[axis][1] * power)
      attempt(found | {axis: moved})
    self.tried = len(results)
    return min(results.items(), key=lambda pair: pair[1])


def _corrected(x_L: np.ndarray, factor: float, power: float) -> np.ndarray:
  """Estimates that are off by a factor, and whose ratios by a power."""
  mean = max(x_L.mean(), 1e-30)
  return factor * mean * (x_L / mean) ** power


def _equal(prober, costs, best, saving, dense) -> list[dict[str, Any]]:
  """What equal rates on all layers cost that save as much, if any do."""
  rows = []
  for axes, metric in _EQUAL:
    if not {*axes} <= best.keys():
      continue
    metrics = dict.fromkeys(axes, metric) if metric else best
    metrics = {axis: metrics[axis] for axis in axes}
    if not (found := costs.equal(saving, axes)):
      rows.append({'left_out': dict.fromkeys(axes), 'metrics': metrics})
      continue
    counts = {
      a: len(found.kept) if a == 'layers' else found.counts(a)[0] for a in axes
    }
    kept = {a: prober.keep(a, metrics[a], counts[a]) for a in axes}
    loss = prober.loss(kept)
    rows.append(
      {
        'left_out': {a: costs.units[a] - counts[a] for a in axes},
        'metrics': metrics,
        'saving': costs.saving(found.kept),
        'loss': loss,
        'damage': loss - dense,
      }
    )
  return rows
