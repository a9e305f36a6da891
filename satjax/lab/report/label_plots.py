"""Losses over the coordinates of arms: heat maps of two, lines of one."""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

import numpy as np

from satjax.config import schema
from satjax.lab.report import figures
from satjax.lab.report.results import Result

_LOG_FROM = 20  # ratio of ends from which a coordinate has a logarithmic axis

# By the coordinates' names: by group, arms with their values.
Groups = dict[str, list[tuple[tuple[Any, ...], Mapping[str, Any]]]]


def pictures(result: Result) -> Iterator[figures.Picture]:
  """One for every set of coordinates that arms have."""
  sets: dict[tuple[str, ...], Groups] = {}
  for arm in result['arms'].values():
    if 1 <= len(arm['label']) <= 2:
      groups = sets.setdefault(tuple(arm['label']), {})
      point = (tuple(arm['label'].values()), arm)
      groups.setdefault(arm['group'], []).append(point)
  for names, groups in sets.items():
    arms = [arm for points in groups.values() for _, arm in points]
    if any(arm['loss'] for arm in arms) and len(arms) > 1:
      make = _lines if len(names) == 1 else _maps
      yield make(result, names, groups)


def _reference(result: Result) -> Mapping[str, float] | None:
  return result['arms'].get(result['reference'], {}).get('loss')


def _lines(result, names, groups) -> figures.Picture:
  """A line a group, with the band of its seeds and the reference's loss."""
  reference = _reference(result)
  values = _ordered(v for points in groups.values() for (v,), _ in points)
  looks = {
    name: key._replace(label=name or 'ours')
    for name, key in figures.keys(groups).items()
  }
  draw = functools.partial(
    _draw_line, names[0], values, groups, reference, looks
  )
  legend = list(looks.values()) if len(looks) > 1 else []
  note = 'Final test loss in nats a token, from the lowest seed to the highest.'
  if reference:
    legend.append(figures.Key(result['reference'], figures.INK, '--'))
    note += f' Dashed: {result["reference"]}, for its full length.'
  return figures.Picture(
    f'Loss over {_words(names[0])}',
    note,
    [figures.Panel(draw, 5.6, 3.2)],
    legend,
  )


def _draw_line(name, values, groups, reference, looks, axes) -> None:
  numeric = all(map(schema.is_number, values))
  places = {v: v if numeric else n for n, v in enumerate(values)}
  top = figures.top(
    [arm['loss'] for g in groups.values() for _, arm in g if arm['loss']]
  )
  for group, points in groups.items():
    known = sorted(
      (places[v], arm['loss']['mean'], arm['loss']['low'], arm['loss']['high'])
      for (v,), arm in points
      if arm['loss'] and arm['loss']['mean'] <= top
    )
    for (v,), arm in points:
      if arm['loss'] and arm['loss']['mean'] > top:
        colour = looks[group].colour
        figures.above(axes, places[v], arm['loss']['mean'], colour)
    if known:
      x, mean, low, high = np.array(known).T
      style = {**looks[group].line, 'marker': looks[group].marker}
      axes.plot(x, mean, **style, markeredgecolor=figures.INK, linewidth=1.6)
      axes.fill_between(x, low, high, color=style['color'], alpha=0.2, lw=0)
  if reference:
    axes.axhline(reference['mean'], color=figures.INK, linestyle='--', lw=1.2)
    ends = reference['low'], reference['high']
    axes.axhspan(*ends, color=figures.INK, alpha=0.12, lw=0)
  figures.label_axes(axes, _words(name), y='test loss (nats/token)')
  _ticks(axes, values, places, numeric)


def _ticks(axes, values, places, numeric) -> None:
  from matplotlib import ticker

  if numeric and min(values) > 0 and max(values) >= _LOG_FROM * min(values):
    axes.set_xscale('log')
    axes.xaxis.set_minor_locator(ticker.NullLocator())
  rotated = sum(len(str(v)) for v in values) > 50
  axes.set_xticks(
    [places[v] for v in values],
    [_text(v) for v in values],
    rotation=30 if rotated else 0,
    ha='right' if rotated else 'center',
  )


def _maps(result, names, groups) -> figures.Picture:
  """A map a group, whose cells say the loss."""
  reference = _reference(result)
  arms = [arm for points in groups.values() for _, arm in points]
  losses = [arm['loss'] for arm in arms if arm['loss']]
  low = min(loss['mean'] for loss in losses)
  top = figures.top(losses)
  high = max(loss['mean'] for loss in losses if loss['mean'] <= top)
  panels = []
  for group, points in groups.items():
    rows, columns = (_ordered(at[i] for at, _ in points) for i in (0, 1))
    draw = functools.partial(
      _draw_map, names, group, points, (rows, columns), (low, high)
    )
    longest = max(len(_text(row)) for row in rows)
    width = 1.6 + 0.07 * longest + 0.8 * len(columns)
    height = 1.1 + 0.34 * len(rows)
    panels.append(figures.Panel(draw, max(4.0, width), height))
  note = (
    'Final test loss in nats a token, mean over the seeds; darker is lower.'
  )
  if any(loss['mean'] > top for loss in losses):
    note += f' The palest stands for {high:.4f} and all above.'
  if reference:
    note += f' {result["reference"]}: {reference["mean"]:.4f}.'
  title = f'Loss over {_words(names[0])} and {_words(names[1])}'
  return figures.Picture(title, note, panels)


def _draw_map(names, title, points, ends, limits, axes) -> None:
  rows, columns = ends
  mean = np.full((len(rows), len(columns)), np.nan)
  texts: dict[tuple[int, int], list[str]] = {}
  for (row, column), arm in points:
    at = rows.index(row), columns.index(column)
    if arm['loss']:
      mean[at] = arm['loss']['mean']
    text = f'{mean[at]:.3f}' if arm['loss'] else 'failed'
    texts.setdefault(at, []).append(text)
  span = limits[1] - limits[0] or 1.0
  shade = np.clip((mean - limits[0]) / span, 0, 1)
  axes.pcolormesh(shade, vmin=0, vmax=1, edgecolors=figures.GRID, linewidth=0.8)
  for (row, column), words in texts.items():
    dark = shade[row, column] < 0.55
    failed = np.isnan(shade[row, column])
    axes.text(
      column + 0.5,
      row + 0.5,
      '\n'.join(words),
      ha='center',
      va='center',
      color=figures.INK if failed else 'white' if dark else 'black',
      fontsize='small',
    )
  axes.set_title(title)
  axes.set(xlabel=_words(names[1]), ylabel=_words(names[0]))
  axes.set_xticks(np.arange(len(columns)) + 0.5, list(map(_text, columns)))
  axes.set_yticks(np.arange(len(rows)) + 0.5, list(map(_text, rows)))
  axes.tick_params(length=0)
  axes.grid(False)
  axes.invert_yaxis()


def _ordered(values) -> list[Any]:
  """Numbers by size, anything else as it comes; each once."""
  found = list(dict.fromkeys(values))
  return sorted(found) if all(map(schema.is_number, found)) else found


def _words(name: str) -> str:
  return name.replace('_', ' ')


def _text(value: Any) -> str:
  return f'{value:.4g}' if schema.is_number(value) else str(value)
