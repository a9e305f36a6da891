"""From arms to trials: the configuration of each run, and its folder.

A folder is named by a hash of what the run does, so that experiments which have
an arm in common, a base, or all runs of the reference, share them.
"""

import bisect
from collections.abc import Callable
import dataclasses
import hashlib
import json
import pathlib
from typing import Any, Self

import ml_collections

from satjax import errors, files
from satjax.config import history, stages
from satjax.config.run import Config
from satjax.lab.experiment import spec
from satjax.sparsity import counts
from satjax.train import metrics, phases

FAILED = 'failed.json'  # with the reason
_MOST_STEPS = 2**40  # more than any run has


@dataclasses.dataclass(frozen=True)
class Base:
  """A model that trials start from: trained, and perhaps pruned."""

  config: Config  # of its training
  path: pathlib.Path  # of its folder
  prune: float = 0.0  # share of heads and channels that are cut off

  @property
  def model(self) -> pathlib.Path:
    """A Hugging Face directory: all of it is there, or nothing."""
    name = f'model-without-{self.prune:g}' if self.prune else 'model'
    return self.path / name

  @property
  def whole(self) -> Self:
    """With nothing cut off."""
    return dataclasses.replace(self, prune=0.0)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A training run of an arm, with a learning rate and a seed."""

  config: Config  # `init_from` is not set where there is a base
  path: pathlib.Path  # of its folder
  base: Base | None = None  # what it starts from; None: random weights

  @property
  def final_config(self) -> Config:
    """With the path of the base, as the run gets it."""
    if not self.base:
      return self.config
    path = str(self.base.model)
    model = dataclasses.replace(self.config.model, init_from=path)
    return dataclasses.replace(self.config, model=model)

  @property
  def failure(self) -> str | None:
    """Why it ended without a model, if it did."""
    path, last = self.path / FAILED, self.config.train.num_steps
    if path.exists():
      return files.read_json(path)['reason']
    if any(e['step'] == last and None in e.values() for e in self.evaluations):
      return 'its held-out loss is not a number'
    return None

  @property
  def records(self) -> list[dict[str, float]]:
    return metrics.read(self.path)

  @property
  def evaluations(self) -> list[dict[str, float | None]]:
    """Step, validation and test loss of each one after the first step.

    None: it is no number.
    """
    source = self.config.data.eval[0]
    names = f'eval/{source}/loss', f'test/{source}/loss'
    return [
      {'step': r['step'], 'validation': r[names[0]], 'test': r[names[1]]}
      for r in self.records
      if names[1] in r and r['step'] > 0
    ]

  @property
  def forgotten(self) -> dict[str, float | None]:
    """The last test loss on every source but the first, by source.

    A source that nothing is trained on may have only an evaluation split.
    """
    last = dict(pair for record in self.records for pair in record.items())
    return {
      source: last.get(f'test/{source}/loss', last.get(f'eval/{source}/loss'))
      for source in self.config.data.eval[1:]
    }

  @property
  def is_done(self) -> bool:
    """By its figures alone: checkpoints of what is done are gone."""
    last = self.config.train.num_steps
    return bool(self.failure) or any(
      found['step'] == last for found in self.evaluations
    )

  @property
  def flops(self) -> float:
    return total_flops(self.config)

  @property
  def judged(self) -> tuple[int, int]:
    """How many rows, and tokens of each, evaluations read at most."""
    config, stage = self.config, stages.stages(self.config)[-1]
    rows = stage.batch_size // config.num_microbatches
    return config.train.eval_batches * rows, stage.seq_len


def total_flops(config: Config) -> float:
  """Of all steps of a run, as executed."""
  return phases.flops_until(config, config.train.num_steps)


def make_trial(
  workdir: pathlib.Path,
  scenario: spec.Scenario,
  arm: spec.Arm,
  learning_rate: float,
  seed: int,
) -> Trial:
  """The trial of an arm with a learning rate of its own and a seed.

  Raises:
    ConfigError: the arm's settings cannot be; names the arm.
  """
  try:
    config = _configure(scenario, arm, learning_rate, seed)
  except (KeyError, TypeError, ValueError) as error:
    raise errors.ConfigError(f'arm {arm.name!r}: {error}') from error
  base = None
  if scenario.base is not None:
    before = Config.from_dict(scenario.base)
    folder = workdir / 'bases' / digest(history.first_form(before.to_dict()))
    base = Base(before, folder, arm.prune)
  name = digest(
    history.first_form(config.to_dict()),
    base and [base.path.name, base.model.name],
  )
  return Trial(config, workdir / 'runs' / f'{scenario.name}-{name}', base)


def digest(*values: Any) -> str:
  """A name for what JSON can hold."""
  text = json.dumps(values, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _configure(scenario, arm, learning_rate, seed) -> Config:
  reference = Config.from_dict(scenario.config)
  # Numbers where there was a share of the run, or 'auto'.
  values = ml_collections.ConfigDict(reference.to_dict(), type_safe=False)
  # But of this, what else an arm says decides what 'auto' becomes.
  values.sparsity = scenario.config.sparsity.copy_and_resolve_references()
  values.update_from_flattened_dict(dict(arm.overrides))
  values.optimizer.end_lr *= learning_rate / values.optimizer.peak_lr
  values.optimizer.peak_lr = learning_rate
  values.train.seed = values.data.seed = seed
  if arm.prune:
    values.model.update(_pruned_sizes(values, arm.prune))
  whole = values.to_dict()

  def with_steps(steps: int) -> Config:
    train, optimizer = whole['train'], whole['optimizer']
    share = steps / train['num_steps']

    def scaled(count: int) -> int:
      return max(1, round(share * count))

    every = train['eval_every'] and scaled(train['eval_every'])
    train = train | {'num_steps': steps, 'eval_every': every}
    parts = ('warmup_steps', 'decay_steps')
    parts = {n: scaled(optimizer[n]) for n in parts if optimizer[n]}
    changed = {'train': train, 'optimizer': optimizer | parts}
    return Config.from_dict(whole | changed)

  if arm.equal == 'steps':
    return with_steps(round(arm.length * whole['train']['num_steps']))
  return _with_flops(arm.length * total_flops(reference), with_steps)


def _pruned_sizes(values, rate) -> dict[str, int]:
  model = values.model
  if model.num_kv_heads != model.num_heads:
    raise ValueError('a pruned base needs as many key/value heads as heads')
  heads = counts.kept_count(model.num_heads, rate)
  multiple = values.sparsity.channel_multiple
  channels = counts.kept_count(model.mlp_dim, rate, multiple)
  if (heads, channels) == (model.num_heads, model.mlp_dim):
    raise ValueError(f'prune={rate:g} cuts off nothing')
  return {'num_heads': heads, 'num_kv_heads': heads, 'mlp_dim': channels}


def _with_flops(budget: float, with_steps: Callable[[int], Config]) -> Config:
  """As many steps as a budget of FLOPs allows."""

  def cost(steps: int) -> float:
    try:
      return total_flops(with_steps(steps))
    except errors.ConfigError:  # too short for its growth
      return 0.0

  high = 2
  while cost(high) <= budget:
    high *= 2
    if high > _MOST_STEPS:
      with_steps(high)  # says what is wrong at any length
  over = bisect.bisect_right(range(high), budget, lo=high // 2, key=cost)
  return with_steps(max(1, over - 1))
