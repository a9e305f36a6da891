"""From arms to runs: the configuration of each, and the folder that it has.

A run's folder is named by a hash of what it does, so that experiments which
have an arm in common, a base, or all runs of the reference, share them.
"""

from collections.abc import Callable
import copy
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from satjax import errors
from satjax.config.run import Config
from satjax.lab.experiment import spec
from satjax.sparsity import counts
from satjax.train import metrics, phases

_FAILED = 'failed.json'


@dataclasses.dataclass(frozen=True)
class Base:
  """A model that runs start from: trained, and perhaps pruned.

  Attributes:
    config: of its training.
    path: its folder.
    prune: share of heads and channels that are cut off.
  """

  config: Config
  path: pathlib.Path
  prune: float = 0.0

  @property
  def model(self) -> pathlib.Path:
    """A Hugging Face directory."""
    name = f'model-without-{self.prune:g}' if self.prune else 'model'
    return self.path / name


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run.

  Attributes:
    config: of the run; `init_from` is not set where `base` is.
    path: its folder.
    base: what it starts from; None: random weights.
  """

  config: Config
  path: pathlib.Path
  base: Base | None = None

  @property
  def final_config(self) -> Config:
    """With the path of the base, as the run gets it."""
    if not self.base:
      return self.config
    model = dataclasses.replace(
      self.config.model, init_from=str(self.base.model)
    )
    return dataclasses.replace(self.config, model=model)

  @property
  def failure(self) -> str | None:
    """Why it ended without a model, if it did."""
    path = self.path / _FAILED
    return json.loads(path.read_text())['reason'] if path.exists() else None

  @property
  def records(self) -> list[dict[str, float]]:
    return metrics.read(self.path)

  @property
  def evaluations(self) -> list[dict[str, float]]:
    """Step, validation and test loss of each one after the first step."""
    source = self.config.data.eval[0]
    names = f'eval/{source}/loss', f'test/{source}/loss'
    return [
      {'step': r['step'], 'validation': r[names[0]], 'test': r[names[1]]}
      for r in self.records
      if names[1] in r and r['step'] > 0
    ]

  @property
  def is_done(self) -> bool:
    last = self.config.train.num_steps
    return bool(self.failure) or any(
      found['step'] == last for found in self.evaluations
    )

  @property
  def flops(self) -> float:
    """Of all steps, as executed."""
    return total_flops(self.config)


def total_flops(config: Config) -> float:
  """Of all steps of a run, as executed."""
  return sum(
    (stop - start) * phases.phase_flops(config, phase)
    for start, stop, phase in phases.stretches(config)
  )


def make_run(
  workdir: pathlib.Path,
  scenario: spec.Scenario,
  arm: spec.Arm,
  learning_rate: float,
  seed: int,
) -> Run:
  """The run of an arm with a learning rate and a seed.

  Raises:
    ConfigError: the arm's settings cannot be; names the arm.
  """
  try:
    config = _configure(scenario, arm, learning_rate * arm.rate_factor, seed)
  except (KeyError, TypeError, ValueError) as error:
    raise errors.ConfigError(f'arm {arm.name!r}: {error}') from error
  base = make_base(workdir, scenario, arm.prune)
  name = _digest(config.to_dict(), base and [base.path.name, base.model.name])
  return Run(config, workdir / 'runs' / f'{scenario.name}-{name}', base)


def make_base(
  workdir: pathlib.Path, scenario: spec.Scenario, prune: float = 0.0
) -> Base | None:
  """What the arms of a scenario start from."""
  if scenario.base is None:
    return None
  config = Config.from_dict(scenario.base)
  return Base(config, workdir / 'bases' / _digest(config.to_dict()), prune)


def _digest(*values: Any) -> str:
  text = json.dumps(values, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _configure(scenario, arm, learning_rate, seed) -> Config:
  values = copy.deepcopy(scenario.config)
  reference = Config.from_dict(values)
  values.update_from_flattened_dict(dict(arm.overrides))
  optimizer = values.optimizer
  optimizer.end_lr *= learning_rate / optimizer.peak_lr
  optimizer.peak_lr = learning_rate
  values.train.seed = values.data.seed = seed
  if arm.prune:
    values.model.update(_pruned_sizes(values, arm.prune))

  def with_steps(steps: int) -> Config:
    changed = copy.deepcopy(values)
    share = steps / values.train.num_steps
    changed.train.num_steps = steps
    changed.optimizer.warmup_steps = max(
      1, round(share * optimizer.warmup_steps)
    )
    if values.train.eval_every:
      changed.train.eval_every = max(1, round(share * values.train.eval_every))
    return Config.from_dict(changed)

  if arm.equal == 'steps':
    return with_steps(round(arm.length * values.train.num_steps))
  return _with_flops(arm.length * total_flops(reference), with_steps)


def _pruned_sizes(values, rate) -> dict[str, int]:
  model, sparsity = values.model, values.sparsity
  heads = counts.kept_count(model.num_heads, rate, 1)
  if model.num_kv_heads != model.num_heads:
    raise ValueError('a pruned base needs as many key/value heads as heads')
  channels = counts.kept_count(model.mlp_dim, rate, sparsity.channel_multiple)
  return {'num_heads': heads, 'num_kv_heads': heads, 'mlp_dim': channels}


def _with_flops(budget: float, with_steps: Callable[[int], Config]) -> Config:
  """As many steps as a budget of FLOPs allows, by bisection."""

  def fits(steps: int) -> bool:
    try:
      return total_flops(with_steps(steps)) <= budget
    except errors.ConfigError:  # too short for its growth
      return True

  low, high = 1, 2
  while fits(high):
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return with_steps(low)
