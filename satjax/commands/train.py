"""satjax train."""

from typing import Any

from satjax.commands import shared

SUMMARY = 'train a model, or go on with the run in --workdir'
OPTIONS = shared.required(
  shared.CONFIG | shared.WORKDIR | shared.PROCESSES, '--config', '--workdir'
)


def run(options: Any) -> None:
  from satjax import distributed
  from satjax.interop import settings
  from satjax.train import loop, workdir

  begun = workdir.begun(options.workdir)
  config = settings.load(options.config, options.overrides, begun)
  with distributed.processes(
    options.coordinator,
    options.num_processes,
    options.process_id,
    options.heartbeat,
  ):
    loop.train(config, options.workdir)
