"""The pictures of a result: what an arm costs and what it reaches.

The central one has final test losses over FLOPs and over seconds: the reference
trained for several lengths as a line, every other arm as a point.
"""

from collections.abc import Iterator, Sequence
import functools
import os
import pathlib

import numpy as np

from satjax.lab.report import curve_plots, figures, label_plots, render, words
from satjax.lab.report import results as results_lib
from satjax.lab.report.results import Result

_COSTS = ('flops', 'seconds')


def pictures(result: Result) -> list[figures.Picture]:
  """All pictures of a result; what was not recorded is left out."""
  return [
    *_central(result),
    *_by_arm(result),
    *label_plots.pictures(result),
    *curve_plots.pictures(result, keys(result)),
  ]


def write_plots(
  result: Result, directory: str | os.PathLike
) -> list[pathlib.Path]:
  """Writes what arms cost and reach, and over coordinates, as PNG and SVG.

  Args:
    result: of an experiment, as in its JSON file.
    directory: made where it is not there.

  Returns:
    Paths, such as directory/NAME_loss.png; each PNG stands before its SVG.

  Raises:
    ConfigError: matplotlib is not installed.
    DataError: a key of the result is missing or no such value.
    StorageError: a file that cannot be written.
  """
  result = results_lib.check(result)
  few = [
    *_central(result),
    *_by_arm(result),
    *label_plots.pictures(result),
  ]
  return render.save(named(result, few), directory)


def named(
  result: Result, some: Sequence[figures.Picture]
) -> dict[str, figures.Picture]:
  """Pictures by names of files: the experiment's, and a word of the title."""
  title = words.title(result)
  return {
    f'{result["name"]}_{_slug(each.title)}': each._replace(
      title=f'{title}: {each.title[:1].lower()}{each.title[1:]}'
    )
    for each in some
  }


def _slug(title: str) -> str:
  """Letters, digits and single underscores."""
  letters = ''.join(c if c.isalnum() else ' ' for c in title.lower())
  return '_'.join(letters.split())


def keys(result: Result) -> dict[str, figures.Key]:
  """The looks of arms other than the reference, by name.

  Of two coordinates one is the colour, and one the marker or the dashes, where
  all arms have both and there are colours and markers enough.
  """
  names = results_lib.compared(result)
  labels = [result['arms'][name]['label'] for name in names]
  if len({tuple(label) for label in labels}) == 1 and len(labels[0]) == 2:
    pairs = [tuple(map(str, label.values())) for label in labels]
    rows, columns = (list(dict.fromkeys(values)) for values in zip(*pairs))
    enough = len(rows) <= len(figures.COLOURS)
    enough &= len(columns) <= len(figures.DASHES)
    if enough and len(set(pairs)) == len(pairs):
      return {
        name: figures.key(name, rows.index(row), columns.index(column))
        for name, (row, column) in zip(names, pairs)
      }
  return figures.keys(names)


def _central(result: Result) -> Iterator[figures.Picture]:
  looks = keys(result)
  panels = []
  for axis in _COSTS:
    line = results_lib.reference_points(result, axis)
    points = {
      name: (arm[axis], arm['loss'])
      for name, arm in result['arms'].items()
      if name in looks and arm['loss'] and arm[axis] is not None
    }
    if line or points:
      draw = functools.partial(_draw_central, axis, line, points, looks)
      panels.append(figures.Panel(draw, height=3.2))
  if panels:
    shown = [key for n, key in looks.items() if result['arms'][n]['loss']]
    reference = figures.Key(
      f'{result["reference"]}, by length', figures.INK, '-', 'o'
    )
    yield figures.Picture(
      'Loss and cost',
      f'Final test loss in nats a token; below the line is better than'
      f' {results_lib.REFERENCES[result["family"]]} of equal cost. Points are'
      ' means over the seeds, bars and the band go from the lowest seed to the'
      ' highest. Triangles at the upper edge lie above the frame.',
      panels,
      [reference, *figures.points(shown)],
    )


def _draw_central(axis, line, points, looks, axes) -> None:
  top = figures.top([loss for _, loss in [*line, *points.values()]])
  if line:
    _draw_reference(line, axes)
  axes.set_ymargin(0.08)
  for name, (cost, loss) in points.items():
    if loss['mean'] > top:
      figures.above(axes, cost, loss['mean'], looks[name].colour)
      continue
    axes.errorbar(
      cost,
      loss['mean'],
      yerr=[[loss['mean'] - loss['low']], [loss['high'] - loss['mean']]],
      **_point(looks[name]),
    )
  figures.label_axes(axes, axis, y='test loss (nats/token)')


def _draw_reference(line, axes) -> None:
  """A curve as losses are read off: linear in the logarithm of the cost."""
  costs = np.array([cost for cost, _ in line])
  x = np.unique([*np.geomspace(costs[0], costs[-1], 100), *costs])
  mean, low, high = (
    np.interp(np.log(x), np.log(costs), [loss[key] for _, loss in line])
    for key in ('mean', 'low', 'high')
  )
  axes.fill_between(x, low, high, color=figures.INK, alpha=0.15, linewidth=0)
  axes.plot(
    x,
    mean,
    'o-',
    color=figures.INK,
    markevery=np.flatnonzero(np.isin(x, costs)).tolist(),
    markersize=4,
    linewidth=1.4,
  )


def _by_arm(result: Result) -> Iterator[figures.Picture]:
  """Losses side by side, which arms of equal cost need."""
  looks, arms = keys(result), result['arms']
  reference = arms.get(result['reference'], {}).get('loss')
  if any(arms[name]['loss'] for name in looks):
    losses = {name: arms[name]['loss'] for name in looks}
    draw = functools.partial(_draw_by_arm, losses, reference, looks)
    note = (
      'Final test loss in nats a token, from the lowest seed to the highest.'
    )
    if reference:
      note += f' Dashed: {result["reference"]}, for its full length.'
    height = 0.75 + 0.23 * len(losses)
    yield figures.Picture(
      'Loss by arm', note, [figures.Panel(draw, 5.2, height)]
    )


def _draw_by_arm(losses, reference, looks, axes) -> None:
  known = [loss for loss in losses.values() if loss]
  top = figures.top([*known, *([reference] if reference else [])])
  if reference:
    axes.axvspan(
      reference['low'], reference['high'], color=figures.INK, alpha=0.12, lw=0
    )
    axes.axvline(reference['mean'], color=figures.INK, linestyle='--', lw=1.2)
  for row, (name, loss) in enumerate(losses.items()):
    if loss is None or loss['mean'] > top:
      text = f'{loss["mean"]:.3g}, right of the frame' if loss else 'failed'
      axes.annotate(
        text,
        (0.99, row),
        xycoords=axes.get_yaxis_transform(),
        ha='right',
        va='center',
        fontsize='small',
      )
    else:
      error = [[loss['mean'] - loss['low']], [loss['high'] - loss['mean']]]
      axes.errorbar(loss['mean'], row, xerr=error, **_point(looks[name]))
  figures.label_axes(axes, 'test loss (nats/token)')
  axes.set_yticks(range(len(losses)), [figures.short(n, 32) for n in losses])
  axes.set_ylim(len(losses) - 0.4, -0.6)


def _point(key: figures.Key) -> dict[str, object]:
  """What matplotlib is told of a point with error bars."""
  return {
    'color': key.colour,
    'marker': key.marker,
    'markersize': 6.5,
    'markeredgecolor': figures.INK,
    'markeredgewidth': 0.6,
    'elinewidth': 1.2,
    'zorder': 3,
  }
