"""What an experiment would run, and how many FLOPs that takes."""

from collections.abc import Sequence
import pathlib

from satjax import flops
from satjax.lab.experiment import run as run_lib
from satjax.lab.experiment import spec
from satjax.lab.plan import stretches

_DEVICE, _UTILISATION = 'NVIDIA H200', 0.4  # of dense steps, a usual share


def render(path: str, scale: str, overrides: Sequence[str] = ()) -> str:
  """The arms of an experiment as a Markdown table; nothing runs.

  Raises:
    ConfigError: as `run.run`.
  """
  experiment = spec.load(path, scale, overrides)
  scenario = experiment.scenario
  search = run_lib.plan(experiment, pathlib.Path())
  lines = [
    f'{experiment.title}, scale {scale}: {len(search)} arms, learning rates'
    f' {", ".join(f"{x:g}" for x in scenario.learning_rates)}, seeds'
    f' {", ".join(map(str, scenario.seeds))}.',
    '',
    '| arm | steps | tokens | FLOPs of a run | FLOPs limit | runs |',
    '|' + ' --- |' * 6,
  ]
  total, more = 0.0, len(scenario.seeds) - 1
  for name, of_arm in search.items():
    run = next(iter(of_arm.values()))
    count = len(of_arm) + more
    total += count * run.flops
    steps = run.config.train.num_steps
    limit = stretches.plan(run.config).speedup
    lines.append(
      f'| {name} | {steps:,} | {steps * run.config.tokens_per_step:,} |'
      f' {run.flops:.3e} | {limit:.2f}x | {count} |'
    )
  bases = {
    run.base.model: run.base
    for of_arm in search.values()
    for run in of_arm.values()
    if run.base
  }
  hours = total / (_UTILISATION * flops.PEAK[_DEVICE]) / 3600
  text = f'{total:.3e} FLOPs in all'
  if bases:
    text += f', {len(bases)} bases not counted'
  if hours > 0.01:
    text += (
      f': {hours:,.3g} hours of one {_DEVICE} at {_UTILISATION:.0%} of its'
    )
    text += ' peak'
  lines += ['', f'{text}.']
  return '\n'.join(lines)
