"""Growth operators as data: what each takes and makes of a model; no JAX.

`specs` makes them from what a user writes, and `satjax/growth`
carries them out.
"""

import dataclasses
import functools
from typing import Any

from satjax.growth import layer_maps

# The axes of `tree.AXES` that width growth cuts, by the size that counts them.
AXES = {
  'embed_dim': 'embed',
  'num_heads': 'heads',
  'num_kv_heads': 'kv_heads',
  'mlp_dim': 'mlp',
}
Sizes = tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Depth:
  """Target layer i is a copy of source layer `layer_map[i]`.

  Attributes:
    layer_map: sources of the target layers.
    zero_out: target layers that write nothing at first; (): none.
    fresh: target layers that are random instead of copies; (): none.
    noise: a of `W <- (1 - a) W + a eps`, eps drawn as initial weights are.
    noise_on: 'all' matrices of the model, or those of 'new' layers.
    branch_scale: factor on what new layers write.
    ramp_tokens: in a run, tokens in which a mask lets fresh layers in.
  """

  layer_map: layer_maps.LayerMap
  zero_out: tuple[bool, ...] = ()
  fresh: tuple[bool, ...] = ()
  noise: float = 0.0
  noise_on: str = 'all'
  branch_scale: float = 1.0
  ramp_tokens: int = 0

  @functools.cached_property
  def is_new(self) -> tuple[bool, ...]:
    return layer_maps.is_new(self.layer_map)

  @property
  def preserves(self) -> bool:
    """Whether the function stays as it was at first."""
    silent = [False] * len(self.layer_map)
    for silenced in (self.zero_out, self.fresh if self.ramp_tokens else ()):
      silent = [a or b for a, b in zip(silent, silenced or silent)]
    heard = [s for s, quiet in zip(self.layer_map, silent) if not quiet]
    return not self.noise and heard == list(range(len(heard)))

  def target(self, model: Any) -> Any:
    return dataclasses.replace(model, num_layers=len(self.layer_map))


@dataclasses.dataclass(frozen=True)
class Width:
  """More channels, whole heads and residual width; head_dim stays.

  Attributes:
    method: 'direct' (duplicate and split), 'aki' (duplicates taken from the
      next layer), 'zero' (new units that write nothing into old ones) or
      'random'.
    old: sizes before, by axis name.
    new: sizes after.
    split: of a duplicate's fan-in: 'even'; 'uneven', other shares for every
      weight, which sum to 1; 'noisy', noise that cancels (HyperCloning).
    order: of duplicates: 'tile', or 'random' beyond whole copies (Net2Net).
    noise: as `Depth.noise`; it does not cancel.
    noise_on: 'all' matrix entries, or those of 'new' units.
    tied: whether one matrix is embedding and output.
    ramp_tokens: 'random' in a run: tokens in which a mask lets new units in.
    faithful_to_release: what the authors' released code does instead.
    seed: of the order 'random'.
  """

  method: str
  old: Sizes
  new: Sizes
  split: str = 'even'
  order: str = 'tile'
  noise: float = 0.0
  noise_on: str = 'all'
  tied: bool = False
  ramp_tokens: int = 0
  faithful_to_release: bool = False
  seed: int = 0

  @property
  def copies(self) -> int:
    """How often each residual channel occurs afterwards."""
    if self.method not in ('direct', 'aki'):
      return 1
    return dict(self.new)['embed'] // dict(self.old)['embed']

  @property
  def is_released_direct(self) -> bool:
    return self.method == 'direct' and self.faithful_to_release

  @property
  def old_share(self) -> float:
    """Share of the new residual channels that hold old ones."""
    old, new = dict(self.old)['embed'], dict(self.new)['embed']
    return self.copies * old / new

  @property
  def preserves(self) -> bool:
    exact = {
      'direct': True,
      'aki': self.old == self.new,
      'zero': True,
      'random': self.ramp_tokens > 0,
    }[self.method]
    return exact and not self.noise and not self.faithful_to_release

  def target(self, model: Any) -> Any:
    """Sizes, and the epsilon of RMSNorm.

    Channels that hold 0 lower the mean square by the share of the others;
    epsilon follows, which makes `zero` exact (but for norms of queries and
    keys, which share the epsilon and did not grow).
    """
    sizes = {key: dict(self.new)[axis] for key, axis in AXES.items()}
    eps = model.norm_eps
    if not self.faithful_to_release:
      eps *= self.old_share
    return dataclasses.replace(model, **sizes, norm_eps=eps)


@dataclasses.dataclass(frozen=True)
class Learn:
  """Linear maps from the old model to the new one, trained (LiGO).

  Attributes:
    num_layers: depth before and after.
    old: sizes before, by axis name.
    new: sizes after.
    head_dim: of one head.
    steps: optimizer steps that train the maps, as part of the run.
    learning_rate: of these steps.
  """

  num_layers: tuple[int, int]
  old: Sizes
  new: Sizes
  head_dim: int
  steps: int = 100
  learning_rate: float = 1e-3
  preserves = False

  def target(self, model: Any) -> Any:
    sizes = {key: dict(self.new)[axis] for key, axis in AXES.items()}
    return dataclasses.replace(model, num_layers=self.num_layers[1], **sizes)


@dataclasses.dataclass(frozen=True)
class Length:
  """Longer rows: `factor` times the tokens in a row, and as many in a batch.

  Attributes:
    factor: of the row length.
    rope_theta: base of the rotary positions afterwards, in tokens.
    old_theta: the same before.
  """

  factor: int
  rope_theta: float
  old_theta: float

  @property
  def preserves(self) -> bool:
    return self.rope_theta == self.old_theta

  def target(self, model: Any) -> Any:
    return dataclasses.replace(model, rope_theta=self.rope_theta)


Operator = Depth | Width | Learn | Length

_NOISE = {
  'noise': (lambda v: 0 <= v <= 1, 'a share from 0 to 1'),
  'noise_on': (lambda v: v in ('all', 'new'), "'all' or 'new'"),
}
_SIZE = (lambda v: v == int(v) and v >= 1, 'a whole number, at least 1')
_FACTOR = (lambda v: v >= 1, 'at least 1')
_FLAG = (lambda v: v in (True, False), 'True or False')
ON_DEPTH = {
  **_NOISE,
  'branch_scale': (lambda v: v > 0, 'above 0'),
}
DEEPER = {'factor': _FACTOR, 'num_layers': _SIZE}
WIDER = {'width_factor': _FACTOR, **{key: _SIZE for key in AXES}}
RAMP = {'ramp_tokens': _SIZE}
_SPLIT = (
  lambda v: v in ('even', 'uneven', 'noisy'),
  "'even', 'uneven' or 'noisy'",
)
_PATTERN = (lambda v: isinstance(v, str), "such as '12-345*7-6'")
_MAP = (
  lambda v: (
    isinstance(v, (tuple, list)) and len(v) > 0 and all(map(_is_index, v))
  ),
  'the source of every target layer, such as (0, 1, 0, 1)',
)
_RELEASE = {'faithful_to_release': _FLAG}

# By operator: what a bare target means, and every option with its rule.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
  'stack': ('factor', DEEPER | ON_DEPTH),
  'interpolate': ('factor', DEEPER | ON_DEPTH),
  'partial': ('pattern', {'pattern': _PATTERN} | ON_DEPTH),
  'gradual': ('layers', {'layers': _SIZE} | ON_DEPTH),
  'midas': ('layers', {'layers': _SIZE} | ON_DEPTH),
  'solar': (
    'drop',
    {'drop': (lambda v: v == int(v) and v >= 0, 'a whole number')} | ON_DEPTH,
  ),
  'llama_pro': ('group', {'group': _SIZE} | ON_DEPTH),
  'map': ('layer_map', {'layer_map': _MAP} | ON_DEPTH),
  'direct': (
    'width_factor',
    WIDER | _NOISE | {'split': _SPLIT} | _RELEASE,
  ),
  'fpi': ('width_factor', WIDER | _NOISE | {'split': _SPLIT}),
  'aki': ('width_factor', WIDER | _NOISE | {'split': _SPLIT}),
  'zero': ('factor', DEEPER | WIDER | _NOISE | _RELEASE),
  'random': ('factor', DEEPER | WIDER | RAMP),
  'learn': (
    'factor',
    DEEPER
    | WIDER
    | {'steps': _SIZE, 'learning_rate': (lambda v: v > 0, 'above 0')},
  ),
  'length': (
    'factor',
    {'factor': _SIZE, 'rope_theta': (lambda v: v > 0, 'above 0')},
  ),
}


def _is_index(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0
