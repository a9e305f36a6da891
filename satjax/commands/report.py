"""satjax report."""

from typing import Any

from satjax.commands import shared

SUMMARY = 'tables of some runs; --out writes them with plots as one HTML file'
OPTIONS = {
  'workdirs': {'metavar': 'DIR', 'nargs': '+', 'help': 'folders of runs'},
  **shared.OUT,
}


def run(options: Any) -> None:
  from satjax import report

  print(report.tables(options.workdirs), end='')
  if options.out:
    report.report(options.workdirs, options.out)
    print(f'wrote {options.out}')
