"""Probes of what leaving out costs (`satjax probe`): tables and pictures."""

from collections.abc import Iterator, Mapping, Sequence
import functools
import itertools
import os
from typing import Any

from satjax import errors
from satjax.config import allocation
from satjax.lab.report import figures, table
from satjax.lab.report.table import Table

Probe = Mapping[str, Any]
_NAMES = {'heads': 'heads', 'mlp': 'channels', 'layers': 'layers'}
_BY_LAYER = {
  'influence': 'influence',
  'sensitivity': 'sensitivity',
  'heads': 'some heads',
  'mlp': 'half of channels',
  'layers': 'the layer',
}
_SHOWN = 'of', 'text', 'dense_loss', 'damage', 'by_layer', 'equal'
# Of so many tokens, draws differ by a tenth of a nat (experiments/results).
_ENOUGH = 512


def is_probe(values: Mapping[str, Any]) -> bool:
  """Whether the content of a JSON file is a probe."""
  return values.get('kind') == allocation.KIND


def check(probe: Probe, file: str | os.PathLike) -> Probe:
  """Raises DataError where a probe lacks what is shown of it."""
  if missing := [key for key in _SHOWN if key not in probe]:
    raise errors.DataError(
      f'{file} has no {", ".join(missing)}: it holds rates by layer alone, as a'
      ' run writes them; report a file of `satjax probe --out=FILE.json`'
    )
  return probe


def title(probe: Probe) -> str:
  """Of which model, or of which run."""
  what = probe['of']
  if 'model' in what:
    return f'Probe of {what["model"]}'
  return f'Probe at step {what["step"]}'


def tables(probe: Probe) -> list[Table]:
  """What leaving out costs, by metric; by layer; and the allocation."""
  return [_damage(probe), _by_layer(probe), _compared(probe), _groups(probe)]


def _damage(probe):
  points: dict[tuple, dict[str, float]] = {}  # what is left out: by metric
  for row in probe['damage']:
    point = row['axis'], row['left_out'], row['of']
    points.setdefault(point, {})[row['metric']] = row['damage']
  heads = [f'{gone / n:.0%} {_NAMES[axis]}' for axis, gone, n in points]
  lines = [[metric] for metric in _metrics(probe)]
  for of_point in points.values():
    for line in lines:
      value = of_point.get(line[0])
      mark = '*' if value == min(of_point.values()) else ' '
      line.append('' if value is None else f'{value:.2f}{mark}')
  text, few = probe['text'], ''
  if text['tokens'] < _ENOUGH:
    few = (
      f' Fewer than {_ENOUGH} say little; ask for more with --rows or'
      ' --seq_len.'
    )
  return Table(
    'damage',
    ['metric', *heads],
    lines,
    f'Nats a token above the whole model, {probe["dense_loss"]:.3f}, where'
    ' so many units of every layer are left out, or layers; *: the least. On'
    f' {text["tokens"]:,} tokens of {text["source"]}; units are scored on as'
    f' many others.{few}',
  )


def _metrics(probe):
  return list(dict.fromkeys(row['metric'] for row in probe['damage']))


def _by_layer(probe):
  columns = _relative(probe)
  rows = [
    [str(number), *(f'{x:.3f}' for x in values)]
    for number, values in enumerate(zip(*columns.values()))
  ]
  return Table(
    'layer',
    ['layer', *columns],
    rows,
    'Influence: 1 - cos of what goes into a layer and what comes out;'
    ' sensitivity: of the change it makes, weighed by gradients, over the'
    ' largest. The others: nats that are estimated where so much of a layer, or'
    ' all of it, is left out.',
  )


def _relative(probe):
  """Values by layer of all there is; the sensitivity over the largest one."""
  values = dict(probe['by_layer'])
  most = max(values['sensitivity']) or 1.0
  values['sensitivity'] = [x / most for x in values['sensitivity']]
  return {name: values[key] for key, name in _BY_LAYER.items() if key in values}


def _compared(probe):
  whole = probe['allocation']
  rows = [
    ['the allocation', '', f'{whole["saving"]:.1%}', f'{whole["damage"]:.3f}']
  ]
  for row in probe['equal']:
    gone = row['left_out'].items()
    what = ', '.join(
      _NAMES[a] if n is None else f'{n} {_NAMES[a]}' for a, n in gone
    )
    how = ', '.join(dict.fromkeys(row['metrics'].values()))
    cells = 'not as much', ''
    if 'loss' in row:
      cells = f'{row["saving"]:.1%}', f'{row["damage"]:.3f}'
    rows.append([f'equal: {what}', how, *cells])
  return Table(
    f'saving {probe["wanted_saving"]:.1%}',
    ['left out', 'by', 'saved', 'damage'],
    rows,
    "Of a step's FLOPs, and nats a token above the whole model. Equal: of each"
    ' layer alike.',
  )


def _groups(probe):
  sizes, rows = probe['model'], []
  for group in probe['allocation']['groups']:
    start, stop = group['layers']
    rows.append(
      [
        f'layers {start} to {stop - 1}'
        if stop - start > 1
        else f'layer {start}',
        f'{group["heads"]} of {sizes["num_heads"]}',
        f'{group["channels"]} of {sizes["mlp_dim"]}',
        _ranges(group['left_out']) or 'none',
      ]
    )
  return Table(
    'allocation',
    ['layers', 'heads', 'channels', 'but left out whole'],
    rows,
    'What each of these layers keeps; those left out whole keep nothing.',
  )


def _ranges(numbers: Sequence[int]) -> str:
  """1-3, 7"""
  found = []
  for _, run in itertools.groupby(enumerate(numbers), lambda x: x[1] - x[0]):
    own = [n for _, n in run]
    found.append(f'{own[0]}-{own[-1]}' if len(own) > 1 else f'{own[0]}')
  return ', '.join(found)


def text(probe: Probe) -> str:
  """The tables for a terminal."""
  return '\n'.join(map(table.text, tables(probe)))


def markdown(probe: Probe) -> str:
  """The tables as a page."""
  sections = map(table.section, tables(probe))
  return '\n'.join([f'# {table.escape(title(probe))}\n', *sections])


def pictures(probe: Probe) -> Iterator[figures.Picture]:
  """Damage over what is left out, by metric; and by layer."""
  looks = figures.keys(_metrics(probe))
  axes = [a for a in _NAMES if any(r['axis'] == a for r in probe['damage'])]
  yield figures.Picture(
    'What leaving out costs at once',
    'Nats a token above the whole model, by how much of every layer is left out'
    ' and by the metric that chooses.',
    [
      figures.Panel(functools.partial(_draw_rates, probe, axis, looks))
      for axis in axes
    ],
    list(looks.values()),
  )
  yield figures.Picture(
    'By layer',
    'Nats that are estimated where a layer leaves out some heads or half of its'
    ' channels, or is left out; its influence, and its sensitivity over the'
    ' largest.',
    [
      figures.Panel(functools.partial(_draw_layers, probe, name))
      for name in _relative(probe)
    ],
  )


def _draw_rates(probe, axis, looks, axes):
  for metric, look in looks.items():
    own = [
      (row['left_out'] / row['of'], row['damage'])
      for row in probe['damage']
      if (row['axis'], row['metric']) == (axis, metric)
    ]
    if own:
      axes.plot(
        *zip((0.0, 0.0), *own), **look.line, marker=look.marker, **figures.EDGED
      )
  figures.label_axes(axes, f'{_NAMES[axis]} left out', y='nats a token')
  axes.xaxis.set_major_formatter(lambda x, _: f'{100 * x:.3g}%')


def _draw_layers(probe, name, axes):
  values = _relative(probe)[name]
  gone = {
    layer for g in probe['allocation']['groups'] for layer in g['left_out']
  }
  colours = [figures.COLOURS[n in gone] for n in range(len(values))]
  axes.bar(range(len(values)), values, color=colours)
  figures.label_axes(axes, 'layer (in orange: left out)', name)
  axes.yaxis.set_major_formatter(lambda y, _: f'{y:g}')
