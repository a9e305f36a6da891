"""The result of an experiment, from the folders of its runs."""

from collections.abc import Iterable, Mapping
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from satjax import files, flops
from satjax.lab.experiment import compare, spec, timing
from satjax.lab.experiment.trials import Trial
from satjax.lab.plan import memory
from satjax.lab.report import runs
from satjax.train import phases, workdir


class Trials(NamedTuple):
  """Those of an arm."""

  search: Mapping[float, Trial]  # by learning rate, of the first seed
  by_seed: Mapping[int, Trial]  # of the best learning rate

  @property
  def all(self) -> list[Trial]:
    return [*self.search.values(), *self.by_seed.values()]


def best(
  arm: spec.Arm, search: Mapping[float, Trial]
) -> tuple[float, float] | tuple[None, None]:
  """The lowest validation loss and its learning rate; None: all failed."""
  losses = ((_validation(arm, trial), rate) for rate, trial in search.items())
  known = (found for found in losses if found[0] is not None)
  return min(known, default=(None, None))


def _validation(arm, trial) -> float | None:
  if trial.failure or not trial.is_done:
    return None
  losses = [e['validation'] for e in _known(trial)]
  return min(losses) if arm.early_stop else losses[-1]


def _known(trial) -> list[dict[str, float]]:
  """The evaluations that have numbers; of a run without failure, the last."""
  return [e for e in trial.evaluations if None not in e.values()]


def result(
  experiment: spec.Experiment,
  trials: Mapping[str, Trials],
  timed: Mapping[str, Any] | None,
) -> dict[str, Any]:
  """What experiments/results/NAME.json holds; JSON types only."""
  scenario = experiment.scenario
  arms = {
    name: _arm(experiment.arms[name], of_arm, timed)
    for name, of_arm in trials.items()
  }
  _compare(experiment, arms)
  each = {t.path: t for of_arm in trials.values() for t in of_arm.all}
  value = {
    'name': experiment.name,
    'title': experiment.title,
    'answers': experiment.answers,
    'doc': experiment.doc,
    'family': scenario.family,
    'scale': experiment.scale,
    'scenario': scenario.name,
    'environment': _environment(each) | {'command': workdir.command()},
    'seeds': list(scenario.seeds),
    'learning_rates': list(scenario.learning_rates),
    'process_seconds': sum(map(_process_seconds, each.values())),
    'source': scenario.source,
    'reference': scenario.reference,
    'frontier': list(experiment.frontier),
    'arms': arms,
    'timing': timed,
    'sooner': compare.sooner(arms, scenario.reference),
    'paper': experiment.paper,
    'notes': _notes(experiment, arms),
    'claims': [
      compare.judge(
        claim, arms, scenario.reference, (timed or {}).get('noise', 0)
      )
      for claim in experiment.claims
    ],
  }
  # Seven digits are more than any figure here has.
  return json.loads(
    json.dumps(value), parse_float=lambda text: float(f'{float(text):.7g}')
  )


def _notes(experiment: spec.Experiment, arms: Any) -> list[str]:
  """What the file has to say; no mistake in it costs a result."""
  try:
    return [str(note) for note in experiment.notes(arms)]
  except Exception as error:
    return [f'notes(arms) of {experiment.name}.py failed: {error!r}.']


def untested(experiment: spec.Experiment) -> dict[str, Any]:
  """What there is of a result before anything has run; JSON types only."""
  reference = experiment.scenario.reference
  claims = [compare.judge(c, {}, reference) for c in experiment.claims]
  return {
    'name': experiment.name,
    'title': experiment.title,
    'family': experiment.scenario.family,
    'claims': [claim | {'comparisons': []} for claim in claims],
  }


def _process_seconds(trial) -> float:
  """Of the process, compiling and evaluation included, from all its starts."""
  if not (records := trial.records):
    return 0.0
  columns = runs.columns(records)
  return float(sum(columns[n][-1] for n in columns if n.startswith('time/')))


def _environment(folders: Iterable[pathlib.Path]) -> dict[str, Any]:
  """Of the first run; commits, Pythons, platforms and devices of all."""
  paths = [folder / 'environment.json' for folder in folders]
  each = [files.read_json(path) for path in paths if path.exists()]
  merged = dict(each[0]) if each else {'packages': {}}
  for key in ('commit', 'python', 'platform', 'devices'):
    several = dict.fromkeys(of[key] for of in each if of.get(key))
    merged[key] = ' | '.join(several) or None
  return merged


def _arm(arm, trials, timed) -> dict[str, Any]:
  search, by_seed = trials
  each = [*by_seed.values(), *search.values()]  # the rate that was chosen first
  reasons = [trial.failure for trial in each if trial.failure]
  _, rate = best(arm, search)
  some = next(iter((by_seed or search).values()))
  config, num_steps = some.config, some.config.train.num_steps
  last = phases.phase_at(config, num_steps - 1).stage.model
  omitted = sum(
    (stop - start) * phases.omission_rate(phase)
    for start, stop, phase in phases.stretches(config)
  )
  # What makes an arm besides overrides stands under a name of its own.
  more = {
    name: getattr(arm, name)
    for name, plain in (('prune', 0), ('rate_factor', 1), ('early_stop', False))
    if getattr(arm, name) != plain
  }
  value = {
    'group': arm.group,
    'overrides': {**arm.overrides, **more},
    'label': dict(arm.label),
    'learning_rate': rate,
    'search': {f'{x:g}': _validation(arm, t) for x, t in search.items()},
    'at_edge': len(search) > 1 and rate in (min(search), max(search)),
    'steps': num_steps,
    'tokens': num_steps * config.tokens_per_step,
    'flops': some.flops,
    'seconds': None,
    'omission_rate': omitted / num_steps,
    'parameters': flops.num_params(last),
    **_bytes(config),
    'early_stop': arm.early_stop,
    'judged': some.judged,
    'against': {},
    'speedup': {'time': None, 'flops': None},
    'failed': None,
    'runs': [],
    'loss': None,
    'growth': [],
  }
  if not by_seed or any(trial.failure for trial in by_seed.values()):
    value['failed'] = reasons[0] if reasons else 'it has not run'
    return value
  value['seconds'] = timing.seconds(config, timed)
  value['runs'] = [_run(seed, trial) for seed, trial in by_seed.items()]
  losses = list(compare.losses_of(value).values())
  mean = float(np.mean(losses))
  value['loss'] = {'mean': mean, 'low': min(losses), 'high': max(losses)}
  others = [trial.forgotten for trial in by_seed.values()]
  value['other'] = {
    source: None if None in losses else float(np.mean(losses))
    for source in others[0]
    for losses in [[of[source] for of in others]]
  }
  value['growth'] = runs.hops(some.records)
  return value


def _bytes(config) -> dict[str, float]:
  """Of one device at most, in all and of what trains, by `satjax plan`."""
  mesh = memory.abstract_mesh(config, 1)
  each = [
    memory.memory(config, program.phase, mesh)
    for program in memory.distinct(config)
  ]
  return {
    'bytes': max(found.total for found in each),
    'state_bytes': max(found.state for found in each),
  }


def _run(seed: int, trial: Trial) -> dict[str, Any]:
  evaluations = _known(trial)
  return {
    'seed': seed,
    'folder': trial.path.name,
    **evaluations[-1],
    'seconds': _process_seconds(trial),
    'best': min(evaluations, key=lambda e: e['validation']),
  }


def _compare(experiment: spec.Experiment, arms: dict[str, Any]) -> None:
  """Fills in what each arm is against the reference, where that has a loss."""
  every = [arms[name] for name in experiment.frontier]
  lengths = [arm for arm in every if not arm['failed']]
  usual = compare.usual_spread(arms)
  for equal, cost in (('steps',) * 2, ('flops',) * 2, ('time', 'seconds')):
    if not lengths or not all(arm[cost] for arm in lengths):
      continue
    frontiers = {
      split: compare.frontier(lengths, cost, split)
      for split in ('test', 'validation')
    }
    for name, arm in arms.items():
      alike = arm.get('judged') == lengths[0].get('judged')
      if arm['failed'] or name in experiment.frontier or not alike:
        continue
      if arm[cost]:
        _compare_at(arm, equal, cost, frontiers, usual)


def _compare_at(arm, equal: str, cost: str, frontiers, usual) -> None:
  other = {split: compare.at(of, arm[cost]) for split, of in frontiers.items()}
  found = compare.compared(arm, other.get, usual)
  if found:
    arm['against'][equal] = found
  if equal != 'steps':
    own, mean = compare.losses_of(arm), arm['loss']['mean']
    paired = {s: of for s, of in frontiers['test'].items() if s in own}
    arm['speedup'][equal] = compare.speedup(paired, arm[cost], mean)
