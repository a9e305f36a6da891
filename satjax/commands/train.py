"""satjax train."""

from typing import Any

from satjax.commands import shared

SUMMARY = 'train a model, or go on with the run in --workdir'
OPTIONS = shared.required(
  shared.CONFIG | shared.WORKDIR | shared.ALLOCATION | shared.PROCESSES,
  *('--config', '--workdir'),
)


def run(options: Any) -> None:
  from satjax import distributed
  from satjax.train import loop, workdir

  is_begun = workdir.has_begun(options.workdir)
  begun = workdir.read_config(options.workdir) if is_begun else None
  config = shared.load_config(options, begun)
  with distributed.processes(
    options.coordinator,
    options.num_processes,
    options.process_id,
    options.heartbeat,
  ):
    loop.train(config, options.workdir)
