"""Tables of runs that grew: their hops, and what growth gained in FLOPs."""

from collections.abc import Iterator, Sequence

import numpy as np

from satjax.lab.report import runs as runs_lib
from satjax.lab.report import speedup as curves
from satjax.lab.report import table
from satjax.lab.report.runs import Run

HOP_COLUMNS = ('hop', 'step', 'loss before', 'loss after', 'steps to recover')
_LOSSES = ('growth/loss_before', 'growth/loss_after')
_SIZES = ('model/num_layers', 'model/num_params')


def tables(runs: Sequence[Run]) -> list[table.Table]:
  """What growth did to some runs; no tables where none grew.

  'growth' has a row for every hop. 'speed-up at equal loss' has one for every
  run that grew against every run that did not: `curves.speedup_at_equal_loss`
  of their training losses and of each held-out loss that both have, at shares
  of the FLOPs of the run that did not grow, '-' where its loss was not
  reached. FLOPs are those executed, base model included.

  Args:
    runs: in the order in which to show them.
  """
  hops = {run.name: _hops(run) for run in runs}
  gains = {}
  for run in runs:
    for other in runs:
      if hops[run.name] and not hops[other.name]:
        gains |= _gains(run, other, run.columns['step'][hops[run.name][-1]])
  shares = [f'at {share:.0%} of its FLOPs' for share in curves.SHARES]
  result = [
    table.Table(
      'growth',
      HOP_COLUMNS,
      [row for run in runs for row in _hop_rows(run, hops[run.name])],
    ),
    table.Table(
      'speed-up at equal loss',
      ['runs', *shares],
      [[label, *cells] for label, cells in gains.items()],
    ),
  ]
  return [each for each in result if each.rows]


def _hops(run: Run) -> list[int]:
  """Records at which a run grew; the steps after theirs are of more layers."""
  marks = [np.isfinite(run.columns[x]) for x in _LOSSES if x in run.columns]
  if marks:
    return np.flatnonzero(np.any(marks, axis=0)).tolist()
  # Runs that tell no more than their size: the last record before it changes.
  changed = set()
  for name in _SIZES:
    values = run.columns.get(name, np.empty(0))
    known = np.flatnonzero(np.isfinite(values))
    changed |= set(known[:-1][np.diff(values[known]) != 0].tolist())
  return sorted(changed)


def _hop_rows(run: Run, hops: Sequence[int]) -> Iterator[list[str]]:
  ends = [*hops[1:], len(run.columns['step'])]
  for number, (hop, end) in enumerate(zip(hops, ends), 1):
    yield [
      f'{run.name}, hop {number}',
      f'{run.columns["step"][hop]:,.0f}',
      *(_first(run, name, slice(hop, hop + 1), '.4f') for name in _LOSSES),
      _first(run, 'growth/steps_to_recover', slice(hop, end), ',.0f'),
    ]


def _first(run: Run, column: str, where: slice, form: str) -> str:
  """The first finite value of some records; '-' if there is none."""
  values = run.columns.get(column, np.empty(0))[where]
  values = values[np.isfinite(values)]
  return format(values[0], form) if len(values) else '-'


def _gains(run: Run, other: Run, step: float) -> dict[str, list[str]]:
  """Speed-ups by loss of a run that last grew at `step`."""
  losses = {'training': 'train/loss'}
  for source in runs_lib.sources(run.columns):
    losses[f'held-out, {source}'] = f'eval/{source}/loss'
  rows = {}
  for label, name in losses.items():
    scratch, grown = _curve(other, name), _curve(run, name, after=step)
    if min(scratch.shape[1], grown.shape[1]) < 2:
      continue
    found = curves.speedup_at_equal_loss(scratch, grown)
    rows[f'{run.name} against {other.name}, {label}'] = [
      f'{x:+.1%}' if np.isfinite(x) else '-' for x in found
    ]
  return rows


def _curve(run: Run, name: str, after: float = 0) -> np.ndarray:
  """FLOPs and loss [2, records] of the steps after `after`."""
  if not {name, 'flops'} <= run.columns.keys():
    return np.empty((2, 0))
  curve = np.stack([run.columns['flops'], run.columns[name]])
  fine = np.isfinite(curve).all(axis=0) & (curve[0] > 0)
  return curve[:, fine & (run.columns['step'] > after)]
