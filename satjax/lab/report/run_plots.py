"""Pictures along runs: losses, speed, ladders, selections, visits of neurons.

Columns are float64 [records], NaN where a record has no value.
"""

from collections.abc import Callable, Iterator, Sequence
import functools

import numpy as np

from satjax.lab.report import figures
from satjax.lab.report import runs as runs_lib
from satjax.lab.report.runs import Run

_UNITS = {'heads': 'heads', 'mlp': 'channels', 'layers': 'layers'}


def of_runs(runs: Sequence[Run]) -> Iterator[figures.Picture]:
  """What the runs recorded; what none of them has is left out."""
  names = list(dict.fromkeys(name for run in runs for name in run.columns))
  held_out = [f'eval/{source}/loss' for source in runs_lib.sources(names)]
  yield from _picture(
    'Training loss',
    'Nats a token: every record, and the running mean over 5% of them; the'
    ' first steps may lie above the frame. Training time is that of steps,'
    ' refreshes and waiting for data.',
    [(x, 'train/loss') for x in figures.ABSCISSAS],
    _draw_smooth,
    runs,
  )
  yield from _picture(
    'Held-out loss',
    'Nats a token, by source.',
    [(x, name) for name in held_out for x in ('seconds', 'tokens')],
    _draw_dots,
    runs,
  )
  yield from _picture(
    'Speed',
    'By step; records and running means.',
    [('step', name) for name in names if name.startswith('speed/')],
    _draw_smooth,
    runs,
  )
  if any(run.known('sparsity/omission_rate').any() for run in runs):
    yield from _picture(
      'Omission and selections',
      'By step, means over the layers. Overlap: Jaccard similarity of'
      ' successive selections. Visited: share of the neurons that have taken'
      ' part at least once. Entropy: of the importance, as a share of that of'
      ' equal importance. Damage: what leaving out costs at once, in nats, on'
      ' the rows of the probe.',
      [('step', name) for name in names if name.startswith('sparsity/')],
      _draw_stairs,
      runs,
    )
  for run in (run for run in runs if run.visits):
    yield _heat_maps(run)


def _picture(
  title: str,
  note: str,
  panels: Sequence[tuple[str, str]],
  draw_line: Callable[..., None],
  runs: Sequence[Run],
) -> Iterator[figures.Picture]:
  """One picture of the panels, columns x and y, that have values, or none."""
  keys = figures.keys(run.name for run in runs)
  shown = [
    figures.Panel(functools.partial(_draw, x, y, draw_line, runs, keys))
    for x, y in panels
    if any(x in run.columns and run.known(y).any() for run in runs)
  ]
  if shown:
    legend = [key._replace(marker='') for key in keys.values()]
    yield figures.Picture(title, note, shown, legend)


def _draw(x, y, draw_line, runs, keys, axes) -> None:
  for run in (run for run in runs if {x, y} <= run.columns.keys()):
    points = np.stack([run.columns[x], run.columns[y]])
    points = points[:, np.isfinite(points).all(axis=0)]
    draw_line(axes, *points, linewidth=1.6, **keys[run.name].line)
  figures.label_axes(axes, x, y.partition('/')[2])
  if y == 'train/loss':
    figures.frame_losses(axes)
  elif not y.endswith('/loss'):
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.5g}')


def _draw_smooth(axes, x, y, **look) -> None:
  faint = {'linewidth': 0.7, 'alpha': 0.25, 'zorder': 1}
  axes.plot(x, y, **look | faint)
  axes.plot(x, smooth(y), **look)


def _draw_stairs(axes, x, y, **look) -> None:
  axes.plot(x, y, **look, drawstyle='steps-pre')


def _draw_dots(axes, x, y, **look) -> None:
  axes.plot(x, y, **look, marker='o', markersize=3.5)


def _heat_maps(run: Run) -> figures.Picture:
  """Shares of the selections that each neuron was in, a row a layer."""
  panels, total = [], int(run.visits['selections'])
  for unit in (unit for unit in _UNITS if unit in run.visits):
    share = run.visits[unit] / total
    share = share.reshape(len(share), -1)  # layers have one number each
    never = np.mean(share == 0)
    label = _UNITS[unit] + (f' ({never:.1%} never)' if never else '')
    if unit == 'mlp':
      share = -np.sort(-share, axis=1)
    draw = functools.partial(_draw_visits, label, share)
    height = min(max(2, 1 + 0.16 * len(share)), 8)
    panels.append(figures.Panel(draw, height=height))
  note = (
    f'Share of the {total:,} selections that each neuron was in. Channels are'
    ' sorted in each layer, the most visited first.'
  )
  return figures.Picture(f'Visits: {run.name}', note, panels)


def _draw_visits(title, share, axes) -> None:
  from matplotlib import ticker

  # Of more neurons than there is room for, neighbours are averaged.
  image = axes.imshow(share, vmin=0, vmax=1, interpolation='antialiased')
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
