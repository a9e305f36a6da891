"""satjax train."""

from typing import Any

from satjax.commands import shared

SUMMARY = 'train a model, or go on with the run in --workdir'
OPTIONS = shared.required(
  shared.CONFIG | shared.WORKDIR | shared.PROCESSES, '--config', '--workdir'
)


def run(options: Any) -> None:
  from satjax import distributed
  from satjax.config import file as config_file
  from satjax.train import loop

  config = config_file.load(options.config, options.overrides)
  with distributed.processes(
    options.coordinator,
    options.num_processes,
    options.process_id,
    options.heartbeat,
  ):
    loop.train(config, options.workdir)
