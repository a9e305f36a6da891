"""The groups of settings: which keys there are, and what each may hold."""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from satjax import errors
from satjax.config import schema, specs
from satjax.config.data import DataConfig
from satjax.sparsity import importance


def _is_rope_scaling(value: Any) -> bool:
  match value:
    case ['linear', _] | ['llama3', _, _, _, _]:
      return all(schema.is_number(x) and 0 < x < math.inf for x in value[1:])
  return not value


@dataclasses.dataclass(frozen=True)
class ModelConfig(schema.Group):
  """A Llama-style decoder. See `configs/base.py` for units and defaults."""

  num_layers: int = schema.between(1, specs.MAX_LAYERS + 1)
  embed_dim: int = schema.at_least(1)
  num_heads: int = schema.at_least(1)
  num_kv_heads: int = schema.at_least(1)
  head_dim: int = schema.rule(
    lambda v: v >= 2 and v % 2 == 0, 'even, at least 2'
  )
  mlp_dim: int = schema.at_least(1)
  vocab_size: int = schema.at_least(2)
  vocab_multiple: int = schema.at_least(0)
  tied: bool = schema.one_of(True, False)
  rope_theta: float = schema.above(0)
  rope_scaling: tuple = schema.rule(
    _is_rope_scaling,
    "(), ('linear', factor) or ('llama3', factor, low_freq_factor,"
    ' high_freq_factor, original_max_position_embeddings)',
  )
  sliding_window: int = schema.at_least(0)
  norm_eps: float = schema.above(0)
  qkv_bias: bool = schema.one_of(True, False)
  qk_norm: bool = schema.one_of(True, False)
  dropout: float = schema.between(0, 1)
  dtype: str = schema.one_of('float32', 'bfloat16')
  attention: str = schema.one_of('auto', 'blocked', 'xla', 'cudnn', 'splash')
  scan: bool = schema.one_of(True, False)
  remat: str = schema.one_of('none', 'minimal', 'full')
  init_from: str = schema.rule(lambda v: True, 'a model directory, or empty')

  def problems(self) -> Iterator[str]:
    if self.num_heads % self.num_kv_heads:
      yield (
        f'num_heads {self.num_heads} is not a multiple of num_kv_heads'
        f' {self.num_kv_heads}; every key/value head serves the same number'
        ' of query heads'
      )


@dataclasses.dataclass(frozen=True)
class TrainConfig(schema.Group):
  """How long, in which batches, and how often to look."""

  num_steps: int = schema.at_least(1)
  batch_size: int = schema.at_least(1)
  microbatch_size: int = schema.at_least(0)
  loss_chunk: int = schema.at_least(0)
  seed: int = schema.at_least(0)
  log_every: int = schema.at_least(1)
  eval_every: int = schema.steps(0)
  eval_batches: int = schema.at_least(1)
  checkpoint_every: int = schema.steps(0)
  keep_checkpoints: int = schema.at_least(1)
  keep_best: int = schema.at_least(0)
  sample_prompts: tuple = schema.rule(
    lambda v: all(isinstance(text, str) and text for text in v),
    "texts, such as ('def ',), none of them empty",
  )
  sample_tokens: int = schema.at_least(1)

  def problems(self) -> Iterator[str]:
    if self.microbatch_size and self.batch_size % self.microbatch_size:
      yield (
        f'microbatch_size {self.microbatch_size} does not divide batch_size'
        f' {self.batch_size}; use a divisor, or 0 for no accumulation'
      )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(schema.Group):
  """The optax chain and its learning-rate schedule."""

  name: str = schema.one_of('adamw', 'lion', 'adafactor', 'muon', 'sgd')
  schedule: str = schema.or_auto(schema.one_of('cosine', 'wsd', 'constant'))
  peak_lr: float = schema.or_auto(schema.above(0))
  end_lr: float = schema.or_auto(schema.at_least(0))
  warmup_steps: int = schema.or_auto(schema.steps(0))
  decay_steps: int = schema.or_auto(schema.steps(0))
  b1: float = schema.between(0, 1)
  b2: float = schema.between(0, 1)
  eps: float = schema.above(0)
  weight_decay: float = schema.or_auto(schema.at_least(0))
  clip_norm: float = schema.at_least(0)


# What can be left out: query heads, channels of the MLP, whole layers.
AXES = ('heads', 'mlp', 'layers')
METRICS = dict.fromkeys(AXES, importance.METRICS)
METRICS |= {'layers': importance.LAYER_METRICS}
# What 'auto' is by axis: experiments/results/damage.md.
BEST = {'heads': 'wanda_out', 'mlp': 'maxip', 'layers': 'influence'}


@dataclasses.dataclass(frozen=True)
class SparsityConfig(schema.Group):
  """SAT: what is left out of a step, and the ladder back to dense."""

  execution: str = schema.one_of('compact', 'masked')
  head_rate: float = schema.between(0, 1)
  channel_rate: float = schema.between(0, 1)
  layer_rate: float = schema.between(0, 1)
  embed: str = schema.one_of('train', 'rest')
  layer_scale: tuple = schema.by_axis(
    schema.or_word(
      schema.rule(
        lambda v: all(schema.is_number(x) and 0 <= x <= 1 for x in v),
        'a factor from 0 to 1 for each layer, or empty',
      ),
      'depth',
    ),
    AXES,
  )
  dense_layers: tuple = schema.rule(
    lambda v: len(v) == 2 and all(schema.is_whole(x) and x >= 0 for x in v),
    'how many layers at the (beginning, end), such as (0, 0)',
  )
  importance: str = schema.or_auto(
    schema.by_axis(
      schema.rule(
        lambda value: any(value in known for known in METRICS.values()),
        ' | '.join(map(repr, dict.fromkeys(sum(METRICS.values(), ())))),
      ),
      AXES,
    )
  )
  balance: bool = schema.one_of(True, False)
  selection: str = schema.one_of('top_k', 'sample')
  temperature: float = schema.above(0)
  granularity: str = schema.one_of('per_group', 'group', 'free')
  shape: str = schema.one_of('ladder', 'linear', 'reversed')
  split: float = schema.fraction()
  rungs: int = schema.at_least(1)
  warm_start: float = schema.between(0, 1)
  refresh_every: int = schema.at_least(1)
  probe: float = schema.fraction()
  stale_scores: bool = schema.one_of(True, False)
  omitted: str = schema.one_of('frozen', 'decayed')
  bias_correction: str = schema.one_of('global', 'per_neuron')
  omitted_forward: str = schema.or_auto(
    schema.by_axis(schema.one_of('skip', 'mean', 'exact', 'through'), AXES)
  )
  rescale: str = schema.one_of('none', 'inverse', 'energy')
  rest: str = schema.one_of('device', 'host')
  channel_multiple: int = schema.at_least(1)
  shards: int = schema.at_least(1)

  @property
  def rates(self) -> dict[str, float]:
    """The highest omission rate, by axis."""
    return dict(zip(AXES, (self.head_rate, self.channel_rate, self.layer_rate)))

  @property
  def is_on(self) -> bool:
    return any(self.rates.values())

  def metric(self, axis: str) -> str:
    """What an axis is chosen by."""
    found = of_axis(self.importance, axis, 'auto')
    return BEST[axis] if found == 'auto' else found

  def forward(self, axis: str) -> str:
    """What omitted units of an axis do; 'skip' where none are left out."""
    found = of_axis(self.omitted_forward, axis, 'auto')
    if found == 'auto':
      found = self.usual_forward
    return found if self.rates[axis] else 'skip'

  @property
  def usual_forward(self) -> str:
    """What 'auto' is beside other settings of the group."""
    moves = self.omitted == 'decayed' and self.execution == 'compact'
    rescales = self.rescale != 'none' and (self.head_rate or self.channel_rate)
    return 'skip' if moves or rescales else 'exact'

  def sees(self, axis: str) -> bool:
    """Whether the forward pass has what is omitted of an axis."""
    return self.forward(axis) in ('exact', 'through')

  @property
  def is_missed(self) -> bool:
    """Whether the forward pass lacks anything that is left out."""
    return any(
      rate and not self.sees(axis) for axis, rate in self.rates.items()
    )

  def scale(self, axis: str, num_layers: int) -> tuple[float, ...]:
    """The factor on the rate of an axis, of each layer; 0: it stays whole.

    'depth' rises in equal steps up to 1 at the last layer, as in stochastic
    depth (Huang et al., 2016).
    """
    found = of_axis(self.layer_scale, axis, ()) or (1.0,) * num_layers
    if found == 'depth':
      found = [(n + 1) / num_layers for n in range(num_layers)]
    first, last = self.dense_layers
    return tuple(
      0.0 if layer < first or layer >= num_layers - last else scale
      for layer, scale in enumerate(found)
    )

  @property
  def names_layers(self) -> bool:
    """Whether factors are given layer by layer."""
    found = [of_axis(self.layer_scale, axis, ()) for axis in AXES]
    return any(scale and scale != 'depth' for scale in found)

  def problems(self) -> Iterator[str]:
    for axis in AXES:
      yield from self._axis_problems(axis)
    if self.execution == 'compact':
      yield from self._compact_problems()
    elif self.rest == 'host':
      yield (
        "rest 'host' needs execution 'compact': nothing rests where neurons are"
        " masked; use 'device'"
      )
    added = [self.forward(axis) for axis in AXES[:2] if self.rates[axis]]
    for how in dict.fromkeys(added):
      if self.rescale != 'none' and how != 'skip':
        yield (
          f'rescale {self.rescale!r} makes up for what is missing, and'
          f' omitted_forward {how!r} already adds it; use rescale'
          " 'none', or omitted_forward 'skip'"
        )

  def _axis_problems(self, axis: str) -> Iterator[str]:
    if not self.rates[axis]:
      return
    metric, known = self.metric(axis), METRICS[axis]
    if metric not in known:
      yield (
        f'importance {metric!r} does not tell {axis} from each other; allowed'
        f' for them: {" | ".join(map(repr, known))}, such as importance='
        f"{{{axis!r}: {BEST[axis]!r}}}, or 'auto'"
      )
    if axis == 'layers' and self.forward(axis) == 'mean':
      yield (
        "omitted_forward 'mean' is for heads and channels: a layer that is left"
        ' out leaves the residual stream as it is; use omitted_forward='
        "{'heads': 'mean', 'mlp': 'mean', 'layers': 'skip'}, or 'exact' or"
        " 'through'"
      )

  def _compact_problems(self) -> Iterator[str]:
    if self.shape == 'linear':
      yield (
        "shape 'linear' changes the rate every step, and every rate would be a"
        " program of its own in execution 'compact'; use shape 'ladder' with"
        " rungs=8, or execution 'masked'"
      )
    if self.granularity == 'free':
      yield (
        "granularity 'free' leaves key/value groups of different sizes, which"
        " only execution 'masked' can run; use 'per_group'"
      )
    seen = [self.forward(axis) for axis in AXES if self.sees(axis)]
    for how in dict.fromkeys(seen if self.omitted == 'decayed' else []):
      yield (
        "omitted 'decayed' moves the omitted rows every step, and"
        f' omitted_forward {how!r} would see them a window late; use omitted'
        " 'frozen', or omitted_forward 'skip', or execution 'masked'"
      )


def of_axis(value: Any, axis: str, otherwise: Any) -> Any:
  """What holds for an axis: of one value for all, or of pairs."""
  found = schema.pairs(value)
  return value if found is None else dict(found).get(axis, otherwise)


@dataclasses.dataclass(frozen=True)
class GrowthConfig(schema.Group):
  """Growth of the model during the run."""

  hops: tuple = schema.rule(
    lambda v: True,
    '() | growths, such as'
    " ((1000000, 'stack', 2),): at how many tokens, how, and how far",
  )
  opt_state: str = schema.one_of('grow', 'reset_new', 'reset')
  learning_rate: str = schema.one_of('continue', 'restart')

  def problems(self) -> Iterator[str]:
    try:
      starts = [specs.parse_hop(hop).at_tokens for hop in self.hops]
    except errors.ConfigError as error:
      yield f'hops: {error}'
      return
    if starts != sorted(set(starts)):
      yield f'hops happen at {starts} tokens; these must increase'


LORA_BLOCKS = ('query', 'key', 'value', 'output', 'gate', 'up', 'down')
LORA_TARGETS = (*LORA_BLOCKS, 'embed', 'unembed')


@dataclasses.dataclass(frozen=True)
class LoraConfig(schema.Group):
  """Low-rank adapters that train in place of the model (Hu et al., 2021)."""

  rank: int = schema.at_least(0)
  alpha: float = schema.above(0)
  targets: tuple = schema.rule(
    lambda v: v and all(t in LORA_TARGETS for t in v) and len(v) == len({*v}),
    f'each once, and one or more of {", ".join(map(repr, LORA_TARGETS))}',
  )

  @property
  def is_on(self) -> bool:
    return self.rank > 0

  @property
  def scale(self) -> float:
    """The factor on the product of two factors."""
    return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class MeshConfig(schema.Group):
  """Device mesh; the product of the axes is the number of devices."""

  data: int = schema.rule(
    lambda v: v == -1 or v >= 1, 'at least 1, or -1: the rest'
  )
  fsdp: int = schema.at_least(1)
  tensor: int = schema.at_least(1)


@dataclasses.dataclass(frozen=True)
class Groups:
  """All of them: what `run.Config` checks, and `stages` reads."""

  model: ModelConfig
  data: DataConfig
  train: TrainConfig
  optimizer: OptimizerConfig
  sparsity: SparsityConfig
  growth: GrowthConfig
  lora: LoraConfig
  mesh: MeshConfig

  @property
  def tokens_per_step(self) -> int:
    return self.train.batch_size * self.data.seq_len

  @property
  def num_microbatches(self) -> int:
    """Forward and backward passes that share a batch."""
    whole = self.train.batch_size
    return whole // (self.train.microbatch_size or whole)
