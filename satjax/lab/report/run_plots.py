"""The pictures of some runs.

Columns are float64 [records], NaN where a record has no value.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import numpy as np

from satjax.lab.report import figures
from satjax.lab.report import runs as runs_lib

Columns = Mapping[str, np.ndarray]

_STRETCHES = 400  # of a long line, of which only extremes are drawn
_CELLS = 256  # of a heat map, from left to right
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


class _Panel(NamedTuple):
  x: str
  y: str
  title: str
  look: str  # smooth, line, stairs, dots
  unit: str  # number, share
  low: float | None  # end of the axis


def pictures(
  runs: Mapping[str, Columns],
  visits: Mapping[str, Mapping[str, np.ndarray]],
) -> list[figures.Picture]:
  """What the runs recorded; what none of them has is left out.

  Args:
    runs: columns by name of the run, in the order of their colours.
    visits: `heads` [L, N], `mlp` [L, F] and `selections` [], by name.
  """
  training = [
    _Panel(x, 'train/loss', '', 'smooth', 'number', None)
    for x in figures.ABSCISSAS
  ]
  held_out = [
    _Panel(x, f'eval/{source}/loss', source, 'dots', 'number', None)
    for source in runs_lib.sources(n for r in runs.values() for n in r)
    for x in ('seconds', 'tokens')
  ]
  speed, selections = _by_step(_SPEED), _by_step(_SELECTIONS)
  if not any(_has(run, speed[-1]) for run in runs.values()):
    selections = []  # nobody omits anything
  return [
    *_picture('Training loss', training, runs),
    *_picture('Held-out loss', held_out, runs),
    *_picture('Speed and omission', speed, runs),
    *_picture('Selections', selections, runs),
    *_time_shares(runs),
    *(_visits(name, counts) for name, counts in visits.items()),
  ]


def _by_step(columns: Mapping[str, tuple]) -> list[_Panel]:
  return [_Panel('step', name, *how) for name, how in columns.items()]


def _picture(
  title: str, panels: Sequence[_Panel], runs: Mapping[str, Columns]
) -> Iterator[figures.Picture]:
  """One picture of the panels for which there are values, or none."""
  panels = [p for p in panels if any(_has(run, p) for run in runs.values())]
  if panels:
    keys = figures.keys(runs)
    yield figures.Picture(
      title,
      _NOTES[title],
      [figures.Panel(functools.partial(_draw, p, runs, keys)) for p in panels],
      figures.lines(keys.values()),
    )


def _draw(panel, runs, keys, axes) -> None:
  for name, run in runs.items():
    if panel.x in run and panel.y in run:
      _add_line(axes, panel, run, keys[name].line)
  figures.label_axes(axes, panel.x, panel.title)
  axes.set_ylim(bottom=panel.low)
  if panel.y == 'train/loss':
    figures.frame_losses(axes)
  if panel.unit == 'share':
    figures.percent(axes)


def _has(run: Columns, panel: _Panel) -> bool:
  """Whether a run has values for a panel, and other ones than 0."""
  return panel.x in run and panel.y in run and np.nan_to_num(run[panel.y]).any()


def _add_line(axes, panel, run, style) -> None:
  known = np.isfinite(run[panel.x]) & np.isfinite(run[panel.y])
  x, y = run[panel.x][known], run[panel.y][known]
  look = {'linewidth': 1.6, **style}
  if panel.look == 'smooth':
    raw = runs_lib.thin(x, y, _STRETCHES)
    axes.plot(*raw, **{**look, 'linewidth': 0.7}, alpha=0.25, zorder=1)
    y = runs_lib.smooth(y)
  elif panel.look == 'stairs':
    look['drawstyle'] = 'steps-pre'
  elif panel.look == 'dots':
    look |= {'marker': 'o', 'markersize': 3.5}
  axes.plot(*runs_lib.thin(x, y, _STRETCHES), **look)


def _time_shares(runs: Mapping[str, Columns]) -> Iterator[figures.Picture]:
  """A bar a run, of the seconds in each activity at its last record."""
  timed, seconds = runs_lib.activities(runs)
  if timed:
    keys = figures.keys(seconds)
    draw = functools.partial(_draw_shares, timed, seconds, keys)
    yield figures.Picture(
      'Where the time went',
      'Up to the last record.',
      [figures.Panel(draw, 6.0, 0.5 + 0.36 * len(timed))],
      [key._replace(dash='', marker='s') for key in keys.values()],
    )


def _draw_shares(timed, seconds, keys, axes) -> None:
  from matplotlib import ticker

  total = np.maximum(sum(seconds.values()), 1e-9)
  left = np.zeros(len(timed))
  for name, values in seconds.items():
    share = values / total
    colour = keys[name].colour
    bars = axes.barh(range(len(timed)), share, 0.7, left, color=colour)
    texts = [f'{s:.0%}' if s >= 0.06 else '' for s in share]
    axes.bar_label(bars, texts, label_type='center', color='black')
    left += share
  labels = [f'{figures.short(r, 30)}  {t:,.0f} s' for r, t in zip(timed, total)]
  axes.set_yticks(range(len(timed)), labels)
  axes.tick_params(axis='y', length=0, gridOn=False)
  axes.set(xlim=(0, 1), ylim=(len(timed) - 0.5, -0.5))
  axes.xaxis.set_major_formatter(ticker.PercentFormatter(1))


def _visits(name: str, counts: Mapping[str, np.ndarray]) -> figures.Picture:
  total = int(counts['selections'])
  shares = {unit: counts[unit] / total for unit in _UNITS if unit in counts}
  return heat_maps(f'Visits: {name}', {'': {'selections': total, **shares}})


def heat_maps(
  title: str, visits: Mapping[str, Mapping[str, Any]]
) -> figures.Picture:
  """Shares of the selections that each neuron was in, a row a layer.

  Args:
    title: of the picture.
    visits: by name of the run: `selections`, how many there were, and for
      `heads` [L, N] and `mlp` [L, F] the share that each neuron was in.
  """
  panels = []
  notes = ['Share of the selections that each neuron was in.']
  for name, counted in visits.items():
    for unit in (unit for unit in _UNITS if unit in counted):
      share = np.asarray(counted[unit])
      width, never = share.shape[1], np.mean(share == 0)
      label = f'{name}: {_UNITS[unit]}' if name else _UNITS[unit]
      label += f' ({never:.1%} never)' if never else ''
      if unit == 'mlp' or width > _CELLS:
        share, size = runs_lib.sort_into_bins(share, _CELLS)
        notes.append(
          f'{_UNITS[unit].capitalize()} are sorted in each layer, the most'
          ' visited first'
          + (f'; a cell is the mean of {size} neighbours.' if size > 1 else '.')
        )
      draw = functools.partial(_draw_visits, label, share, width)
      height = min(max(2, 1 + 0.16 * len(share)), 8)
      panels.append(figures.Panel(draw, height=height))
  totals = {int(counted['selections']) for counted in visits.values()}
  notes.append(f'Selections: {", ".join(f"{n:,}" for n in sorted(totals))}.')
  return figures.Picture(title, ' '.join(dict.fromkeys(notes)), panels)


def _draw_visits(title, share, width, axes) -> None:
  from matplotlib import ticker

  extent = (-0.5, width - 0.5, len(share) - 0.5, -0.5)
  image = axes.imshow(share, vmin=0, vmax=1, extent=extent)
  axes.set_title(figures.short(title, 60))
  axes.set_ylabel('layer')
  axes.grid(False)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(ticker.MaxNLocator(8, integer=True))
  percent = ticker.PercentFormatter(1)
  axes.figure.colorbar(image, ax=axes, pad=0.02, format=percent)
