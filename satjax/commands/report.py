"""satjax report."""

import pathlib
from typing import Any

from satjax import errors, files
from satjax.commands import shared

SUMMARY = 'tables of runs and of results; --out writes them with plots as HTML'
OPTIONS = {
  'paths': shared.value(
    'PATH',
    'folder of a run, result file of an experiment, or a folder of'
    ' result files, such as experiments/results; for --page also experiment'
    ' files (.py): what they claim is not tested until there is a result',
    nargs='+',
  ),
  '--out': shared.value('PATH', 'HTML file to write; in a folder, report.html'),
  '--plots': shared.value(
    'DIR', 'write each plot of the results as PNG and SVG, too'
  ),
  '--page': shared.value(
    'FILE', 'write the claims of all results as Markdown: docs/results.md'
  ),
}


def run(options: Any) -> None:
  from satjax.lab.report import markdown, page, plots

  claims = [path for path in options.paths if path.endswith('.py')]
  if claims and not options.page:
    raise errors.ConfigError(
      f'{claims[0]}: what an experiment claims is for --page; name its result'
      ' file, or the folder of a run'
    )
  content = page.read([path for path in options.paths if path not in claims])
  if (options.plots or options.page) and not content.results:
    raise errors.ConfigError(
      '--plots and --page are of results; name a result file of an experiment,'
      ' or a folder of them'
    )
  untested = _untested(claims, content.results)
  print(page.tables(content), end='')
  written = []
  if options.out:
    out = pathlib.Path(options.out)
    if out.is_dir() or options.out.endswith('/'):
      out = out / 'report.html'
    elif out.suffix not in ('.html', '.htm'):
      raise errors.ConfigError(
        f'--out={options.out}: a report is HTML; name a file that ends so, such'
        ' as report.html, or a folder'
      )
    page.report(content, out)
    written.append(out)
  if options.plots:
    for result in content.results:
      written += plots.write_plots(result, options.plots)
  if options.page:
    text = markdown.results_page(content.results, untested)
    files.save(pathlib.Path(options.page), text)
    written.append(options.page)
  for path in written:
    print(f'wrote {path}')


def _untested(claims: list[str], results: list[Any]) -> list[Any]:
  """Of the experiments that have no result, what they claim."""
  from satjax.lab.experiment import results as results_lib
  from satjax.lab.experiment import spec

  done = {result['name'] for result in results}
  experiments = [spec.load(path, 'cpu') for path in claims]
  return [results_lib.untested(e) for e in experiments if e.name not in done]
