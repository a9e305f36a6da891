"""Runs, results and probes: text for the terminal, and one HTML file.

The file is their Markdown as HTML, with the pictures in it.
"""

from collections.abc import Iterator, Sequence
import html
import os
import pathlib
import re
import string
from typing import NamedTuple

import markdown_it

from satjax import errors, files
from satjax.lab.report import (
  figures,
  markdown,
  plots,
  result_tables,
  run_plots,
  run_tables,
  table,
)
from satjax.lab.report import probes as probes_lib
from satjax.lab.report import results as results_lib
from satjax.lab.report import runs as runs_lib
from satjax.lab.report.results import Result
from satjax.lab.report.runs import Run

# What stands around tables and pictures, and how all of it looks.
_PAGE = pathlib.Path(__file__).with_name('page.html')
_VERDICT = re.compile(
  r'(<td[^>]*>|</strong>: )(better|worse|holds|does not hold)(?=[:.<])'
)


class Content(NamedTuple):
  """What a report is about."""

  runs: list[Run]
  results: list[Result]
  probes: list[probes_lib.Probe]


def read(paths: Sequence[str | os.PathLike]) -> Content:
  """Reads folders of runs, result files, and folders of result files.

  Raises, besides what `runs.read` and `results.check` do:
    ConfigError: nothing to show, or something given twice.
  """
  found = [(path, results_lib.find(path)) for path in paths]
  named = [file for _, several in found for file in several]
  workdirs = [path for path, several in found if not several]
  if len({file.resolve() for file in named}) < len(named):
    raise errors.ConfigError(
      f'results {[str(file) for file in named]}: name each once'
    )
  runs = runs_lib.read(workdirs) if workdirs or not named else []
  content = Content(runs, [], [])
  for file in named:
    value = results_lib.parsed(file, results_lib.from_json, 'a result')
    if probes_lib.is_probe(value):
      content.probes.append(probes_lib.check(value, file))
    else:
      content.results.append(results_lib.check(value, file))
  return content


def tables(content: Content) -> str:
  """Claims, and tables as plain text; needs no matplotlib."""
  parts = list(map(table.text, run_tables.tables(content.runs)))
  for result in content.results:
    parts += [f'# {result_tables.title(result)}\n', *_claims(result)]
    parts.append(table.text(result_tables.arms(result, brief=True)))
    parts += map(table.text, result_tables.besides(result))
  return '\n'.join([*parts, *map(probes_lib.text, content.probes)])


def _claims(result: Result) -> Iterator[str]:
  for claim in result['claims']:
    paper = f'; published: {claim["paper"]}' if claim['paper'] else ''
    yield f'{claim["claim"]}: {claim["verdict"]} ({claim["source"]}{paper})\n'
    if claim['comparisons']:
      found = result_tables.comparisons(claim)
      yield table.text(found._replace(title=found.columns[0]))


def report(content: Content, out: str | os.PathLike) -> None:
  """Writes tables and pictures as one self-contained HTML file.

  Equal inputs give equal bytes.
  """
  parts = list(_overview(content.results))
  for number, result in enumerate(content.results):
    parts.append(figures.as_is(f'<div id="e{number}"></div>'))
    pictures = figures.parts(plots.pictures(result), f'e{number}')
    parts.append(markdown.markdown(result, pictures))
  for number, probe in enumerate(content.probes):
    parts.append(probes_lib.markdown(probe))
    parts += figures.parts(probes_lib.pictures(probe), f'p{number}')
  if content.runs:
    parts += ['# Runs\n', *map(table.section, run_tables.tables(content.runs))]
    parts += figures.parts(run_plots.of_runs(content.runs), 'r')
  names = [result_tables.title(result) for result in content.results]
  names += map(probes_lib.title, content.probes)
  names += [run.name for run in content.runs]
  page = string.Template(_PAGE.read_text()).substitute(
    title=html.escape(', '.join(names)), body=_html('\n'.join(parts))
  )
  files.save(pathlib.Path(out), page)


def _html(text: str) -> str:
  """Of Markdown; tables scroll by themselves, verdicts can be tinted.

  No HTML is taken from it but line breaks, and what `figures.as_is` marks.
  """
  reader = markdown_it.MarkdownIt('commonmark', {'html': False})
  reader.enable('table').add_render_rule('fence', _fence)
  body = reader.render(text).replace('&lt;br&gt;', '<br>')
  body = body.replace('<table>', '<div class="wide" tabindex="0"><table>')
  body = body.replace('</table>', '</table></div>')
  return _VERDICT.sub(r'\1<span class="\2">\2</span>', body)


def _fence(renderer, tokens, at, options, env) -> str:
  if tokens[at].info == figures.AS_IS:
    return tokens[at].content
  return renderer.fence(tokens, at, options, env)


def _overview(results: Sequence[Result]) -> Iterator[str]:
  """Contents and the claims of all, where there are several."""
  titles = [table.escape(result_tables.title(result)) for result in results]
  if len(results) > 1:
    yield f'# Claims\n\n{result_tables.count_verdicts(results)}.\n'
    yield ''.join(f'- [{t}](#e{n})\n' for n, t in enumerate(titles))
    for title, result in zip(titles, results):
      yield f'## {title}\n'
      yield from markdown.claims(result)
