"""satjax preview."""

from typing import Any

from satjax.commands import shared

SUMMARY = (
  'show rows of a configuration as the model gets them: which tokens are'
  ' learned, which are only read; --out writes the same as HTML'
)
OPTIONS = (
  shared.required(shared.CONFIG, '--config')
  | {
    '--batch': shared.preset('N', 'number of the batch, from 0', 0),
    '--rows': shared.preset('N', 'of the batch, at most', 4),
  }
  | shared.OUT
  | {
    '--json': shared.flag(
      'print a JSON object a row instead: ids, learned (0 or 1 of each), text'
    )
  }
)


def run(options: Any) -> None:
  from satjax.data import preview
  from satjax.interop import settings

  config = settings.load(options.config, options.overrides)
  preview.preview(
    config,
    step=options.batch,
    num_rows=options.rows,
    out=options.out,
    as_json=options.json,
  )
