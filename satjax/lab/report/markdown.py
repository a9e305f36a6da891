"""Results as Markdown: a page an experiment, and one for the claims of all."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from satjax.lab.report import arm_table, result_tables, table, words
from satjax.lab.report import results as results_lib
from satjax.lab.report.results import Result
from satjax.lab.report.table import escape

_CLAIM = ('claim', 'source', 'paper', 'ours', 'verdict')
_INTRODUCTION = """\
Each claim stands beside what its paper reports and what we found. Our runs are
small: they test whether the direction of an effect is there at our scale, and
never the size that a paper reports at its own. "Not tested" says just that.
"""


def markdown(result: Result, pictures: Sequence[str] = ()) -> str:
  """A page of one experiment, such as experiments/results/NAME.md.

  Args:
    result: as in its JSON file.
    pictures: links to show below the claims, such as 'NAME_loss_and_cost.png'.

  Raises:
    DataError: a key of the result is missing or no such value.
  """
  result = results_lib.check(result)
  parts = [f'# {escape(words.title(result))}\n', _made_by(result)]
  for term, text in words.doc(result):
    if term not in ('Command', 'Result'):
      head = f'**{escape(term)}.** ' if term else ''
      parts.append(f'{head}{escape(text)}\n')
  claims = result_tables.claims(result, _CLAIM)
  hops = result_tables.hops(result)
  arms = arm_table.arms(result)
  if claims.rows:
    parts += ['## Claims\n', table.markdown(claims)]
  parts += [f'![{escape(_alt(link))}]({link})\n' for link in pictures]
  parts += ['## Arms\n', table.markdown(arms), f'{escape(arms.note)}\n']
  if hops.rows:
    parts += ['## Growth\n', table.markdown(hops), f'{escape(hops.note)}\n']
  notes = ''.join(f'- {escape(note)}\n' for note in words.notes(result))
  return '\n'.join([*parts, '## Notes\n', notes])


def _made_by(result: Result) -> str:
  return (
    f'Generated; do not edit. Written by\n\n```\n{words.command(result)}\n```\n'
  )


def _alt(link: str) -> str:
  return link.rpartition('/')[2].rpartition('.')[0].replace('_', ' ')


def results_page(
  results: Sequence[Result], untested: Sequence[Mapping[str, Any]] = ()
) -> str:
  """docs/results.md: claim, the paper's figure, ours, verdict.

  Links lead to ../experiments/NAME.py, and to NAME.md and NAME.json in results.

  Args:
    results: as in their JSON files.
    untested: name, title, family and claims of experiments without a result.

  Raises:
    DataError: a key of a result is missing or no such value.
  """
  results = [results_lib.check(result) for result in results]
  parts = [
    '# Results\n',
    'Generated from experiments/results; do not edit. Written by\n\n```\n'
    'satjax report experiments/results experiments/{sat,growth}_*.py'
    ' --page=docs/results.md\n```\n',
    _INTRODUCTION,
    f'{result_tables.count_verdicts([*results, *untested])}\n',
  ]
  families = result_tables.by_family([*results, *untested])
  for family, group in families.items():
    parts.append(f'## {family}\n')
    for result in group:
      parts += _claims(result)
  return '\n'.join([*parts, '## What was not tested\n', _not_tested(results)])


def _claims(result: Mapping[str, Any]) -> Iterator[str]:
  """An experiment of the page of all, or one that has not run."""
  name, title = result['name'], escape(words.title(result))
  folder = '../experiments/results'
  yield f'### {title}\n'
  if result['claims']:
    yield table.markdown(result_tables.claims(result, _CLAIM))
  if 'arms' not in result:
    yield f'Has not run: [file](../experiments/{name}.py).\n'
    return
  seeds, arms = len(result['seeds']), len(result['arms'])
  yield (
    f'{arms} arms, {seeds} seed{"s" * (seeds != 1)}, scale'
    f' {escape(result["scale"])}: [table]({folder}/{name}.md),'
    f' [data]({folder}/{name}.json).\n'
  )


def _not_tested(results: Sequence[Result]) -> str:
  lines = []
  if all(result['scale'] != 'paper' for result in results):
    lines.append(
      "The papers' own sizes, data and token counts: every figure above is of"
      ' small models.'
    )
  for result in results:
    title = words.title(result)
    lines += [
      f'{title}: {claim["claim"]}'
      for claim in result['claims']
      if claim['verdict'] == 'not tested'
    ]
    lines += [
      f'{title}: {name} failed: {arm["failed"]}'
      for name, arm in result['arms'].items()
      if arm['failed'] is not None
    ]
  untimed = [
    words.title(result)
    for result in results
    if all(arm['seconds'] is None for arm in result['arms'].values())
  ]
  if untimed:
    lines.append(
      f'Seconds, where cost is counted in FLOPs: {"; ".join(untimed)}.'
    )
  return ''.join(f'- {escape(line)}\n' for line in lines)
