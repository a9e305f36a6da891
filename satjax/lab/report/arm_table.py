"""The table of the arms of an experiment."""

from collections.abc import Callable, Mapping
from typing import Any

from satjax.lab.report import results as results_lib
from satjax.lab.report import words
from satjax.lab.report.results import Result
from satjax.lab.report.table import Table, drop_empty

_SPEEDUPS = {'time': 'speed-up in time', 'flops': 'speed-up in FLOPs'}
_COSTS = {'time': 'seconds', 'flops': 'flops'}
_Column = Callable[[str, Mapping[str, Any]], str]


def arms(result: Result, brief: bool = False) -> Table:
  """A row an arm, under its group; the paper's figures beside ours.

  The reference comes first, its other lengths last. Of an arm that failed the
  row says why.

  Args:
    result: checked.
    brief: without ranges and settings, to fit a terminal.
  """
  columns = _outcome(brief) | _paper(result) | ({} if brief else _settings())
  rows, group = [], None
  for name in _order(result):
    arm = result['arms'][name]
    if _heading(result, name) != group:
      group = _heading(result, name)
      rows += [[group]] if group else []
    if arm['failed'] is None:
      rows.append([name, *(cell(name, arm) for cell in columns.values())])
    else:
      rows.append([name, f'failed: {arm["failed"]}{_published(result, name)}'])
  table = drop_empty(Table('arms', ['arm', *columns], rows))
  return table._replace(note=' '.join(words.reading(result)))


def _heading(result: Result, name: str) -> str:
  if name == result['reference']:
    return ''
  if name in result['frontier']:
    return f'{result["reference"]}, other lengths'
  return result['arms'][name]['group']


def _order(result: Result) -> list[str]:
  reference = result['reference']
  first = [reference] if reference in result['arms'] else []
  lengths = [name for name in result['frontier'] if name != reference]
  return [*first, *results_lib.compared(result), *reversed(lengths)]


def _outcome(brief: bool) -> dict[str, _Column]:
  def loss(_, arm):
    best = ', best step' if arm['early_stop'] else ''
    return f'{arm["loss"]["mean"]:.4f}{best}'

  def spread(_, arm):
    wanted = not brief and len(arm['runs']) > 1
    return '{low:.4f} to {high:.4f}'.format(**arm['loss']) if wanted else ''

  def difference(equal):
    return lambda _, arm: _difference(arm['against'].get(equal), brief)

  def speedup(cost):
    return lambda _, arm: _speedup(arm, cost)

  return {
    'loss': loss,
    'lowest to highest seed': spread,
    **{f'at {name}': difference(x) for x, name in results_lib.EQUAL.items()},
    **{name: speedup(cost) for cost, name in _SPEEDUPS.items()},
  }


def _difference(against: Mapping[str, Any] | None, brief: bool) -> str:
  if against is None:
    return ''
  change = against['difference']
  text = f'{against["verdict"]}: {change["mean"]:+.4f}'
  if brief or against['verdict'] == 'one seed':
    return text
  return f'{text}\n({change["low"]:+.4f} to {change["high"]:+.4f})'


def _speedup(arm: Mapping[str, Any], cost: str) -> str:
  """In percent, as the papers have it; or that it was not reached."""
  ratio = arm['speedup'].get(cost)
  if ratio is not None:
    return f'{ratio - 1:+.1%}'
  known = arm['against'] and arm[_COSTS[cost]] is not None
  return 'not reached' if known else ''


def _paper(result: Result) -> dict[str, _Column]:
  paper = result['paper'] or {'columns': [], 'rows': {}}

  def column(number):
    def cell(name, _):
      row = [*paper['rows'].get(name, []), *([None] * (number + 1))]
      return words.number(row[number], '{}')

    return cell

  names = enumerate(paper['columns'])
  return {f'paper: {name}': column(number) for number, name in names}


def _published(result: Result, name: str) -> str:
  """The paper's figures for an arm that has none of ours."""
  paper = result['paper'] or {'columns': [], 'rows': {}}
  named = zip(paper['columns'], paper['rows'].get(name, []))
  known = [f'{head} {value}' for head, value in named if value is not None]
  return f' (paper: {", ".join(known)})' if known else ''


def _settings() -> dict[str, _Column]:
  def rate(_, arm):
    edge = '\nat the edge of the search' if arm['at_edge'] else ''
    return words.number(arm['learning_rate'], '{:g}') + edge

  def number(key, form):
    return lambda _, arm: words.number(arm[key], form)

  return {
    'learning rate': rate,
    'steps': number('steps', '{:,}'),
    'FLOPs': number('flops', '{:.2e}'),
    'seconds': number('seconds', '{:,.1f}'),
    'omission rate': lambda _, arm: words.number(
      arm['omission_rate'] or None, '{:.1%}'
    ),
    'parameters': number('parameters', '{:,.0f}'),
  }
