"""Pictures along runs: losses, speed, ladders, selections, visits of neurons.

Columns are float64 [records], NaN where a record has no value.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import NamedTuple

import numpy as np

from satjax.lab.report import figures
from satjax.lab.report import runs as runs_lib
from satjax.lab.report.runs import Run

_CELLS = 256  # of a heat map, from left to right
_UNITS = {'heads': 'heads', 'mlp': 'channels', 'layers': 'layers'}


class _Panel(NamedTuple):
  y: str
  title: str = ''
  look: str = 'smooth'  # smooth, line, stairs, dots
  unit: str = 'number'  # number, share
  low: float | None = None  # end of the axis
  x: str = 'step'


_SPEED = (
  _Panel('speed/tokens_per_second', 'tokens/s', low=0),
  _Panel('speed/mfu', 'MFU', unit='share', low=0),
  _Panel('sparsity/omission_rate', 'omission rate', 'stairs', 'share', 0),
)
_SELECTIONS = (
  _Panel('sparsity/heads_kept', 'heads kept', 'stairs', low=0),
  _Panel('sparsity/overlap_heads', 'heads: overlap', unit='share', low=0),
  _Panel('sparsity/visited_heads', 'heads: visited', 'line', 'share', 0),
  _Panel('sparsity/entropy_heads', 'heads: entropy', 'line', 'share'),
  _Panel('sparsity/channels_kept', 'channels kept', 'stairs', low=0),
  _Panel('sparsity/overlap_mlp', 'channels: overlap', unit='share', low=0),
  _Panel('sparsity/visited_mlp', 'channels: visited', 'line', 'share', 0),
  _Panel('sparsity/entropy_mlp', 'channels: entropy', 'line', 'share'),
  _Panel('sparsity/layers_kept', 'layers kept', 'stairs', low=0),
  _Panel('sparsity/overlap_layers', 'layers: overlap', unit='share', low=0),
  _Panel('sparsity/visited_layers', 'layers: visited', 'line', 'share', 0),
  _Panel('sparsity/damage', 'damage, nats', 'line'),
  _Panel('sparsity/nonfinite_scores', 'not finite', 'line', low=0),
)


def of_runs(runs: Sequence[Run]) -> Iterator[figures.Picture]:
  """What the runs recorded; what none of them has is left out."""
  yield from _picture(
    'Training loss',
    'Nats a token: every record, and the running mean over 5% of them; the'
    ' first steps may lie above the frame. Training time is that of steps,'
    ' refreshes and waiting for data.',
    [_Panel('train/loss', x=x) for x in figures.ABSCISSAS],
    runs,
  )
  yield from _picture(
    'Held-out loss',
    'Nats a token, by source.',
    [
      _Panel(f'eval/{source}/loss', source, 'dots', x=x)
      for source in runs_lib.sources(n for run in runs for n in run.columns)
      for x in ('seconds', 'tokens')
    ],
    runs,
  )
  note = 'By step; records and running means.'
  yield from _picture('Speed and omission', note, _SPEED, runs)
  if any(run.known('sparsity/omission_rate').any() for run in runs):
    yield from _picture(
      'Selections',
      'By step, means over the layers. Overlap: Jaccard similarity of'
      ' successive selections. Visited: share of the neurons that have taken'
      ' part at least once. Entropy: of the importance, as a share of that of'
      ' equal importance. Damage: what leaving out costs at once, on the rows'
      ' of the probe.',
      _SELECTIONS,
      runs,
    )
  yield from _time_shares(runs)
  for run in (run for run in runs if run.visits):
    yield _heat_maps(run)


def _picture(
  title: str, note: str, panels: Sequence[_Panel], runs: Sequence[Run]
) -> Iterator[figures.Picture]:
  """One picture of the panels for which there are values, or none."""
  panels = [
    p
    for p in panels
    if any(p.x in run.columns and run.known(p.y).any() for run in runs)
  ]
  if panels:
    keys = figures.keys(run.name for run in runs)
    draws = (functools.partial(_draw, p, runs, keys) for p in panels)
    yield figures.Picture(
      title, note, list(map(figures.Panel, draws)), figures.lines(keys.values())
    )


def _draw(panel, runs, keys, axes) -> None:
  for run in runs:
    if {panel.x, panel.y} <= run.columns.keys():
      x, y = run.columns[panel.x], run.columns[panel.y]
      known = np.isfinite(x) & np.isfinite(y)
      _draw_line(axes, panel.look, x[known], y[known], keys[run.name].line)
  figures.label_axes(axes, panel.x, panel.title)
  axes.set_ylim(bottom=panel.low)
  if panel.y == 'train/loss':
    figures.frame_losses(axes)
  if panel.unit == 'share':
    figures.percent(axes)


def _draw_line(axes, look, x, y, style) -> None:
  style = {'linewidth': 1.6, **style}
  if look == 'smooth':
    faint = {'linewidth': 0.7, 'alpha': 0.25, 'zorder': 1}
    axes.plot(x, y, **style | faint)
    y = smooth(y)
  elif look == 'stairs':
    style['drawstyle'] = 'steps-pre'
  elif look == 'dots':
    style |= {'marker': 'o', 'markersize': 3.5}
  axes.plot(x, y, **style)


def _time_shares(runs: Sequence[Run]) -> Iterator[figures.Picture]:
  """A bar a run, of the seconds in each activity at its last record."""
  names = dict.fromkeys(
    name for run in runs for name in run.columns if name.startswith('time/')
  )
  timed = [run for run in runs if run.columns.keys() & names]
  keys = figures.keys(name.removeprefix('time/') for name in names)

  def draw(axes):
    from matplotlib import ticker

    nothing = np.zeros(1)
    seconds = np.array(
      [[run.columns.get(n, nothing)[-1] for run in timed] for n in names]
    )
    total = np.maximum(seconds.sum(axis=0), 1e-9)
    left = np.zeros(len(timed))
    for key, share in zip(keys.values(), seconds / total):
      bars = axes.barh(range(len(timed)), share, 0.7, left, color=key.colour)
      texts = [f'{s:.0%}' if s >= 0.06 else '' for s in share]
      axes.bar_label(bars, texts, label_type='center', color='black')
      left += share
    labels = [
      f'{figures.short(r.name, 30)}  {t:,.0f} s' for r, t in zip(timed, total)
    ]
    axes.set_yticks(range(len(timed)), labels)
    axes.tick_params(axis='y', length=0, gridOn=False)
    axes.set(xlim=(0, 1), ylim=(len(timed) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(ticker.PercentFormatter(1))

  if timed:
    yield figures.Picture(
      'Where the time went',
      'Up to the last record.',
      [figures.Panel(draw, 6.0, 0.5 + 0.36 * len(timed))],
      [key._replace(dash='', marker='s') for key in keys.values()],
    )


def _heat_maps(run: Run) -> figures.Picture:
  """Shares of the selections that each neuron was in, a row a layer."""
  panels, total = [], int(run.visits['selections'])
  note = f'Share of the {total:,} selections that each neuron was in.'
  for unit in (unit for unit in _UNITS if unit in run.visits):
    share = run.visits[unit] / total
    share = share.reshape(len(share), -1)  # layers have one number each
    width, never = share.shape[1], np.mean(share == 0)
    label = _UNITS[unit] + (f' ({never:.1%} never)' if never else '')
    if unit == 'mlp' or width > _CELLS:
      share, size = sort_into_bins(share, _CELLS)
      note += (
        f' {_UNITS[unit].capitalize()} are sorted in each layer, the most'
        ' visited first'
        + (f'; a cell is the mean of {size} neighbours.' if size > 1 else '.')
      )
    draw = functools.partial(_draw_visits, label, share, width)
    height = min(max(2, 1 + 0.16 * len(share)), 8)
    panels.append(figures.Panel(draw, height=height))
  return figures.Picture(f'Visits: {run.name}', note, panels)


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


def smooth(y: np.ndarray) -> np.ndarray:
  """Running mean over 5% of the values, at least 5; the first from fewer."""
  number = np.arange(len(y))
  reach = np.minimum(max(len(y) // 40, 2), number)
  low, high = number - reach, np.minimum(number + reach + 1, len(y))
  total = np.concatenate([[0], np.cumsum(y)])
  return (total[high] - total[low]) / (high - low)


def sort_into_bins(values: np.ndarray, limit: int) -> tuple[np.ndarray, int]:
  """Sorts each row [L, F], the most first, and averages neighbours.

  Returns:
    [L, at most `limit`], and how many values are averaged; the last of a row
    has the rest.
  """
  ordered = -np.sort(-values.astype(np.float64), axis=1)
  size = -(-ordered.shape[1] // limit)
  starts = np.arange(0, ordered.shape[1], size)
  sizes = np.diff([*starts, ordered.shape[1]])
  return np.add.reduceat(ordered, starts, axis=1) / sizes, size
