"""Tables of the results of experiments: claims and hops."""

from collections.abc import Mapping, Sequence

from satjax.lab.report import results as results_lib
from satjax.lab.report import words
from satjax.lab.report.growth import HOP_COLUMNS
from satjax.lab.report.results import Result
from satjax.lab.report.table import Table, drop_empty

_FAMILIES = {'sat': 'Sparsity-accelerated training', 'growth': 'Model growth'}


def by_family(results: Sequence[Result]) -> dict[str, list[Result]]:
  """Results by what their family is called, in the order of the papers."""
  groups = {
    name: [result for result in results if result['family'] == family]
    for family, name in _FAMILIES.items()
  }
  return {name: group for name, group in groups.items() if group}


def claims(
  result: Result,
  columns: Sequence[str] = ('claim', 'verdict', 'paper', 'ours', 'source'),
) -> Table:
  """What was claimed, what the paper shows, what we found."""
  rows = [[_cell(claim, key) for key in columns] for claim in result['claims']]
  return drop_empty(Table('claims', columns, rows, prose=True))


def _cell(claim: Mapping[str, str | None], key: str) -> str:
  """A comparison a line."""
  return (claim[key] or '').replace('; ', ';\n')


def all_claims(results: Sequence[Result]) -> Table:
  """Claims of all experiments, a heading for each, and how many hold."""
  columns = ['claim', 'verdict', 'paper', 'ours']
  rows = []
  for result in results:
    if result['claims']:
      rows.append([words.title(result)])
    for claim in result['claims']:
      rows.append([_cell(claim, key) for key in columns])
  return Table(
    'Claims',
    columns,
    rows,
    note=count_verdicts(results),
    prose=True,
  )


def count_verdicts(results: Sequence[Result]) -> str:
  """Such as '5 hold, 1 does not hold'."""
  found = [claim['verdict'] for result in results for claim in result['claims']]
  plural = {
    'holds': 'hold',
    'holds partly': 'hold partly',
    'does not hold': 'do not hold',
    'not tested': 'not tested',
  }
  counts = [(found.count(v), v) for v in results_lib.VERDICTS if v in found]
  texts = [f'{n} {v if n == 1 else plural[v]}' for n, v in counts]
  return f'{", ".join(texts)}.' if texts else ''


def hops(result: Result) -> Table:
  """Where arms grew, of the first seed; no rows where none did."""
  return Table(
    'growth',
    HOP_COLUMNS,
    [
      [
        f'{name}, hop {order}',
        f'{hop["step"]:,}',
        words.number(hop['loss_before'], '{:.4f}') or '-',
        words.number(hop['loss_after'], '{:.4f}') or '-',
        words.number(hop['steps_to_recover'], '{:,.0f}') or 'not yet',
      ]
      for name, arm in result['arms'].items()
      for order, hop in enumerate(arm['growth'], 1)
    ],
    note='Loss on the same rows before and after, and the steps until it is'
    ' back; of the first seed.',
  )
