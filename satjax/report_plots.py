"""The plots of a report, as SVG for light and for dark pages.

Columns are float64 [records], NaN where a record has no value. matplotlib is
used without pyplot: no window, no display, no state between calls.
"""

from collections.abc import Iterator, Mapping, Sequence
import io
from typing import Any, NamedTuple

import numpy as np

from satjax import errors, report_runs

Columns = Mapping[str, np.ndarray]

_DASHES = ('-', '--', ':', '-.')  # of runs that share a colour
_INK, _GRID = '#24292f', '#d3d8de'
_DARK = {_INK: '#e6edf3', _GRID: '#3b424a'}
_WIDTH = 10.0  # inches
_STRETCHES = 400  # of a long line, of which only extremes are drawn
_CELLS = 256  # of a heat map, from left to right
_ABSCISSAS = {
  'step': 'steps',
  'tokens': 'tokens',
  'flops': 'executed FLOPs',
  'seconds': 'training time (s)',
}
# Column: title, look of the line, unit, lowest value of the axis.
_SPEED = {
  'speed/tokens_per_second': ('tokens/s', 'smooth', 'number', 0),
  'speed/mfu': ('MFU', 'smooth', 'share', 0),
  'sparsity/omission_rate': ('omission rate', 'stairs', 'share', 0),
}
_SELECTIONS = {
  'sparsity/heads_kept': ('heads kept', 'stairs', 'number', 0),
  'sparsity/overlap_heads': ('heads: overlap', 'smooth', 'share', 0),
  'sparsity/visited_heads': ('heads: visited', 'line', 'share', 0),
  'sparsity/entropy_heads': ('heads: entropy', 'line', 'share', None),
  'sparsity/channels_kept': ('channels kept', 'stairs', 'number', 0),
  'sparsity/overlap_mlp': ('channels: overlap', 'smooth', 'share', 0),
  'sparsity/visited_mlp': ('channels: visited', 'line', 'share', 0),
  'sparsity/entropy_mlp': ('channels: entropy', 'line', 'share', None),
  'sparsity/nonfinite_scores': ('not finite', 'line', 'number', 0),
}
_UNITS = {'heads': 'heads', 'mlp': 'channels'}
_NOTES = {
  'Training loss': 'Nats a token: every record, and the running mean over 5% of'
  ' them; the first steps may lie above the frame. Training time is that of'
  ' steps, refreshes and waiting for data.',
  'Held-out loss': 'Nats a token, by source.',
  'Speed and omission': 'By step; records and running means.',
  'Selections': 'By step, means over the layers. Overlap: Jaccard similarity of'
  ' successive selections. Visited: share of the neurons that have taken part'
  ' at least once. Entropy: of the importance, as a share of that of equal'
  ' importance.',
}


class Plot(NamedTuple):
  """What a picture shows, how to read it, and its SVG in both colours."""

  title: str
  note: str
  light: str
  dark: str


class _Panel(NamedTuple):
  x: str
  y: str
  title: str
  look: str  # smooth, line, stairs, dots
  unit: str  # number, share
  low: float | None  # end of the axis


def plots(
  runs: Mapping[str, Columns],
  visits: Mapping[str, Mapping[str, np.ndarray]],
) -> list[Plot]:
  """Draws what the runs recorded; what none of them has is left out.

  Args:
    runs: columns by name of the run, in the order of their colours.
    visits: `heads` [L, N], `mlp` [L, F] and `selections` [], by name.

  Raises:
    ConfigError: matplotlib is not installed.
  """
  try:
    import matplotlib
  except ImportError as error:
    raise errors.ConfigError(
      'the plots of a report need matplotlib, which is not installed; run'
      " pip install 'satjax[viz]'"
    ) from error
  training = [
    _Panel(x, 'train/loss', '', 'smooth', 'number', None) for x in _ABSCISSAS
  ]
  held_out = [
    _Panel(x, f'eval/{source}/loss', source, 'dots', 'number', None)
    for source in report_runs.sources(n for r in runs.values() for n in r)
    for x in ('seconds', 'tokens')
  ]
  speed, selections = _by_step(_SPEED), _by_step(_SELECTIONS)
  if not any(_has(run, speed[-1]) for run in runs.values()):
    selections = []  # nobody omits anything
  with matplotlib.rc_context(_settings()):
    return [
      *_draw('Training loss', training, runs, across=2),
      *_draw('Held-out loss', held_out, runs, across=2),
      *_draw('Speed and omission', speed, runs, across=3),
      *_draw('Selections', selections, runs, across=4),
      *_time_shares(runs),
      *(_heat_map(name, visits[name]) for name in visits),
    ]


def _settings() -> dict[str, Any]:
  inked = ('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color')
  lines = ('axes.edgecolor', 'grid.color')
  off = ('axes.spines.top', 'axes.spines.right', 'legend.frameon')
  return {
    **dict.fromkeys(inked, _INK),
    **dict.fromkeys(lines, _GRID),
    **dict.fromkeys((*off, 'text.parse_math'), False),
    **dict.fromkeys(('axes.facecolor', 'savefig.facecolor'), 'none'),
    **dict.fromkeys(('axes.grid', 'axes.axisbelow'), True),
    'font.family': 'DejaVu Sans',  # comes with matplotlib
    'font.size': 9,
    'image.aspect': 'auto',
    'image.interpolation': 'nearest',
    'svg.fonttype': 'path',
    'svg.hashsalt': 'satjax',  # equal plots, equal bytes
  }


def _by_step(columns: Mapping[str, tuple]) -> list[_Panel]:
  return [_Panel('step', name, *how) for name, how in columns.items()]


def _draw(
  title: str, panels: Sequence[_Panel], runs: Mapping[str, Columns], across: int
) -> Iterator[Plot]:
  """One plot of the panels for which there are values, or none."""
  from matplotlib import figure

  panels = [p for p in panels if any(_has(run, p) for run in runs.values())]
  if not panels:
    return
  across = min(across, len(panels))
  down = -(-len(panels) // across)
  height = _WIDTH / across * (0.45 if across < 3 else 0.75)
  size = (_WIDTH, down * height + 0.06 * len(runs))
  fig = figure.Figure(size, layout='constrained')
  grid = list(fig.subplots(down, across, squeeze=False).flat)
  for axes, panel in zip(grid, panels):
    for number, run in enumerate(runs.values()):
      if panel.x in run and panel.y in run:
        _add_line(axes, panel, run, _style(number))
    _finish(axes, panel)
  for axes in grid[len(panels) :]:
    axes.set_axis_off()
  _add_legend(fig, {name: _style(n) for n, name in enumerate(runs)})
  yield _plot(title, _NOTES[title], fig)


def _has(run: Columns, panel: _Panel) -> bool:
  """Whether a run has values for a panel, and other ones than 0."""
  return panel.x in run and panel.y in run and np.nan_to_num(run[panel.y]).any()


def _style(number: int) -> dict[str, str]:
  """The ten colours of matplotlib can be told from white and from black."""
  dash = _DASHES[number // 10 % len(_DASHES)]
  return {'color': f'C{number % 10}', 'linestyle': dash}


def _add_line(axes, panel, run, style) -> None:
  known = np.isfinite(run[panel.x]) & np.isfinite(run[panel.y])
  x, y = run[panel.x][known], run[panel.y][known]
  look = {'linewidth': 1.6, **style}
  if panel.look == 'smooth':
    raw = report_runs.thin(x, y, _STRETCHES)
    axes.plot(*raw, **{**look, 'linewidth': 0.7}, alpha=0.25, zorder=1)
    y = report_runs.smooth(y)
  elif panel.look == 'stairs':
    look['drawstyle'] = 'steps-pre'
  elif panel.look == 'dots':
    look |= {'marker': 'o', 'markersize': 3.5}
  axes.plot(*report_runs.thin(x, y, _STRETCHES), **look)


def _finish(axes, panel) -> None:
  from matplotlib import ticker

  axes.set_title(_short(panel.title, 60), fontsize='medium')
  axes.set_xlabel(_ABSCISSAS[panel.x])
  axes.set_ylim(bottom=panel.low)
  if panel.y == 'train/loss':
    ends = [np.percentile(line.get_ydata(), (0.5, 95)) for line in axes.lines]
    margin = 0.05 * np.ptp(ends) + 1e-6
    axes.set_ylim(np.min(ends) - margin, np.max(ends) + margin)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(ticker.MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axis.set_major_formatter(ticker.EngFormatter(sep=''))
  if panel.unit == 'share':
    axes.yaxis.set_major_formatter(lambda value, _: f'{100 * value:.4g}%')


def _add_legend(fig, styles: Mapping[str, Mapping[str, Any]]) -> None:
  from matplotlib import lines

  fig.legend(
    [lines.Line2D([], [], linewidth=2.5, **style) for style in styles.values()],
    [' ' + _short(name, 30) for name in styles],  # a first _ would hide it
    loc='outside upper left',
    ncols=4 if max(map(len, styles)) < 22 else 3,
  )


def _short(name: str, limit: int) -> str:
  return name if len(name) <= limit else f'...{name[3 - limit :]}'


def _time_shares(runs: Mapping[str, Columns]) -> Iterator[Plot]:
  """A bar a run, of the seconds in each activity at its last record."""
  from matplotlib import figure, ticker

  timed, seconds = report_runs.activities(runs)
  if not timed:
    return
  total = np.maximum(sum(seconds.values()), 1e-9)
  fig = figure.Figure((_WIDTH, 0.9 + 0.36 * len(timed)), layout='constrained')
  axes = fig.subplots()
  left = np.zeros(len(timed))
  styles = {name: _style(number) for number, name in enumerate(seconds)}
  for name, values in seconds.items():
    share = values / total
    colour = styles[name]['color']
    bars = axes.barh(range(len(timed)), share, 0.7, left, color=colour)
    texts = [f'{s:.0%}' if s >= 0.04 else '' for s in share]
    axes.bar_label(bars, texts, label_type='center', color='white')
    left += share
  labels = [f'{_short(r, 30)}  {t:,.0f} s' for r, t in zip(timed, total)]
  axes.set_yticks(range(len(timed)), labels)
  axes.tick_params(axis='y', length=0, gridOn=False)
  axes.set(xlim=(0, 1), ylim=(len(timed) - 0.5, -0.5))
  axes.xaxis.set_major_formatter(ticker.PercentFormatter(1))
  _add_legend(fig, styles)
  yield _plot('Where the time went', 'Up to the last record.', fig)


def _heat_map(name: str, visits: Mapping[str, np.ndarray]) -> Plot:
  """Shares of the selections that each neuron was in, a row a layer."""
  from matplotlib import figure, ticker

  total = int(visits['selections'])
  units = [unit for unit in _UNITS if unit in visits]
  depth = max(len(visits[unit]) for unit in units)
  size = (_WIDTH, min(max(2, 1 + 0.16 * depth), 8))
  fig = figure.Figure(size, layout='constrained')
  grid = fig.subplots(1, len(units), squeeze=False)
  notes = [f'Share of {total:,} selections in which each neuron took part.']
  for axes, unit in zip(grid[0], units):
    counts, label = visits[unit], _UNITS[unit]
    end = counts.shape[1] - 0.5
    never = np.mean(counts == 0)
    notes.append(f'{label.capitalize()} that never did: {never:.1%}.')
    if unit == 'mlp' or counts.shape[1] > _CELLS:
      counts, size = report_runs.sort_into_bins(counts, _CELLS)
      notes.append(
        f'The {label} of each layer are sorted, the most visited first'
        + (f'; a cell is the mean of {size} neighbours.' if size > 1 else '.')
      )
      label += ', sorted'
    image = axes.imshow(
      counts / total,
      vmin=0,
      vmax=1,
      extent=(-0.5, end, len(counts) - 0.5, -0.5),
    )
    axes.set(xlabel=label, ylabel='layer')
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_locator(ticker.MaxNLocator(8, integer=True))
  percent = ticker.PercentFormatter(1)
  fig.colorbar(image, ax=list(grid[0]), pad=0.01, format=percent)
  return _plot(f'Visits: {name}', ' '.join(notes), fig)


def _plot(title: str, note: str, fig: Any) -> Plot:
  stream = io.StringIO()
  fig.savefig(stream, format='svg', metadata={'Date': None})
  light = dark = stream.getvalue()
  for colour, other in _DARK.items():
    dark = dark.replace(colour, other)
  return Plot(title, note, light, dark)
