"""The only schema: frozen dataclasses that say what a configuration may hold.

Values live in `configs/`; types, ranges and rules live here, once. The field
declarations are the reference of allowed values, and every error quotes them.
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import math
import typing
from typing import Any, Self

import ml_collections

from satjax import errors

DTYPES = ('float32', 'bfloat16')
IMPORTANCE = ('uniform', 'magnitude', 'maxip')
SELECTION = ('top_k', 'sample')
OPTIMIZERS = ('adamw', 'lion', 'adafactor', 'muon', 'sgd')


def _rule(check: Callable[[Any], bool], allowed: str) -> Any:
  """A dataclass field without default whose value must pass `check`."""
  return dataclasses.field(metadata={'check': check, 'allowed': allowed})


def _at_least(minimum: float) -> Any:
  return _rule(lambda value: value >= minimum, f'at least {minimum}')


def _above(minimum: float) -> Any:
  return _rule(lambda value: value > minimum, f'above {minimum}')


def _between(low: float, high: float) -> Any:
  return _rule(lambda v: low <= v < high, f'from {low} to below {high}')


def _fraction() -> Any:
  return _rule(lambda v: 0 < v <= 1, 'above 0, up to 1')


def _one_of(*values: Any) -> Any:
  return _rule(lambda value: value in values, ' | '.join(map(repr, values)))


def _source_mixture(empty: bool) -> Any:
  def check(value):
    return (value or empty) and all(_is_weighted_source(v) for v in value)

  return _rule(
    check,
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
    isinstance(source, str) and _is_number(weight) and 0 < weight < math.inf
  )


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_hop(value: Any) -> bool:
  if not isinstance(value, (tuple, list)) or len(value) != 3:
    return False
  at_tokens, operator, factor = value
  whole = isinstance(at_tokens, int) and isinstance(factor, int)
  return whole and at_tokens >= 1 and factor >= 1 and operator == 'stack'


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A Llama-style decoder. See `configs/base.py` for units and defaults."""

  num_layers: int = _at_least(1)
  embed_dim: int = _at_least(1)
  num_heads: int = _at_least(1)
  num_kv_heads: int = _at_least(1)
  head_dim: int = _rule(lambda v: v >= 2 and v % 2 == 0, 'even, at least 2')
  mlp_dim: int = _at_least(1)
  vocab_size: int = _at_least(2)
  tied: bool = _one_of(True, False)
  rope_theta: float = _above(0)
  norm_eps: float = _above(0)
  dtype: str = _one_of(*DTYPES)
  scan: bool = _one_of(True, False)
  remat: str = _one_of('none', 'full')
  init_from: str = _rule(lambda v: True, 'a model directory, or empty')

  def problems(self) -> list[str]:
    if self.num_heads % self.num_kv_heads:
      return [
        f'num_heads {self.num_heads} is not a multiple of num_kv_heads'
        f' {self.num_kv_heads}; every key/value head serves the same number'
        ' of query heads'
      ]
    return []


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which text, how it is cut into tokens and rows."""

  train: tuple = _source_mixture(empty=False)
  eval: tuple = _source_mixture(empty=True)
  tokenizer: str = _one_of('byte')
  seq_len: int = _at_least(2)
  held_out: float = _rule(lambda v: 0 < v < 1, 'between 0 and 1')
  seed: int = _at_least(0)

  def problems(self) -> list[str]:
    return []


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, in which batches, and how often to look."""

  num_steps: int = _at_least(1)
  batch_size: int = _at_least(1)
  microbatch_size: int = _at_least(0)
  seed: int = _at_least(0)
  log_every: int = _at_least(1)
  eval_every: int = _at_least(0)
  eval_batches: int = _at_least(1)
  checkpoint_every: int = _at_least(0)
  keep_checkpoints: int = _at_least(1)

  def problems(self) -> list[str]:
    if self.microbatch_size and self.batch_size % self.microbatch_size:
      return [
        f'microbatch_size {self.microbatch_size} does not divide batch_size'
        f' {self.batch_size}; use a divisor, or 0 for no accumulation'
      ]
    return []


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optax chain and its learning-rate schedule."""

  name: str = _one_of(*OPTIMIZERS)
  schedule: str = _one_of('cosine', 'wsd', 'constant')
  peak_lr: float = _above(0)
  end_lr: float = _at_least(0)
  warmup_steps: int = _at_least(0)
  decay_steps: int = _at_least(0)
  b1: float = _between(0, 1)
  b2: float = _between(0, 1)
  eps: float = _above(0)
  weight_decay: float = _at_least(0)
  clip_norm: float = _at_least(0)

  def problems(self) -> list[str]:
    if self.end_lr > self.peak_lr:
      return [f'end_lr {self.end_lr} is above peak_lr {self.peak_lr}']
    return []


@dataclasses.dataclass(frozen=True)
class SparsityConfig:
  """SAT: what is left out of a step, and the ladder back to dense."""

  execution: str = _one_of('compact', 'masked')
  head_rate: float = _between(0, 1)
  channel_rate: float = _between(0, 1)
  importance: str = _one_of(*IMPORTANCE)
  selection: str = _one_of(*SELECTION)
  temperature: float = _above(0)
  split: float = _fraction()
  rungs: int = _at_least(1)
  refresh_every: int = _at_least(1)
  probe: float = _fraction()
  omitted: str = _one_of('frozen', 'decayed')
  channel_multiple: int = _at_least(1)

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
class GrowthConfig:
  """Growth of the model during the run."""

  hops: tuple = _rule(
    lambda hops: all(map(_is_hop, hops)),
    "a tuple of (at_tokens, 'stack', factor), such as ((1000000, 'stack', 2),)",
  )
  opt_state: str = _one_of('grow', 'reset')

  def problems(self) -> list[str]:
    starts = [hop[0] for hop in self.hops]
    if starts != sorted(set(starts)):
      return [f'hops happen at {starts} tokens; these must increase']
    return []


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Device mesh; the product of the axes is the number of devices."""

  data: int = _rule(lambda v: v == -1 or v >= 1, 'at least 1, or -1: the rest')
  fsdp: int = _at_least(1)
  tensor: int = _at_least(1)

  def problems(self) -> list[str]:
    return []


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
    groups = {f.name: f.type for f in dataclasses.fields(cls)}
    problems = _wrong_keys('config', values, groups)
    built = {}
    for name, group in groups.items():
      if name in values:
        built[name] = _build(group, f'config.{name}', values[name], problems)
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
    total = train.num_steps * self.tokens_per_step
    for at_tokens, *_ in self.growth.hops:
      if at_tokens >= total:
        problems.append(
          f'config.growth.hops: a hop at {at_tokens} tokens never happens; the'
          f' run reads {total} tokens (num_steps x batch_size x seq_len)'
        )
    return problems


def _build(group: type, path: str, values: Any, problems: list[str]) -> Any:
  """Builds one group, or appends what is wrong with it to `problems`."""
  if not isinstance(values, Mapping):
    problems.append(f'{path} = {values!r}; allowed: a group of keys')
    return None
  fields = {field.name: field for field in dataclasses.fields(group)}
  found = _wrong_keys(path, values, fields)
  built = {}
  for name, field in fields.items():
    if name not in values:
      continue
    value = _coerce(values[name], field.type)
    if not _has_type(value, field.type):
      kind = type(value).__name__
      found.append(
        f'{path}.{name} = {value!r} is a {kind}; allowed: {_allowed(field)}'
      )
    elif not field.metadata['check'](value):
      found.append(
        f'{path}.{name} = {value!r}; allowed: {field.metadata["allowed"]}'
      )
    built[name] = value
  problems += found
  if found:
    return None
  config = group(**built)
  problems += [f'{path}: {problem}' for problem in config.problems()]
  return config


def _wrong_keys(
  path: str, values: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
  problems = []
  for key in values:
    if key not in known:
      problems.append(unknown_key(path, key, known))
  for key in known:
    if key not in values:
      problems.append(
        f'{path}.{key} is missing; start from configs/base.py, which holds'
        ' every key'
      )
  return problems


def unknown_key(path: str, key: str, known: Mapping[str, Any]) -> str:
  """What to say of a key that is not there: the nearest one, or all."""
  close = difflib.get_close_matches(str(key), known, n=1)
  if close:
    return f'{path}.{key} is not a known key; did you mean {path}.{close[0]}?'
  return f'{path}.{key} is not a known key; allowed: {", ".join(known)}'


def allowed(key: str) -> str:
  """What `config.GROUP.KEY` may hold, in words."""
  _, name, *rest = key.split('.')
  group = next(f.type for f in dataclasses.fields(Config) if f.name == name)
  for field in dataclasses.fields(group):
    if [field.name] == rest:
      return _allowed(field)
  return 'a group of keys; set them one by one'


def _allowed(field: dataclasses.Field) -> str:
  return f'{field.type.__name__}, {field.metadata["allowed"]}'


def _coerce(value: Any, wanted: type) -> Any:
  """JSON knows no tuples, and people write 1 for 1.0."""
  if wanted is tuple and isinstance(value, (list, tuple)):
    return _as_tuple(value)
  is_whole = isinstance(value, int) and not isinstance(value, bool)
  return float(value) if wanted is float and is_whole else value


def _as_tuple(value: Any) -> Any:
  if isinstance(value, (list, tuple)):
    return tuple(map(_as_tuple, value))
  return value


def _has_type(value: Any, wanted: type) -> bool:
  if wanted is float:
    return isinstance(value, float) and math.isfinite(value)
  if wanted is int:
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, typing.get_origin(wanted) or wanted)
