"""The pictures of a result: what an arm costs and what it reaches.

The central one has final test losses over FLOPs and over seconds: the reference
trained for several lengths as a line, every other arm as a point.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping
import functools
import os
import pathlib
import re
from typing import Any

import numpy as np

from satjax.config import schema
from satjax.lab.report import figures, result_tables
from satjax.lab.report import results as results_lib
from satjax.lab.report.results import Result

_COSTS = ('flops', 'seconds')
_LOG_FROM = 20  # ratio of ends from which a coordinate has a logarithmic axis


def pictures(result: Result) -> list[figures.Picture]:
  """Pictures of a result, without what has no record."""
  looks = keys(result)
  central, by_arm = _central(result, looks), _by_arm(result, looks)
  return [*central, *by_arm, *_by_label(result)]


def write_plots(
  result: Result, directory: str | os.PathLike
) -> list[pathlib.Path]:
  """Writes what arms cost and reach, and over coordinates, as PNG and SVG.

  Returns paths, such as directory/NAME_loss.png; each PNG before its SVG.
  """
  title, named = result_tables.title(result), {}
  for each in pictures(result):
    slug = re.sub(r'[\W_]+', '_', each.title.lower()).strip('_')
    named[f'{result["name"]}_{slug}'] = each._replace(
      title=f'{title}: {each.title[:1].lower()}{each.title[1:]}'
    )
  return figures.save(named, directory)


def keys(result: Result) -> dict[str, figures.Key]:
  """The looks of arms other than the reference; lengths of one share theirs."""
  names = results_lib.compared(result)
  by_length = results_lib.by_length(result['arms']).items()
  groups = {name: group for group, of in by_length for name in of}
  looks = figures.keys(dict.fromkeys(groups.get(n, n) for n in names))
  return {name: looks[groups.get(name, name)] for name in names}


def _reference(result: Result) -> Mapping[str, float] | None:
  return result['arms'][result['reference']]['loss']


def _note(result: Result) -> str:
  """How to read losses that stand beside the reference's."""
  note = 'Final test loss in nats a token, from the lowest seed to the highest.'
  if _reference(result):
    note += f' Dashed: {result["reference"]}, for its full length.'
  return note


def _central(
  result: Result, looks: Mapping[str, figures.Key]
) -> Iterator[figures.Picture]:
  panels = []
  for axis in _COSTS:
    lengths = (result['arms'][name] for name in result['frontier'])
    known = (a for a in lengths if a['loss'] and (a[axis] or 0) > 0)
    line = sorted(((a[axis], a['loss']) for a in known), key=lambda x: x[0])
    points = {
      name: (arm[axis], arm['loss'])
      for name, arm in result['arms'].items()
      if name in looks and arm['loss'] and arm[axis] is not None
    }
    if line or points:
      draw = functools.partial(_draw_central, axis, line, points, looks)
      panels.append(figures.Panel(draw, height=3.2))
  if panels:
    label = f'{result["reference"]}, by length'
    shown = [key for n, key in looks.items() if result['arms'][n]['loss']]
    once = collections.Counter(shown)
    shown = [k if n > 1 else k._replace(dash='') for k, n in once.items()]
    legend = [figures.Key(label, figures.INK, '-', 'o')]
    yield figures.Picture(
      'Loss and cost',
      f'Final test loss in nats a token; below the line is better than'
      f' {results_lib.REFERENCES[result["family"]]} of equal cost. Points are'
      ' means over the seeds, bars and the band go from the lowest seed to the'
      ' highest. Triangles at the upper edge lie above the frame.',
      panels,
      legend + shown,
    )


def _draw_central(axis, line, points, looks, axes) -> None:
  top = figures.top([loss for _, loss in [*line, *points.values()]])
  if line:
    _draw_reference(line, axes)
  axes.set_ymargin(0.08)
  of_look = collections.defaultdict(list)  # lengths of one thing share it
  for name, (cost, loss) in points.items():
    of_look[looks[name]].append((cost, loss['mean']))
  for look, pairs in of_look.items():
    if len(pairs) > 1:
      axes.plot(*zip(*sorted(pairs)), **look.line, linewidth=1.2)
  for name, (cost, loss) in points.items():
    if loss['mean'] > top:
      figures.above(axes, cost, loss['mean'], looks[name].colour)
    else:
      _draw_point(axes, looks[name], cost, loss['mean'], yerr=_bar(loss))
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
  marked = np.flatnonzero(np.isin(x, costs)).tolist()
  look = {'color': figures.INK, 'linewidth': 1.4, 'markersize': 4}
  axes.plot(x, mean, 'o-', markevery=marked, **look)


def _bar(loss: Mapping[str, float]) -> list[list[float]]:
  """The spread of a loss around its mean, as error bars."""
  return [[loss['mean'] - loss['low']], [loss['high'] - loss['mean']]]


def _draw_point(axes, key, x, y, **error) -> None:
  look = {'color': key.colour, 'marker': key.marker, 'markersize': 6.5}
  look |= {**figures.EDGED, 'elinewidth': 1.2, 'zorder': 3}
  axes.errorbar(x, y, **look, **error)


def _by_arm(
  result: Result, looks: Mapping[str, figures.Key]
) -> Iterator[figures.Picture]:
  """Losses side by side, which arms of equal cost need."""
  reference = _reference(result)
  losses = {name: result['arms'][name]['loss'] for name in looks}
  top = figures.top([loss for loss in [*losses.values(), reference] if loss])

  def draw(axes):
    if reference:
      _draw_dashed(reference, axes.axvline, axes.axvspan)
    for row, (name, loss) in enumerate(losses.items()):
      if loss and loss['mean'] <= top:
        _draw_point(axes, looks[name], loss['mean'], row, xerr=_bar(loss))
        continue
      text = f'{loss["mean"]:.3g}, right of the frame' if loss else 'failed'
      look = {'ha': 'right', 'va': 'center', 'fontsize': 'small'}
      edge = axes.get_yaxis_transform()
      axes.annotate(text, (0.99, row), xycoords=edge, **look)
    figures.label_axes(axes, 'test loss (nats/token)')
    axes.set_yticks(range(len(losses)), [figures.short(n, 32) for n in losses])
    axes.set_ylim(len(losses) - 0.4, -0.6)

  if any(losses.values()):
    panel = figures.Panel(draw, 5.2, 0.75 + 0.23 * len(losses))
    yield figures.Picture('Loss by arm', _note(result), [panel])


def _draw_dashed(loss: Mapping[str, float], line, span) -> None:
  """The reference across the drawing, with the band of its seeds."""
  line(loss['mean'], color=figures.INK, linestyle='--', lw=1.2)
  span(loss['low'], loss['high'], color=figures.INK, alpha=0.12, lw=0)


def _by_label(result: Result) -> Iterator[figures.Picture]:
  """Losses over coordinates: one picture for every set that arms have."""
  sets: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
  for arm in result['arms'].values():
    sets.setdefault(tuple(arm['label']), []).append(arm)
  sets.pop(('length',), None)  # in the central one, over what it costs
  for names, arms in sets.items():
    if names and len(arms) > 1 and any(arm['loss'] for arm in arms):
      yield _lines(result, names, arms)


def _lines(result, names, arms) -> figures.Picture:
  """A line a group, and a value of the other coordinate where there are two.

  With the bands of their seeds and the reference's loss; over what is a number.
  """
  reference = _reference(result)
  name, *other = sorted(names, key=lambda n: not _is_numeric(arms, n))
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for arm in arms:
    values = (f'{_words(n)} {_text(arm["label"][n])}' for n in other)
    parts = arm['group'], *values
    groups.setdefault(', '.join(filter(None, parts)), []).append(arm)
  looks = figures.keys(groups)
  numeric = _is_numeric(arms, name)
  values = dict.fromkeys(arm['label'][name] for arm in arms)
  ordered = sorted(values) if numeric else values
  places = {v: v if numeric else n for n, v in enumerate(ordered)}
  top = figures.top([arm['loss'] for arm in arms if arm['loss']])

  def draw(axes):
    for group, look in looks.items():
      known = []
      for arm in (arm for arm in groups[group] if arm['loss']):
        x, loss = places[arm['label'][name]], arm['loss']
        if loss['mean'] > top:
          figures.above(axes, x, loss['mean'], look.colour)
        else:
          known.append((x, loss['mean'], loss['low'], loss['high']))
      if known:
        x, mean, low, high = np.array(sorted(known)).T
        style = {**look.line, 'marker': look.marker}
        axes.plot(x, mean, **style, markeredgecolor=figures.INK, linewidth=1.6)
        axes.fill_between(x, low, high, color=look.colour, alpha=0.2, lw=0)
    if reference:
      _draw_dashed(reference, axes.axhline, axes.axhspan)
    figures.label_axes(axes, _words(name), y='test loss (nats/token)')
    _ticks(axes, places, numeric)

  legend = [key._replace(label=n or 'ours') for n, key in looks.items()]
  legend = legend if len(legend) > 1 else []
  if reference:
    legend.append(figures.Key(result['reference'], figures.INK, '--'))
  title = f'Loss over {" and ".join(map(_words, names))}'
  panel = figures.Panel(draw, 5.6, 3.2)
  return figures.Picture(title, _note(result), [panel], legend)


def _is_numeric(arms: Iterable[Mapping[str, Any]], name: str) -> bool:
  return all(schema.is_number(arm['label'][name]) for arm in arms)


def _ticks(axes, places, numeric) -> None:
  from matplotlib import ticker

  if numeric and min(places) > 0 and max(places) >= _LOG_FROM * min(places):
    axes.set_xscale('log')
    axes.xaxis.set_minor_locator(ticker.NullLocator())
  is_long = sum(len(str(v)) for v in places) > 50
  look = {'rotation': 30, 'ha': 'right'} if is_long else {}
  axes.set_xticks(list(places.values()), list(map(_text, places)), **look)


def _words(name: str) -> str:
  return name.replace('_', ' ')


def _text(value: Any) -> str:
  return f'{value:.4g}' if schema.is_number(value) else str(value)
