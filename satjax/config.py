"""The only schema: frozen dataclasses that say what a configuration may hold.

Values live in `configs/`; types, ranges and rules live here, once. The field
declarations are the reference of allowed values, and every error quotes them.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Self

import ml_collections

from satjax import errors, schema


def _source_mixture(empty: bool) -> Any:
  return schema.rule(
    lambda value: (value or empty) and all(map(_is_weighted_source, value)),
    "a tuple of sources or (source, weight), such as ('stdlib:docs',) or"
    " (('stdlib:docs', 0.7), ('text:books/*.txt', 0.3)), weights above 0",
  )


def _is_weighted_source(value: Any) -> bool:
  if isinstance(value, str):
    return bool(value)
  if not isinstance(value, (tuple, list)) or len(value) != 2:
    return False
  source, weight = value
  return (
    isinstance(source, str)
    and schema.is_number(weight)
    and 0 < weight < math.inf
  )


def _is_hop(value: Any) -> bool:
  if not isinstance(value, (tuple, list)) or len(value) != 3:
    return False
  at_tokens, operator, factor = value
  whole = schema.is_whole(at_tokens) and schema.is_whole(factor)
  return whole and at_tokens >= 1 and factor >= 1 and operator == 'stack'


@dataclasses.dataclass(frozen=True)
class ModelConfig(schema.Group):
  """A Llama-style decoder. See `configs/base.py` for units and defaults."""

  num_layers: int = schema.at_least(1)
  embed_dim: int = schema.at_least(1)
  num_heads: int = schema.at_least(1)
  num_kv_heads: int = schema.at_least(1)
  head_dim: int = schema.rule(
    lambda v: v >= 2 and v % 2 == 0, 'even, at least 2'
  )
  mlp_dim: int = schema.at_least(1)
  vocab_size: int = schema.at_least(2)
  tied: bool = schema.one_of(True, False)
  rope_theta: float = schema.above(0)
  norm_eps: float = schema.above(0)
  dtype: str = schema.one_of('float32', 'bfloat16')
  scan: bool = schema.one_of(True, False)
  remat: str = schema.one_of('none', 'full')
  init_from: str = schema.rule(lambda v: True, 'a model directory, or empty')

  def problems(self) -> list[str]:
    if self.num_heads % self.num_kv_heads:
      return [
        f'num_heads {self.num_heads} is not a multiple of num_kv_heads'
        f' {self.num_kv_heads}; every key/value head serves the same number'
        ' of query heads'
      ]
    return []


@dataclasses.dataclass(frozen=True)
class DataConfig(schema.Group):
  """Which text, how it is cut into tokens and rows."""

  train: tuple = _source_mixture(empty=False)
  eval: tuple = _source_mixture(empty=True)
  tokenizer: str = schema.one_of('byte')
  seq_len: int = schema.at_least(2)
  held_out: float = schema.rule(lambda v: 0 < v < 1, 'between 0 and 1')
  seed: int = schema.at_least(0)


@dataclasses.dataclass(frozen=True)
class TrainConfig(schema.Group):
  """How long, in which batches, and how often to look."""

  num_steps: int = schema.at_least(1)
  batch_size: int = schema.at_least(1)
  microbatch_size: int = schema.at_least(0)
  seed: int = schema.at_least(0)
  log_every: int = schema.at_least(1)
  eval_every: int = schema.at_least(0)
  eval_batches: int = schema.at_least(1)
  checkpoint_every: int = schema.at_least(0)
  keep_checkpoints: int = schema.at_least(1)

  def problems(self) -> list[str]:
    if self.microbatch_size and self.batch_size % self.microbatch_size:
      return [
        f'microbatch_size {self.microbatch_size} does not divide batch_size'
        f' {self.batch_size}; use a divisor, or 0 for no accumulation'
      ]
    return []


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(schema.Group):
  """The optax chain and its learning-rate schedule."""

  name: str = schema.one_of('adamw', 'lion', 'adafactor', 'muon', 'sgd')
  schedule: str = schema.one_of('cosine', 'wsd', 'constant')
  peak_lr: float = schema.above(0)
  end_lr: float = schema.at_least(0)
  warmup_steps: int = schema.at_least(0)
  decay_steps: int = schema.at_least(0)
  b1: float = schema.between(0, 1)
  b2: float = schema.between(0, 1)
  eps: float = schema.above(0)
  weight_decay: float = schema.at_least(0)
  clip_norm: float = schema.at_least(0)

  def problems(self) -> list[str]:
    if self.end_lr > self.peak_lr:
      return [f'end_lr {self.end_lr} is above peak_lr {self.peak_lr}']
    return []


@dataclasses.dataclass(frozen=True)
class SparsityConfig(schema.Group):
  """SAT: what is left out of a step, and the ladder back to dense."""

  execution: str = schema.one_of('compact', 'masked')
  head_rate: float = schema.between(0, 1)
  channel_rate: float = schema.between(0, 1)
  importance: str = schema.one_of('uniform', 'magnitude', 'maxip')
  selection: str = schema.one_of('top_k', 'sample')
  temperature: float = schema.above(0)
  split: float = schema.fraction()
  rungs: int = schema.at_least(1)
  refresh_every: int = schema.at_least(1)
  probe: float = schema.fraction()
  omitted: str = schema.one_of('frozen', 'decayed')
  channel_multiple: int = schema.at_least(1)

  @property
  def is_on(self) -> bool:
    return self.head_rate > 0 or self.channel_rate > 0

  def problems(self) -> list[str]:
    if self.omitted == 'decayed' and self.execution == 'compact':
      return [
        "omitted 'decayed' needs execution 'masked': compact execution leaves"
        " omitted rows untouched; use 'frozen'"
      ]
    return []


@dataclasses.dataclass(frozen=True)
class GrowthConfig(schema.Group):
  """Growth of the model during the run."""

  hops: tuple = schema.rule(
    lambda hops: all(map(_is_hop, hops)),
    "a tuple of (at_tokens, 'stack', factor), such as ((1000000, 'stack', 2),)",
  )
  opt_state: str = schema.one_of('grow', 'reset')

  def problems(self) -> list[str]:
    starts = [hop[0] for hop in self.hops]
    if starts != sorted(set(starts)):
      return [f'hops happen at {starts} tokens; these must increase']
    return []


@dataclasses.dataclass(frozen=True)
class MeshConfig(schema.Group):
  """Device mesh; the product of the axes is the number of devices."""

  data: int = schema.rule(
    lambda v: v == -1 or v >= 1, 'at least 1, or -1: the rest'
  )
  fsdp: int = schema.at_least(1)
  tensor: int = schema.at_least(1)


@dataclasses.dataclass(frozen=True)
class Config:
  """One run, whole. Hashable, so that it may be a static jit argument."""

  model: ModelConfig
  data: DataConfig
  train: TrainConfig
  optimizer: OptimizerConfig
  sparsity: SparsityConfig
  growth: GrowthConfig
  mesh: MeshConfig

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> Self:
    """Checks a nested mapping and builds the configuration from it.

    Args:
      values: what `get_config()` of a config file returns (a ConfigDict), or
        a run's `config.json`; every key must be there, and no other.

    Raises:
      ConfigError: names every wrong key, its value and what is allowed.
    """
    if isinstance(values, ml_collections.ConfigDict):
      values = values.to_dict()
    if not isinstance(values, Mapping):
      raise errors.ConfigError(
        f'a configuration is a mapping of groups, not {values!r}'
      )
    groups = {f.name: f.type for f in dataclasses.fields(cls)}
    problems = schema.wrong_keys('config', values, groups)
    built = {}
    for name, group in groups.items():
      if name in values:
        built[name] = schema.build(
          group, f'config.{name}', values[name], problems
        )
    if not problems:
      config = cls(**built)
      problems = config.problems()
    if problems:
      raise errors.ConfigError('\n'.join(problems))
    return config

  def to_dict(self) -> dict[str, Any]:
    """The nested plain dictionary that `from_dict` accepts."""
    return dataclasses.asdict(self)

  @property
  def tokens_per_step(self) -> int:
    return self.train.batch_size * self.data.seq_len

  def problems(self) -> list[str]:
    """Rules that need more than one group."""
    problems = []
    opt, train = self.optimizer, self.train
    if opt.warmup_steps + opt.decay_steps > train.num_steps:
      problems.append(
        f'config.optimizer: warmup_steps {opt.warmup_steps} + decay_steps'
        f' {opt.decay_steps} exceed train.num_steps {train.num_steps}'
      )
    if opt.decay_steps and opt.schedule != 'wsd':
      problems.append(
        f'config.optimizer.decay_steps {opt.decay_steps} has a meaning only'
        f" with schedule 'wsd', not {opt.schedule!r}; set it to 0"
      )
    if self.sparsity.is_on and opt.name == 'adafactor':
      problems.append(
        "config.optimizer.name 'adafactor' factors its moments across neurons,"
        ' so omitted neurons can not rest; with sparsity use adamw, lion, muon'
        ' or sgd, or set both omission rates to 0'
      )
    if self.sparsity.channel_multiple > self.model.mlp_dim:
      problems.append(
        f'config.sparsity.channel_multiple {self.sparsity.channel_multiple} is'
        f' above model.mlp_dim {self.model.mlp_dim}'
      )
    return problems + self._hop_problems()

  def _hop_problems(self) -> list[str]:
    steps = {}
    for at_tokens, *_ in self.growth.hops:
      step = -(-at_tokens // self.tokens_per_step)
      last = (self.train.num_steps - 1) * self.tokens_per_step
      if at_tokens > last:
        return [
          f'config.growth.hops: a hop at {at_tokens} tokens never happens; the'
          f' last step of the run starts at {last} tokens'
        ]
      if step in steps:
        return [
          f'config.growth.hops: {steps[step]} and {at_tokens} tokens fall on'
          f' the same step of {self.tokens_per_step} tokens; join the factors'
        ]
      steps[step] = at_tokens
    return []


def allowed(key: str) -> str:
  """What `config.GROUP.KEY` may hold, in words."""
  _, name, *rest = key.split('.')
  group = next(f.type for f in dataclasses.fields(Config) if f.name == name)
  for field in dataclasses.fields(group):
    if [field.name] == rest:
      return schema.allowed(field)
  return 'a group of keys; set them one by one'
