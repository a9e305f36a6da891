"""What growth did, as a table: sizes, and which layers are made of which."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from satjax.growth import apply, layer_maps
from satjax.growth.operators import Depth, Operator
from satjax.interop.grow import Summary

_MARKS = ('', 'new', 'new, zeroed', 'new, random')  # a later one says more
_MOST_ROWS = 40


class Layer(NamedTuple):
  """Of a grown model: the old layers that it is made of, and what is new."""

  sources: tuple[int, ...]
  mark: str


class _Row(NamedTuple):
  """Layers with the same mark whose numbers rise evenly."""

  targets: list[int]
  sources: list[tuple[int, ...]]
  mark: str


def layers_of(operators: Sequence[Operator], num_layers: int) -> list[Layer]:
  """The layers of the grown model, from the first one on.

  Args:
    operators: in the order in which they are carried out.
    num_layers: of the source.
  """
  layers = [Layer((n,), '') for n in range(num_layers)]
  for operator in operators:
    uses = list(zip(*apply.inputs(operator, len(layers))))
    marks = [''] * len(uses)
    if isinstance(operator, Depth):
      marks = _marks(operator)
    layers = [
      Layer(
        tuple(dict.fromkeys(n for row in rows for n in layers[row].sources)),
        max(layers[rows[0]].mark, mark, key=_MARKS.index),
      )
      for rows, mark in zip(uses, marks)
    ]
  return layers


def _marks(operator: Depth) -> list[str]:
  none = [False] * len(operator.layer_map)
  flags = zip(
    operator.is_new, operator.zero_out or none, operator.fresh or none
  )
  return [
    _MARKS[max(is_new, 2 * zeroed, 3 * random)]
    for is_new, zeroed, random in flags
  ]


def render(summary: Summary) -> str:
  """Markdown: sizes before and after, layers and sources, what to expect."""
  layers = layers_of(summary.operators, summary.before.num_layers)
  rate = layer_maps.connection_rate([layer.sources[0] for layer in layers])
  lines = ['| | before | after |', '| --- ' * 3 + '|']
  lines += [f'| {n} | {old} | {new} |' for n, old, new in _sizes(summary)]
  lines += ['', '| layer | made of | |', '| --- ' * 3 + '|']
  rows = _rows(layers)
  for row in rows[:_MOST_ROWS]:
    made = '-' if row.mark == _MARKS[-1] else _sources(row.sources)
    lines.append(f'| {_numbers(row.targets)} | {made} | {row.mark} |')
  if len(rows) > _MOST_ROWS:
    lines.append(f'| and {len(rows) - _MOST_ROWS} rows more | | |')
  return '\n'.join([*lines, '', _expect(summary, rate)])


def _sizes(summary: Summary) -> Iterator[tuple[str, str, str]]:
  """Name, before and after."""
  before, after = summary.before, summary.after
  for name in (
    'num_layers',
    'embed_dim',
    'num_heads',
    'num_kv_heads',
    'head_dim',
    'mlp_dim',
    'vocab_size',
  ):
    yield name, *(f'{getattr(c, name)}' for c in (before, after))
  yield 'parameters', *(f'{number:,}' for number in summary.num_params)
  for name in ('norm_eps', 'rope_theta'):
    old, new = getattr(before, name), getattr(after, name)
    if old != new:
      yield name, f'{old:g}', f'{new:g}'
  if summary.context[0] != summary.context[1]:
    yield 'longest row, tokens', *map(str, summary.context)


def _expect(summary: Summary, rate: float) -> str:
  lines = [f'R_c = {rate:.3g}: the share of neighbours that were neighbours.']
  if summary.preserves:
    lines.append('The function is preserved by design, but for rounding.')
  else:
    lines.append('The function is not preserved.')
  if any(operator.is_random for operator in summary.operators):
    lines.append(
      'Random units count in full at once: a directory holds no mask. A run'
      ' lets them in slowly (config.growth.hops with ramp_tokens).'
    )
  return '\n'.join(lines)


def _rows(layers: Sequence[Layer]) -> list[_Row]:
  """Layers in as few rows as numbers that rise evenly allow."""
  rows: list[_Row] = []
  last: dict[str, _Row] = {}
  for number, (sources, mark) in enumerate(layers):
    row = last.get(mark)
    if row is None or not _continues(row, number, sources):
      row = last[mark] = _Row([], [], mark)
      rows.append(row)
    row.targets.append(number)
    row.sources.append(sources)
  return rows


def _continues(row: _Row, number: int, sources: tuple[int, ...]) -> bool:
  if len(sources) != len(row.sources[-1]):
    return False
  if len(row.targets) == 1:
    return True
  columns = zip(*row.sources[-2:], sources)
  columns = [(*row.targets[-2:], number), *columns]
  return all(c - b == b - a for a, b, c in columns)


def _sources(sources: Sequence[tuple[int, ...]]) -> str:
  return ' and '.join(_numbers(column) for column in zip(*sources))


def _numbers(numbers: Sequence[int]) -> str:
  """Numbers that rise evenly: '3', '0 to 21' or '0, 2, ..., 42'."""
  first, last = numbers[0], numbers[-1]
  if first == last:
    return f'{first}'
  if len(numbers) == 2 and last - first != 1:
    return f'{first}, {last}'
  if last - first == len(numbers) - 1:
    return f'{first} to {last}'
  return f'{first}, {numbers[1]}, ..., {last}'
