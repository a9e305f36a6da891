"""The result of an experiment, from the folders of its runs."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

import numpy as np

from satjax import flops
from satjax.config.groups import ModelConfig
from satjax.config.run import Config
from satjax.lab.experiment import compare, curves, spec, timing
from satjax.lab.experiment.runs import Run
from satjax.train import phases, workdir


@dataclasses.dataclass(frozen=True)
class Found:
  """The runs of an arm.

  Attributes:
    search: by learning rate, the run of the first seed.
    runs: of the best learning rate, by seed.
  """

  search: Mapping[float, Run]
  runs: Mapping[int, Run]


def best_rate(arm: spec.Arm, search: Mapping[float, Run]) -> float | None:
  """The learning rate of the lowest validation loss; None: all failed."""
  losses = {rate: _validation(arm, run) for rate, run in search.items()}
  known = {rate: loss for rate, loss in losses.items() if loss is not None}
  return min(known, key=known.get) if known else None


def _validation(arm, run) -> float | None:
  if run.failure:
    return None
  losses = [e['validation'] for e in run.evaluations]
  return min(losses) if arm.early_stop else losses[-1]


def result(
  experiment: spec.Experiment,
  found: Mapping[str, Found],
  timed: Mapping[str, Any] | None,
) -> dict[str, Any]:
  """What experiments/results/NAME.json holds; JSON types only."""
  scenario = experiment.scenario
  arms = {
    name: _arm(experiment.arms[name], of_arm, timed, scenario.family)
    for name, of_arm in found.items()
  }
  _compare(experiment, arms)
  runs = {r.path: r for of in found.values() for r in _all(of)}
  first = next(iter(runs.values())).path
  environment = json.loads((first / 'environment.json').read_text())
  value = {
    'name': experiment.name,
    'title': experiment.title,
    'doc': experiment.doc,
    'family': scenario.family,
    'scale': experiment.scale,
    'scenario': scenario.name,
    'environment': environment | {'command': workdir.command()},
    'seeds': list(scenario.seeds),
    'learning_rates': list(scenario.learning_rates),
    'process_seconds': sum(map(_process_seconds, runs.values())),
    'source': scenario.source,
    'reference': scenario.reference,
    'frontier': list(experiment.frontier),
    'arms': arms,
    'timing': timed,
    'paper': experiment.paper,
    'notes': list(experiment.notes(arms)),
    'claims': [
      compare.judge(claim, arms, scenario.reference)
      for claim in experiment.claims
    ],
  }
  return json.loads(json.dumps(value), parse_float=_short)


def untested(experiment: spec.Experiment) -> dict[str, Any]:
  """What there is of a result before anything has run; JSON types only."""
  reference = experiment.scenario.reference
  claims = [compare.judge(c, {}, reference) for c in experiment.claims]
  return {
    'name': experiment.name,
    'title': experiment.title,
    'family': experiment.scenario.family,
    'claims': [claim | {'ours': ''} for claim in claims],
  }


def _short(text: str) -> float:
  """Seven digits are more than any figure here has."""
  return float(f'{float(text):.7g}')


def _all(found: Found) -> list[Run]:
  return [*found.search.values(), *found.runs.values()]


def _process_seconds(run) -> float:
  """Of the process, compiling and evaluation included."""
  timed = [r for r in run.records if 'time/step' in r]
  if not timed:
    return 0.0
  return sum(x for n, x in timed[-1].items() if n.startswith('time/'))


def _arm(arm, found, timed, family) -> dict[str, Any]:
  reasons = [run.failure for run in _all(found) if run.failure]
  rate = best_rate(arm, found.search)
  some = next(iter((found.runs or found.search).values()))
  config = some.config
  value = {
    'group': arm.group,
    'overrides': {**arm.overrides, **_more(arm)},
    'label': dict(arm.label),
    'learning_rate': rate,
    'search': {f'{x:g}': _validation(arm, r) for x, r in found.search.items()},
    'at_edge': len(found.search) > 1
    and rate in (min(found.search), max(found.search)),
    'steps': config.train.num_steps,
    'tokens': config.train.num_steps * config.tokens_per_step,
    'flops': some.flops,
    'seconds': None,
    'omission_rate': _omission_rate(config),
    'parameters': flops.num_params(_last_model(config)),
    'early_stop': arm.early_stop,
    'against': {},
    'speedup': {'time': None, 'flops': None},
    'failed': None,
  }
  good = {s: r for s, r in found.runs.items() if not r.failure}
  if rate is None or len(good) < len(found.runs) or not good:
    value['failed'] = reasons[0] if reasons else 'it has not run'
    return value | {'runs': [], 'loss': None} | curves.none()
  by_step = None
  if family == 'sat':
    by_step = timing.seconds(config, timed)
  if by_step is not None:
    value['seconds'] = float(by_step[-1])
  value['runs'] = [_run(seed, run) for seed, run in good.items()]
  losses = list(compare.losses_of(value).values())
  value['loss'] = {
    'mean': float(np.mean(losses)),
    'low': min(losses),
    'high': max(losses),
  }
  return value | curves.of(list(good.values()), by_step)


def _more(arm: spec.Arm) -> dict[str, Any]:
  """What makes an arm besides overrides, under a name of its own."""
  plain = spec.Arm('', {})
  return {
    name: getattr(arm, name)
    for name in ('prune', 'rate_factor', 'early_stop')
    if getattr(arm, name) != getattr(plain, name)
  }


def _last_model(config: Config) -> ModelConfig:
  return phases.phase_at(config, config.train.num_steps - 1).stage.model


def _omission_rate(config) -> float:
  """The mean over the steps, as realised."""
  omitted = sum(
    (stop - start) * phases.omission_rate(phase)
    for start, stop, phase in phases.stretches(config)
  )
  return omitted / config.train.num_steps


def _run(seed: int, run: Run) -> dict[str, Any]:
  found = run.evaluations
  best = min(found, key=lambda e: e['validation'])
  return {
    'seed': seed,
    'folder': run.path.name,
    **found[-1],
    'seconds': _process_seconds(run),
    'best': best,
  }


def _compare(experiment: spec.Experiment, arms: dict[str, Any]) -> None:
  """Fills in what each arm is against the reference."""
  lengths = [arms[name] for name in experiment.frontier if name in arms]
  if not lengths or any(arm['failed'] for arm in lengths):
    return
  names = {'steps': 'steps', 'flops': 'flops'}
  if all(arm['seconds'] for arm in lengths):
    names['time'] = 'seconds'
  for equal, name in names.items():
    losses = [compare.losses_of(arm) for arm in lengths]
    xs = np.array([arm[name] for arm in lengths], np.float64)
    frontier = {
      seed: (xs, np.array([of[seed] for of in losses])) for seed in losses[0]
    }
    for arm_name, arm in arms.items():
      if arm['failed'] or arm_name in experiment.frontier or not arm[name]:
        continue
      other = compare.at(frontier, arm[name])
      if other is not None:
        found = compare.difference(compare.losses_of(arm), other)
        arm['against'][equal] = found
      if equal != 'steps':
        arm['speedup'][equal] = compare.speedup(
          frontier, arm[name], arm['loss']['mean']
        )
