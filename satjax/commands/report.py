"""satjax report."""

import pathlib
from typing import Any

from satjax import errors

SUMMARY = 'tables of runs and of results; --out writes them with plots as HTML'
OPTIONS = {
  'paths': {
    'metavar': 'PATH',
    'nargs': '+',
    'help': 'folder of a run, result file of an experiment, or a folder of'
    ' result files, such as experiments/results',
  },
  '--out': {
    'metavar': 'PATH',
    'help': 'HTML file to write; in a folder, report.html',
  },
  '--plots': {
    'metavar': 'DIR',
    'help': 'write each plot of the results as PNG and SVG, too',
  },
  '--page': {
    'metavar': 'FILE',
    'help': 'write the claims of all results as Markdown: docs/results.md',
  },
}


def run(options: Any) -> None:
  from satjax.report import page

  content = page.read(options.paths)
  if (options.plots or options.page) and not content.results:
    raise errors.ConfigError(
      '--plots and --page are of results; name a result file of an experiment,'
      ' or a folder of them'
    )
  print(page.tables(content), end='')
  for path in _write(content, options):
    print(f'wrote {path}')


def _write(content: Any, options: Any) -> list[Any]:
  from satjax.report import markdown, page, plots, render

  paths = []
  if options.out:
    out = pathlib.Path(options.out)
    if out.is_dir() or options.out.endswith('/'):
      out = out / 'report.html'
    page.report(content, out)
    paths.append(out)
  if options.plots:
    for result in content.results:
      named = plots.named(result, plots.pictures(result))
      paths += render.save(named, options.plots)
  if options.page:
    text = markdown.results_page(content.results)
    render.write(pathlib.Path(options.page), text.encode())
    paths.append(options.page)
  return paths
