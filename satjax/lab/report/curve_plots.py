"""Pictures along the runs of a result: losses, ladders, visits of neurons."""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

import numpy as np

from satjax.lab.report import figures, run_plots
from satjax.lab.report import results as results_lib
from satjax.lab.report import runs as runs_lib
from satjax.lab.report.results import Result

_COSTS = ('tokens', 'flops', 'seconds')
_SHOWN = 75  # percent of the points of a curve, to tell its end from others'
_MAX_VISITS = 6  # arms with heat maps


def pictures(
  result: Result, looks: Mapping[str, figures.Key]
) -> Iterator[figures.Picture]:
  """What was recorded; `looks`: of the arms besides the reference."""
  yield from _curves(result, looks)
  yield from _ladders(result)
  yield from _visits(result)


def _curves(
  result: Result, looks: Mapping[str, figures.Key]
) -> Iterator[figures.Picture]:
  """Training and validation losses along the runs."""
  names = [result['reference'], *results_lib.compared(result)]
  curves = {
    n: result['arms'][n]['curves'] for n in names if n in result['arms']
  }
  ink = figures.Key(result['reference'], figures.INK, '-')
  looks = {result['reference']: ink, **looks}
  for title, what, note in (
    ('Training loss', 'train', 'Running means'),
    ('Validation loss', 'validation', 'Of the held-out split'),
  ):
    panels, drawn = [], {}
    for axis in _COSTS:
      lines = {
        name: _against_cost(curve, what, axis) for name, curve in curves.items()
      }
      lines = {name: xy for name, xy in lines.items() if len(xy[0]) > 1}
      if lines:
        draw = functools.partial(_draw_lines, axis, lines, looks)
        panels.append(figures.Panel(draw))
        drawn |= dict.fromkeys(lines)
    if panels:
      yield figures.Picture(
        title,
        f'{note} in nats a token, means over the seeds; the first steps may lie'
        ' above the frame.',
        panels,
        figures.lines(looks[name] for name in drawn),
      )


def _against_cost(
  curve: Mapping[str, Any], what: str, axis: str
) -> tuple[np.ndarray, np.ndarray]:
  """A loss and what it had cost by then, where both are known."""
  step, cost, train, at, validation = (
    np.array(curve[name] or [], np.float64)
    for name in ('step', axis, 'train', 'validation_step', 'validation')
  )
  if len(step) != len(cost) or not len(step):
    return np.empty(0), np.empty(0)
  if what == 'validation':
    cost, loss = np.interp(at, step, cost), validation
  else:
    loss = train
  size = min(len(cost), len(loss))
  known = np.isfinite(cost[:size]) & np.isfinite(loss[:size])
  return cost[:size][known], loss[:size][known]


def _draw_lines(axis, lines, looks, axes) -> None:
  width = 1.6 if len(lines) < 8 else 1.1
  for name, (x, y) in lines.items():
    is_reference = looks[name].colour == figures.INK
    axes.plot(
      *runs_lib.thin(x, y, 400),
      **looks[name].line,
      linewidth=2 if is_reference else width,
      zorder=3 if is_reference else 2,
    )
  figures.label_axes(axes, axis, y='loss (nats/token)')
  figures.frame_losses(axes, _SHOWN)


def _ladders(result: Result) -> Iterator[figures.Picture]:
  """Omission rates over the steps; arms with the same are one line."""
  shared = {}
  for name, arm in result['arms'].items():
    steps, rates = arm['ladder']['step'], arm['ladder']['omission_rate']
    if rates and any(rates):
      shared.setdefault((tuple(steps), tuple(rates)), []).append(name)
  if shared:
    labels = [
      names[0] + (f' and {len(names) - 1} more' if names[1:] else '')
      for names in shared.values()
    ]
    looks = figures.keys(labels)
    lines = dict(zip(labels, shared))
    yield figures.Picture(
      'Ladder',
      'Omission rate, by step. Arms whose rates are equal are one line.',
      [figures.Panel(functools.partial(_draw_ladders, lines, looks))],
      figures.lines(looks.values()),
    )


def _draw_ladders(lines, looks, axes) -> None:
  for name, (steps, rates) in lines.items():
    x, y = (np.array(values, np.float64) for values in (steps, rates))
    axes.plot(x, y, **looks[name].line, drawstyle='steps-pre', linewidth=1.6)
  figures.label_axes(axes, 'step', y='omission rate')
  figures.percent(axes)
  axes.set_ylim(bottom=0)


def _visits(result: Result) -> Iterator[figures.Picture]:
  visits = {n: a['visits'] for n, a in result['arms'].items() if a['visits']}
  if visits:
    few = dict(list(visits.items())[:_MAX_VISITS])
    picture = run_plots.heat_maps('Visits of neurons', few)
    left = len(visits) - len(few)
    more = f' {left} more arms are not shown.' if left else ''
    yield picture._replace(note=f'Of the first seed. {picture.note}{more}')
