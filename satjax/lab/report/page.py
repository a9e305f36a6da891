"""Runs and results of experiments: text for the terminal, and one HTML file."""

from collections.abc import Iterator, Sequence
import html
import os
import pathlib
import string
from typing import NamedTuple

from satjax import errors, files
from satjax.lab.report import (
  figures,
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


class Content(NamedTuple):
  """What a report is about."""

  runs: list[Run]
  results: list[Result]
  probes: list[probes_lib.Probe]


def read(paths: Sequence[str | os.PathLike]) -> Content:
  """Reads folders of runs, result files, and folders of result files.

  Raises, besides what `runs.read` and `results.read` do:
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
    value = results_lib.read(file, probes_lib.is_probe)
    if probes_lib.is_probe(value):
      content.probes.append(probes_lib.check(value, file))
    else:
      content.results.append(value)
  return content


def tables(content: Content) -> str:
  """The tables as plain text; needs no matplotlib."""
  found = run_tables.tables(content.runs) if content.runs else []
  for result in content.results:
    name = result_tables.title(result)
    for each in (
      result_tables.claims(result),
      result_tables.arms(result, brief=True),
      *result_tables.besides(result),
    ):
      if each.rows:
        found.append(each._replace(title=f'{name}: {each.title}'))
  for probe in content.probes:
    found += probes_lib.tables(probe)
  return '\n'.join(map(table.text, found))


def report(content: Content, out: str | os.PathLike) -> None:
  """Writes tables and pictures as one self-contained HTML file.

  Equal inputs give equal bytes.
  """
  results = content.results
  parts = list(_overview(results))
  for number, result in enumerate(results):
    parts += _experiment(number, result)
  for number, probe in enumerate(content.probes):
    parts += probes_lib.html(number, probe)
  if content.runs:
    is_alone = len(parts) == 0
    parts += _runs(content.runs, 2 if is_alone else 3)
  names = [result_tables.title(result) for result in results]
  names += map(probes_lib.title, content.probes)
  names += [run.name for run in content.runs]
  page = string.Template(_PAGE.read_text()).substitute(
    title=html.escape(', '.join(names)),
    heading=f'satjax {_kind(content)}',
    body=''.join(parts),
  )
  files.save(pathlib.Path(out), page)


def _kind(content: Content) -> str:
  if content.results:
    return 'experiments'
  return 'probes' if content.probes else 'runs'


def _overview(results: Sequence[Result]) -> Iterator[str]:
  """Contents and the claims of all, where there are several."""
  if len(results) > 1:
    items = ''.join(
      f'<li><a href="#e{number}">{html.escape(title)}</a></li>'
      for number, title in enumerate(map(result_tables.title, results))
    )
    yield f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n'
    claims = result_tables.all_claims(results)
    if claims.rows:
      yield table.html(claims, 2)


def _experiment(number: int, result: Result) -> Iterator[str]:
  title = html.escape(result_tables.title(result))
  yield f'<h2 id="e{number}">{title}</h2>\n{_doc(result)}'
  claims = result_tables.claims(result)
  if claims.rows:
    yield table.html(claims)
  pictures = [
    figures.html_picture(picture, f'e{number}-{order}', 3)
    for order, picture in enumerate(plots.pictures(result))
  ]
  yield from pictures[:1]
  yield table.html(result_tables.arms(result))
  yield from pictures[1:]
  yield from map(table.html, result_tables.besides(result))
  notes = ''.join(
    f'<p>{html.escape(note)}</p>' for note in result_tables.notes(result)
  )
  yield f'<section><h3>Notes</h3><div class="note">{notes}</div></section>\n'


def _doc(result: Result) -> str:
  """The docstring; its headed paragraphs as a list of terms."""
  parts = []
  for term, text in result_tables.doc(result):
    term, text = html.escape(term), html.escape(text)
    headed = f'<dt>{term}</dt><dd>{text}</dd>'
    parts.append(headed if term else f'</dl><p>{text}</p><dl>')
  return f'<dl>{"".join(parts)}</dl>\n'.replace('<dl></dl>', '')


def _runs(runs: Sequence[Run], level: int) -> Iterator[str]:
  if level > 2:
    yield '<h2>Runs</h2>\n'
  for each in run_tables.tables(runs):
    yield table.html(each, level)
  for number, picture in enumerate(run_plots.of_runs(runs), 1):
    yield figures.html_picture(picture, f'r{number}', level)
