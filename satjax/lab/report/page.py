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
  words,
)
from satjax.lab.report import results as results_lib
from satjax.lab.report import runs as runs_lib
from satjax.lab.report.results import Result
from satjax.lab.report.runs import Run

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>satjax: $title</title>
<style>
:root {
  color-scheme: light dark; --ink: #24292f; --page: #fff; --line: #d3d8de;
  --faint: #59636e; --good: #00674b; --bad: #9a3c00; --tint: #f4f6f8;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e6edf3; --page: #0f1419; --line: #3b424a; --faint: #9aa4af;
    --good: #4fcfa5; --bad: #ff9d66; --tint: #182028;
  }
}
* { box-sizing: border-box; }
body {
  font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem;
  padding: 0 1rem; color: var(--ink); background: var(--page);
  overflow-wrap: anywhere;
}
h1 { font-size: 1.5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
h2::first-letter, h3::first-letter { text-transform: uppercase; }
a { color: inherit; text-underline-offset: .15em; }
nav ul { columns: 18rem; padding-left: 1.2rem; }
section > p, .note { color: var(--faint); margin: .25rem 0 .75rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { color: var(--faint); } dd { margin: 0; } dl p { margin: 0; }
.wide { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid var(--line); }
td, thead th { text-align: right; vertical-align: top; }
td { min-width: 4rem; white-space: pre; }
td.across { text-align: left; white-space: normal; max-width: 40rem; }
th, thead th:first-child, .prose td, .prose thead th { text-align: left; }
th { font-weight: normal; vertical-align: top; }
thead th { font-weight: 600; vertical-align: bottom; max-width: 9rem; }
tbody th {
  position: sticky; left: 0; background: var(--page); min-width: 11rem;
  max-width: 14rem;
}
.prose tbody th, .prose td {
  min-width: 11rem; max-width: 26rem; white-space: pre-line;
}
.prose thead th + th, .prose th + td { min-width: 6.5rem; }
tbody .group th {
  position: static; background: var(--tint); max-width: none; font-weight: 600;
}
.group span { position: sticky; left: .5rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.panels { display: flex; flex-wrap: wrap; gap: 1rem; }
.panels > div { min-width: 0; max-width: 100%; }
.panels svg { display: block; width: 100%; height: auto; }
.legend {
  display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .5rem 0;
  padding: 0; list-style: none; font-size: .9em;
}
.legend svg { width: 28px; height: 12px; fill: none; overflow: visible; }
.picture, tr { break-inside: avoid; }
@media (max-width: 34rem) {
  body { margin: 1rem auto; padding: 0 .75rem; }
  dl { display: block; } dd { margin-bottom: .5rem; }
  td, th { padding: .25rem .5rem; }
  tbody th, .prose tbody th { min-width: 7rem; max-width: 8.5rem; }
}
@media print {
  body { font-size: 9pt; margin: 0; max-width: none; padding: 0; }
  h2 { break-before: page; } h2, h3 { break-after: avoid; }
  .wide { overflow: visible; }
  td, th, tbody th, .prose td, .prose tbody th {
    padding: .1rem .2rem; font-size: 6.5pt; min-width: 0; position: static;
    white-space: pre-line;
  }
}
</style>
<h1>$heading</h1>
$body</html>
"""


class Content(NamedTuple):
  """What a report is about."""

  runs: list[Run]
  results: list[Result]


def read(paths: Sequence[str | os.PathLike]) -> Content:
  """Reads folders of runs, result files, and folders of result files.

  Raises:
    ConfigError: nothing to show, or something given twice.
    DataError: a file that is empty or broken; names it, and the key.
    StorageError: a file that cannot be read.
  """
  found = [(path, results_lib.find(path)) for path in paths]
  named = [file for _, several in found for file in several]
  workdirs = [path for path, several in found if not several]
  if len({file.resolve() for file in named}) < len(named):
    raise errors.ConfigError(
      f'results {[str(file) for file in named]}: name each once'
    )
  runs = runs_lib.read(workdirs) if workdirs or not named else []
  return Content(runs, [results_lib.read(file) for file in named])


def tables(content: Content) -> str:
  """The tables as plain text; needs no matplotlib."""
  found = run_tables.tables(content.runs) if content.runs else []
  for result in content.results:
    name = words.title(result)
    for each in (
      result_tables.claims(result),
      result_tables.arms(result, brief=True),
      result_tables.hops(result),
    ):
      if each.rows:
        found.append(each._replace(title=f'{name}: {each.title}'))
  return '\n'.join(map(table.text, found))


def report(content: Content, out: str | os.PathLike) -> None:
  """Writes tables and pictures as one self-contained HTML file.

  Equal inputs give equal bytes.

  Raises:
    ConfigError: matplotlib is not installed.
    StorageError: the file cannot be written.
  """
  results = content.results
  parts = list(_overview(results))
  for number, result in enumerate(results):
    parts += _experiment(number, result)
  if content.runs:
    parts += _runs(content.runs, 2 if not results else 3)
  names = [words.title(result) for result in results]
  names += [run.name for run in content.runs]
  page = string.Template(_PAGE).substitute(
    title=html.escape(', '.join(names)),
    heading='satjax experiments' if results else 'satjax runs',
    body=''.join(parts),
  )
  files.save(pathlib.Path(out), page)


def _overview(results: Sequence[Result]) -> Iterator[str]:
  """Contents and the claims of all, where there are several."""
  if len(results) > 1:
    items = ''.join(
      f'<li><a href="#e{number}">{html.escape(words.title(result))}</a></li>'
      for number, result in enumerate(results)
    )
    yield f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n'
    claims = result_tables.all_claims(results)
    if claims.rows:
      yield table.html(claims, 2)


def _experiment(number: int, result: Result) -> Iterator[str]:
  title = html.escape(words.title(result))
  yield f'<h2 id="e{number}">{title}</h2>\n{_doc(result)}'
  claims, hops = result_tables.claims(result), result_tables.hops(result)
  if claims.rows:
    yield table.html(claims)
  pictures = [
    figures.html_picture(picture, f'e{number}-{order}', 3)
    for order, picture in enumerate(plots.pictures(result))
  ]
  yield from pictures[:1]
  yield table.html(result_tables.arms(result))
  yield from pictures[1:]
  if hops.rows:
    yield table.html(hops)
  notes = ''.join(f'<p>{html.escape(note)}</p>' for note in words.notes(result))
  yield f'<section><h3>Notes</h3><div class="note">{notes}</div></section>\n'


def _doc(result: Result) -> str:
  """The docstring; its headed paragraphs as a list of terms."""
  parts = []
  for term, text in words.doc(result):
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
