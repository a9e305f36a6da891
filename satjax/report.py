"""Runs side by side: tables for the terminal, and one HTML file with plots."""

import base64
from collections.abc import Iterable, Mapping, Sequence
import html
import os
import pathlib
import string
import types
from typing import Any

import numpy as np

from satjax import errors, report_growth, report_plots, report_runs
from satjax.report_runs import Run

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>satjax: $runs</title>
<style>
:root { color-scheme: light dark; --line: #d3d8de; --faint: #59636e; }
body {
  font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem;
  padding: 0 1rem; color: #24292f; background: #fff;
}
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem; border-bottom: 1px solid var(--line); }
td { text-align: right; } th { text-align: left; font-weight: normal; }
thead th { font-weight: 600; text-align: right; }
p { color: var(--faint); margin: .25rem 0 .75rem; }
img { width: 100%; height: auto; }
section:has(picture), tr { break-inside: avoid; }
@media screen and (prefers-color-scheme: dark) {
  :root { --line: #3b424a; --faint: #9aa4af; }
  body { color: #e6edf3; background: #0f1419; }
}
@media print {
  body { font-size: 9pt; margin: 0; max-width: none; padding: 0; }
  .wide { overflow: visible; }
  td, th { padding: .1rem .3rem; font-size: 8pt; }
}
</style>
<h1>satjax runs</h1>
$tables$plots</html>
"""


def report(
  workdirs: Sequence[str | os.PathLike], out: str | os.PathLike
) -> None:
  """Writes tables and plots of some runs as one self-contained HTML file.

  Equal inputs give equal bytes.

  Args:
    workdirs: folders of runs, in the order in which to show them.
    out: the file to write; it is replaced as a whole.

  Raises:
    ConfigError: a folder that is no workdir, or matplotlib is not installed.
    DataError: a file of a workdir that is empty or broken.
    StorageError: a file that can not be read or written.
  """
  runs = report_runs.read(workdirs)
  plots = report_plots.plots(
    {run.name: run.columns for run in runs},
    {run.name: run.visits for run in runs if run.visits},
  )
  page = string.Template(_PAGE).substitute(
    runs=html.escape(', '.join(run.name for run in runs)),
    tables=''.join(
      _html_table(title, rows) for title, rows in _tables(runs).items()
    ),
    plots=''.join(map(_html_plot, plots)),
  )
  path = pathlib.Path(out)
  temporary = path.with_name(f'{path.name}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(page, encoding='utf-8')
    os.replace(temporary, path)
  except OSError as error:
    raise errors.StorageError(
      f'can not write {path}: {error.strerror}; choose another file'
    ) from error


def tables(workdirs: Sequence[str | os.PathLike]) -> str:
  """The tables of the report as plain text: a row a quantity, a column a run.

  Raises as `report`, but needs neither matplotlib nor a place to write.
  """
  lines = []
  for title, rows in _tables(report_runs.read(workdirs)).items():
    grid = [[label, *cells] for label, cells in rows.items()]
    grid[0][0] = title
    first, *widths = (max(map(len, column)) for column in zip(*grid))
    for label, *cells in grid:
      right = [cell.rjust(width) for cell, width in zip(cells, widths)]
      lines.append('  '.join([label.ljust(first), *right]))
    lines.append('')
  return '\n'.join(lines)


def _tables(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
  """By title and label, the cells of the runs; the first row has the names."""
  settings = [dict(_flat(run.config)) for run in runs]
  differing = [
    {
      name: str(value)
      for name, value in own.items()
      if any(name not in other or other[name] != value for other in settings)
    }
    for own in settings
  ]
  result = {}
  for title, cells in {
    'results': [_results(run) for run in runs],
    'settings that differ': differing,
    'environment': [_environment(run) for run in runs],
  }.items():
    labels = dict.fromkeys(label for column in cells for label in column)
    if labels:
      result[title] = {'run': [run.name for run in runs]} | {
        label: [column.get(label, '-') for column in cells] for label in labels
      }
  first = {'results': result['results']}
  return first | report_growth.tables(runs) | result


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
  for source in report_runs.sources(run.columns):
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


def _html_table(title: str, rows: Mapping[str, Sequence[str]]) -> str:
  (_, names), *rest = rows.items()
  head = ''.join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
  body = ''.join(
    f'<tr><th scope="row">{html.escape(label)}</th>'
    + ''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)
    + '</tr>\n'
    for label, cells in rest
  )
  return (
    f'<section><h2>{html.escape(title.capitalize())}</h2><div class="wide">'
    f'<table>\n<thead><tr><td></td>{head}</tr></thead>\n{body}</table></div>'
    '</section>\n'
  )


def _html_plot(plot: report_plots.Plot) -> str:
  light, dark = (
    'data:image/svg+xml;base64,' + base64.b64encode(svg.encode()).decode()
    for svg in (plot.light, plot.dark)
  )
  title, note = html.escape(plot.title), html.escape(plot.note)
  # Paper is light, whatever the screen prefers.
  return (
    f'<section><h2>{title}</h2><p>{note}</p><picture><source media="screen and'
    f' (prefers-color-scheme: dark)" srcset="{dark}"><img src="{light}"'
    f' alt="{title}"></picture></section>\n'
  )
