"""Results as Markdown: a page an experiment, and one for the claims of all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import pathlib
import shlex
from typing import Any

from satjax.lab.report import result_tables, table
from satjax.lab.report import results as results_lib
from satjax.lab.report.results import Result
from satjax.lab.report.table import escape

_FAMILIES = {'sat': 'Sparsity-accelerated training', 'growth': 'Model growth'}
# Where what arms are called is explained.
_PAGES = {'sat': 'methods.md', 'growth': 'grow_a_model.md#all-at-once'}
_INTRODUCTION = """\
Each claim stands beside what its paper reports and what we found. Our runs are
small: they test whether the direction of an effect is there at our scale, and
never the size that a paper reports at its own. "Not tested" says just that.
"""


def markdown(result: Result, pictures: Sequence[str] = ()) -> str:
  """A page of one experiment, such as experiments/results/NAME.md.

  `pictures` are parts of it that stand below the claims.
  """
  command = ' '.join(shlex.join(result['environment']['command']).split())
  parts = [
    f'# {escape(result_tables.title(result))}\n',
    f'Generated; do not edit. Written by\n\n```\n{command}\n```\n',
  ]
  for term, text in result_tables.doc(result):
    if term not in ('Command', 'Result'):
      head = f'**{escape(term)}.** ' if term else ''
      parts.append(f'{head}{escape(text)}\n')
  if result['claims']:
    parts += ['## Claims\n', *claims(result)]
  tables = result_tables.arms(result), *result_tables.besides(result)
  parts += [*pictures, *map(table.section, tables)]
  return '\n'.join([*parts, '## Notes\n', _list(result_tables.notes(result))])


def image(path: pathlib.Path) -> str:
  """A picture that lies beside the page."""
  return f'![{escape(path.stem.replace("_", " "))}]({path.name})\n'


def _list(lines: Iterable[str]) -> str:
  return ''.join(f'- {escape(line)}\n' for line in lines)


def results_page(
  results: Sequence[Result], untested: Sequence[Mapping[str, Any]] = ()
) -> str:
  """docs/results.md: claim, the paper's figure, ours, verdict.

  Links lead to ../experiments/NAME.py, and to NAME.md and NAME.json in results.
  `untested` are name, title, family and claims of experiments without a result.
  """
  every = [*results, *untested]
  parts = [
    '# Results\n',
    'Generated from experiments/results; do not edit. Written by\n\n```\n'
    'satjax report experiments/results experiments/{sat,growth}_*.py'
    ' --page=docs/results.md\n```\n',
    _INTRODUCTION,
    f'Verdicts: {result_tables.count_verdicts(every)}.\n',
  ]
  for result in results:
    parts += _answer(result) if result.get('answers') else []
  for family, heading in _FAMILIES.items():
    group = [each for each in every if each['family'] == family]
    parts += [f'## {heading}\n'] if group else []
    for result in group:
      parts += _experiment(result)
  parts += ['## What was not tested\n', _list(_not_tested(results))]
  return '\n'.join(parts)


def _answer(result: Result) -> Iterator[str]:
  """The settings that did best for as much time, and those that did worst."""
  ranked, link = result_tables.ranked(result), f'results/{result["name"]}.md'
  name = results_lib.REFERENCES[result['family']]
  arms, source = result['arms'], escape(result['source'])
  page = _PAGES[result['family']]
  size, scale = result_tables.size(result), escape(result['scale'])
  yield (
    f'## {escape(result["answers"])}\n\n{size} of {source}, scale'
    f' [{scale}](experiments.md). What ends no higher'
    f' than {name} of as much time, the lowest first, three at most'
    f' ([all](../experiments/{link}), [what they are]({page})); differences are'
    ' in nats a token:\n'
  )
  verdicts = {name: arms[name]['against']['time']['verdict'] for name in ranked}
  worse = [name for name in ranked if verdicts[name] == 'worse']
  if fine := [name for name in ranked if name not in worse][:3]:
    yield table.markdown(result_tables.trade(result, fine))
  else:
    yield f'Nothing does: {name} is best.\n'
  if worse:
    yield 'What not to do, the worst last:\n'
    yield table.markdown(result_tables.trade(result, worse[-3:]))
  if failed := [escape(n) for n, arm in arms.items() if arm['failed']]:
    yield f'Failed: {", ".join(failed)}.\n'


def claims(result: Mapping[str, Any]) -> Iterator[str]:
  """A claim, who says so, our verdict, and below it a comparison a row."""
  for claim in result['claims']:
    paper = f' Published: {escape(claim["paper"])}.' if claim['paper'] else ''
    yield (
      f'**{escape(claim["claim"])}**: {claim["verdict"]}.'
      f' *{escape(claim["source"])}.*{paper}\n'
    )
    if claim['comparisons']:
      yield table.markdown(result_tables.comparisons(claim))


def _experiment(result: Mapping[str, Any]) -> Iterator[str]:
  """An experiment of the page of all, or one that has not run."""
  name, title = result['name'], escape(result_tables.title(result))
  folder = '../experiments/results'
  yield f'### {title}\n'
  yield from claims(result)
  if 'arms' not in result:
    yield f'Has not run: [file](../experiments/{name}.py).\n'
    return
  seeds, arms = len(result['seeds']), len(result['arms'])
  yield (
    f'{arms} arms, {seeds} seed{"s" * (seeds != 1)}, scale'
    f' {escape(result["scale"])}, {result_tables.size(result)}:'
    f' [table]({folder}/{name}.md), [data]({folder}/{name}.json).\n'
  )


def _not_tested(results: Sequence[Result]) -> Iterator[str]:
  if all(result['scale'] != 'paper' for result in results):
    yield (
      "The papers' own sizes, data and token counts: every figure above is of"
      ' small models.'
    )
  untimed = []
  for result in results:
    title, arms = result_tables.title(result), result['arms']
    for claim in result['claims']:
      if claim['verdict'] == 'not tested':
        yield f'{title}: {claim["claim"]}'
    for name, arm in arms.items():
      if arm['failed'] is not None:
        yield f'{title}: {name} failed: {arm["failed"]}'
    if all(arm['seconds'] is None for arm in arms.values()):
      untimed.append(title)
  if untimed:
    yield f'Seconds, where cost is counted in FLOPs: {"; ".join(untimed)}.'
