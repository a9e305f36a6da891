"""Traces of a dense step, of a SAT step and of a refresh, for Perfetto."""

from collections.abc import Sequence
import json
import os
import pathlib

import jax

from satjax import files
from satjax.config.run import Config
from satjax.lab.bench import arms as bench_arms
from satjax.lab.bench import machine as bench_machine
from satjax.train import setup as setup_lib

_WARMUP = 3


def profile(
  config: Config,
  directory: str | os.PathLike,
  *,
  rate: float = 0.5,
  forward: str = 'skip',
  unit: str = 'neurons',
  steps: int = 3,
  devices: Sequence[jax.Device] | None = None,
) -> list[pathlib.Path]:
  """Traces the dense arm, and one of SAT, of random weights and tokens.

  Args:
    directory: for a folder of each of the two or three.
    rate: omission rate.
    forward: what the omitted part does in the forward pass.
    unit: what is left out, one of `arms.UNITS`.
    steps: in a trace; as many refreshes.
    devices: None: all.

  Returns:
    The folders. Each has a perfetto_trace.json.gz, and beside it an .xplane.pb
    for XProf.

  Raises:
    ConfigError: adapters train, or the model cannot realise the rate.
    StorageError: `directory` cannot be written.
  """
  config, place = bench_arms.fresh(config), pathlib.Path(directory)
  files.save(place / 'config.json', json.dumps(config.to_dict()) + '\n')
  wanted = {
    'dense': bench_arms.with_rate(config, 0.0, 'skip'),
    f'{forward}_{rate:g}': bench_arms.with_rate(config, rate, forward, unit),
  }
  found = []
  for name, changed in wanted.items():
    # A cache would give back programs whose operations have other names.
    with bench_machine.empty_cache():
      arm = bench_arms.open_arm(setup_lib.make_setup(changed, devices))
    tasks = {f'{name}_step': arm.steps}
    if arm.refreshes:
      tasks[f'{name}_refresh'] = arm.refresh
    for label, task in tasks.items():
      task(_WARMUP)
      folder = place / label
      with jax.profiler.trace(folder, create_perfetto_trace=True):
        task(steps)
      found += sorted(folder.rglob('perfetto_trace.json.gz'))[-1:]
    del arm, tasks, task
  return found
