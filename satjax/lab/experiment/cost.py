"""What an experiment would run, how many FLOPs and how much disk that takes."""

import os
import pathlib

from satjax import console, flops
from satjax.lab.experiment import disk, spec
from satjax.lab.experiment import run as run_lib
from satjax.lab.plan import stretches

_DEVICE, _UTILISATION = 'NVIDIA H200', 0.4  # of dense steps, a usual share
_COLUMNS = 'arm', 'steps', 'tokens', 'FLOPs of a run', 'FLOPs limit', 'runs'


def render(experiment: spec.Experiment, jobs: int = 1) -> str:
  """The arms of an experiment as a Markdown table; nothing runs.

  What is found in a workdir does not count. ConfigError: an arm cannot be.
  """
  scenario, nowhere = experiment.scenario, pathlib.Path(os.devnull)
  search = run_lib.plan(experiment, nowhere)
  rows, last = [], run_lib.finalists(experiment, search)
  for name, of_arm in search.items():
    config = next(iter(of_arm.values())).config
    count = len(of_arm) + (len(scenario.seeds) - 1) * (name in last)
    steps, found = config.train.num_steps, stretches.plan(config)
    sizes = f'{steps:,}', f'{steps * config.tokens_per_step:,}'
    costs = f'{found.flops:.3e}', f'{found.speedup:.2f}x'
    rows.append([name, *sizes, *costs, str(count)])
  trials = run_lib.every_trial(experiment, nowhere, search)
  every = {trial.path: trial for trial in trials}.values()  # some arms share
  total = sum(trial.flops for trial in every)
  hours = total / (_UTILISATION * flops.PEAK[_DEVICE]) / 3600
  text = f'{total:.3e} FLOPs in all'
  if scenario.widen:
    text += f', and up to {scenario.widen} rates more where one is at an edge'
  bases = {trial.base.model for trial in every if trial.base}
  if bases:
    text += f', {len(bases)} bases not counted'
  if hours > 0.01:
    text += f': {hours:,.3g} hours of one {_DEVICE} at {_UTILISATION:.0%} of'
    text += ' its peak'
  rates = ', '.join(f'{x:g}' for x in scenario.learning_rates)
  seeds = ', '.join(map(str, scenario.seeds))
  return (
    f'{experiment.title}, scale {experiment.scale}: {len(search)} arms,'
    f' learning rates {rates}, seeds {seeds}.\n\n'
    f'{console.markdown(_COLUMNS, rows)}\n{text}.\n'
    f'{disk.in_words(disk.needed(every, jobs))}.'
  )
