"""Tables of runs: results, growth, settings that differ, environment."""

from collections.abc import Iterable, Mapping, Sequence
import types
from typing import Any

import numpy as np

from satjax.lab.report import growth, table
from satjax.lab.report import runs as runs_lib
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
  names = ['', *(run.name for run in runs)]
  results, *others = [
    _table(title, names, columns)
    for title, columns in {
      'results': [_results(run) for run in runs],
      'settings that differ': differing,
      'environment': [_environment(run) for run in runs],
    }.items()
  ]
  return [results, *growth.tables(runs), *(t for t in others if t.rows)]


def _table(title, names, columns) -> table.Table:
  labels = dict.fromkeys(label for column in columns for label in column)
  rows = [
    [label, *(column.get(label, '-') for column in columns)] for label in labels
  ]
  return table.Table(title, names, rows)


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
  values |= {
    'training time (s)': (run.known('seconds')[-1:], '{:,.1f}'),
    'tokens/s (median)': (_median(run, 'speed/tokens_per_second'), '{:,.0f}'),
    'executed FLOPs': (run.known('flops')[-1:], '{:.3e}'),
    'FLOPs/s (median)': (_median(run, 'speed/flops_per_second'), '{:.3e}'),
    'MFU (median)': (_median(run, 'speed/mfu'), '{:.1%}'),
    'omission rate by rung': (
      [
        rate
        for rung in np.unique(rungs[np.isfinite(rungs)])
        for rate in _median(run, 'sparsity/omission_rate', rungs == rung)
      ],
      '{:.3g}',
    ),
    'scores not finite': (
      run.known('sparsity/nonfinite_scores')[-1:],
      '{:.0f}',
    ),
  }
  for label, (found, form) in values.items():
    if len(found):
      cells[label] = ', '.join(form.format(value) for value in found)
  return cells


def _median(run: Run, column: str, where: Any = slice(None)) -> list[float]:
  """Of the finite values in some records; empty if there are none."""
  values = run.columns.get(column, np.full(len(run.columns['step']), np.nan))
  values = values[where]
  values = values[np.isfinite(values)]
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
