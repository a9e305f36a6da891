"""satjax train."""

from typing import Any

from satjax.commands import shared

SUMMARY = 'train a model, or go on with the run in --workdir'
OPTIONS = shared.required(
  shared.CONFIG | shared.WORKDIR, '--config', '--workdir'
)


def run(options: Any) -> None:
  from satjax import config_file
  from satjax.train import loop

  config = config_file.load(options.config, options.overrides)
  loop.train(config, options.workdir)
