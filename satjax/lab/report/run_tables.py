"""Tables of runs: results, growth, settings that differ, environment."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import types
from typing import Any

import numpy as np

from satjax.lab.report import runs as runs_lib
from satjax.lab.report import speedup, table
from satjax.lab.report.runs import Run


def tables(runs: Sequence[Run]) -> list[table.Table]:
  """A row a quantity, a column a run; growth has its own columns."""
  settings = [dict(_flat(run.config)) for run in runs]
  differing = [
    {
      name: str(value)
      for name, value in own.items()
      if any(name not in other or other[name] != value for other in settings)
    }
    for own in settings
  ]
  found = [
    _table('results', runs, list(map(_results, runs))),
    growth({run.name: run.hops for run in runs}),
    _sooner(runs),
    _table('where the time went', runs, list(map(_times, runs))),
    _table('settings that differ', runs, differing),
    _table('environment', runs, list(map(_environment, runs))),
  ]
  return [each for each in found if each.rows]


def _table(
  title: str, runs: Sequence[Run], columns: Sequence[Mapping[str, str]]
) -> table.Table:
  labels = dict.fromkeys(label for column in columns for label in column)
  rows = [[label, *(c.get(label, '-') for c in columns)] for label in labels]
  return table.Table(title, ['', *(run.name for run in runs)], rows)


def _results(run: Run) -> dict[str, str]:
  step = run.columns['step'][-1]
  asked = dict(_flat(run.config)).get('train.num_steps', step)
  cells = {'steps': f'{step:,.0f}' + (f' of {asked:,}' if step < asked else '')}
  layers = run.known('model/num_layers')[-1:]
  values = {
    'tokens': (run.known('tokens')[-1:], '{:,.0f}'),
    'layers': (layers, '{:.0f}'),
    'parameters': (_num_params(run, layers), '{:,.0f}'),
  }
  for source in runs_lib.sources(run.columns):
    last = run.known(f'eval/{source}/loss')[-1:]
    values[f'held-out loss, {source} (nats/token)'] = (last, '{:.4f}')
  rungs = run.columns.get('sparsity/rung', np.empty(0))
  rates = (
    _median(run, 'sparsity/omission_rate', rungs == rung)
    for rung in np.unique(rungs[np.isfinite(rungs)])
  )
  bad = run.known('sparsity/nonfinite_scores')[-1:]
  values |= {
    'training time (s)': (run.known('seconds')[-1:], '{:,.1f}'),
    'tokens/s (median)': (_median(run, 'speed/tokens_per_second'), '{:,.0f}'),
    'executed FLOPs': (run.known('flops')[-1:], '{:.3e}'),
    'FLOPs/s (median)': (_median(run, 'speed/flops_per_second'), '{:.3e}'),
    'MFU (median)': (_median(run, 'speed/mfu'), '{:.1%}'),
    'omission rate by rung': (sum(rates, []), '{:.3g}'),
    'scores not finite': (bad, '{:.0f}'),
  }
  return cells | {
    label: ', '.join(map(form.format, found))
    for label, (found, form) in values.items()
    if len(found)
  }


def _median(run: Run, column: str, where: Any = slice(None)) -> list[float]:
  values = run.known(column, where)
  return [np.median(values)] if len(values) else []


def _num_params(run: Run, layers: Sequence[float]) -> list[float]:
  """Parameters of the model as it is last; empty if not known."""
  from satjax import flops  # brings jax along, which other pages do without

  grown = run.known('model/num_params')[-1:]
  if len(grown):
    return grown
  try:
    model = types.SimpleNamespace(**run.config['model'])
    if len(layers):
      model.num_layers = int(layers[0])
    return [flops.num_params(model)]
  except (AttributeError, KeyError, TypeError):
    return []


def _times(run: Run) -> dict[str, str]:
  """Seconds of each activity up to the last record, and their shares."""
  times = {n: x[-1] for n, x in run.columns.items() if n.startswith('time/')}
  total = sum(times.values()) or 1.0
  return {
    name.removeprefix('time/'): f'{seconds:,.1f} s ({seconds / total:.0%})'
    for name, seconds in times.items()
  }


def _environment(run: Run) -> dict[str, str]:
  cells = dict(_flat(run.environment))
  first = ['commit', 'devices', 'platform', 'python']
  names = [name for name in first if name in cells]
  names += [name for name in cells if name.startswith('packages.')]
  return {name.removeprefix('packages.'): str(cells[name]) for name in names}


def _flat(values: Mapping[str, Any], prefix: str = '') -> Iterable[tuple]:
  """Leaves by dotted name, such as `train.num_steps`."""
  for name, value in values.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def growth(hops: Mapping[str, Sequence[Any]], whose: str = '') -> table.Table:
  """A row for every hop of `runs.hops`, by the name of what grew."""

  def cell(value, form, otherwise='-'):
    return otherwise if value is None else format(value, form)

  rows = [
    [
      f'{name}, hop {order}',
      f'{hop["step"]:,.0f}',
      cell(hop['loss_before'], '.4f'),
      cell(hop['loss_after'], '.4f'),
      cell(hop['steps_to_recover'], ',.0f', 'not yet'),
    ]
    for name, of_one in hops.items()
    for order, hop in enumerate(of_one, 1)
  ]
  columns = ('hop', 'step', 'loss before', 'loss after', 'steps to recover')
  note = (
    'Loss on the same rows before and after, and the steps until it is'
    f' back{whose}.'
  )
  return table.Table('growth', columns, rows, note)


def _sooner(runs: Sequence[Run]) -> table.Table:
  """A row for every run that grew against every run that did not.

  `speedup.speedup_at_equal_loss` of their training losses and of each held-out
  loss that both have, at shares of the FLOPs of the run that did not grow, '-'
  where its loss was not reached. FLOPs are those executed, base model included.
  """
  grown = [run for run in runs if run.hops]
  others = [run for run in runs if not run.hops]
  gains = [row for a in grown for b in others for row in _gains(a, b)]
  shares = [f'at {share:.0%} of its FLOPs' for share in speedup.SHARES]
  return table.Table('speed-up at equal loss', ['runs', *shares], gains)


def _gains(run: Run, other: Run) -> Iterator[list[str]]:
  """Speed-ups of a run that grew, by loss."""
  last = run.hops[-1]['step']
  losses = {'training': 'train/loss'}
  for source in runs_lib.sources(run.columns):
    losses[f'held-out, {source}'] = f'eval/{source}/loss'
  for label, name in losses.items():
    scratch, grown = _curve(other, name), _curve(run, name, after=last)
    if min(scratch.shape[1], grown.shape[1]) > 1:
      found = speedup.speedup_at_equal_loss(scratch, grown)
      yield [
        f'{run.name} against {other.name}, {label}',
        # Printed as in the paper, less 1.
        *(f'{x - 1:+.1%}' if np.isfinite(x) else '-' for x in found),
      ]


def _curve(run: Run, name: str, after: float = 0) -> np.ndarray:
  """FLOPs and loss [2, records] of the steps after `after`."""
  if not {name, 'flops'} <= run.columns.keys():
    return np.empty((2, 0))
  curve = np.stack([run.columns['flops'], run.columns[name]])
  fine = np.isfinite(curve).all(axis=0) & (curve[0] > 0)
  return curve[:, fine & (run.columns['step'] > after)]
