"""Growth operators as data: what each makes of a model; no JAX.

`config.specs` makes them from what a user writes; `apply` carries them out. An
operator is resolved against the sizes of one model, so that everything that
follows from it (shapes, costs, whether the function stays) is known before
anything runs. All are hashable: static arguments of compiled programs.
"""

import dataclasses
import functools
from typing import NamedTuple, Self

from satjax.growth import layer_maps
from satjax.tree import Sizes


class Widths(NamedTuple):
  """What growth in width changes, by the axis of `tree.AXES`."""

  embed: int
  heads: int
  kv_heads: int
  mlp: int

  @classmethod
  def of(cls, model: Sizes) -> Self:
    return cls(
      model.embed_dim, model.num_heads, model.num_kv_heads, model.mlp_dim
    )

  def replace_in(self, model: Sizes, **changes) -> Sizes:
    """A model with these widths instead of its own."""
    return dataclasses.replace(
      model,
      embed_dim=self.embed,
      num_heads=self.heads,
      num_kv_heads=self.kv_heads,
      mlp_dim=self.mlp,
      **changes,
    )


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
  def is_random(self) -> bool:
    return any(self.fresh)

  @property
  def preserves(self) -> bool:
    """Whether the function stays as it was at first.

    It does if the layers that are heard are the old ones, once and in order.
    """
    none = (False,) * len(self.layer_map)
    fresh = self.fresh if self.ramp_tokens else ()
    silent = zip(self.zero_out or none, fresh or none)
    heard = [s for s, q in zip(self.layer_map, silent) if not any(q)]
    return not self.noise and heard == list(range(len(heard)))

  def target(self, model: Sizes) -> Sizes:
    return dataclasses.replace(model, num_layers=len(self.layer_map))


@dataclasses.dataclass(frozen=True)
class Width:
  """More channels, whole heads and residual width; head_dim stays.

  Attributes:
    method: 'direct' (duplicate and split), 'aki' (duplicates taken from the
      next layer), 'zero' (new units that write nothing into old ones) or
      'random'.
    split: of a duplicate's fan-in: 'even'; 'uneven', other shares for every
      weight, which sum to 1; 'noisy', noise that cancels (HyperCloning).
    order: of duplicates: 'tile', or 'random' beyond whole copies (Net2Net).
    noise: as `Depth.noise`; it does not cancel.
    noise_on: 'all' matrix entries, or those of 'new' units.
    tied: whether one matrix is embedding and output.
    ramp_tokens: 'random' in a run: tokens in which a mask lets new units in.
    seed: of the order 'random'.
  """

  method: str
  old: Widths
  new: Widths
  split: str = 'even'
  order: str = 'tile'
  noise: float = 0.0
  noise_on: str = 'all'
  tied: bool = False
  ramp_tokens: int = 0
  seed: int = 0

  @property
  def sizes(self) -> dict[str, tuple[int, int]]:
    """Before and after, by axis."""
    return dict(zip(Widths._fields, zip(self.old, self.new)))

  @property
  def copies(self) -> int:
    """How often each residual channel occurs afterwards."""
    if self.method not in ('direct', 'aki'):
      return 1
    return self.new.embed // self.old.embed

  @property
  def old_share(self) -> float:
    """Share of the new residual channels that hold old ones."""
    return self.copies * self.old.embed / self.new.embed

  @property
  def is_random(self) -> bool:
    return self.method == 'random'

  @property
  def preserves(self) -> bool:
    changes = self.method == 'aki' and self.old != self.new
    is_heard = self.is_random and not self.ramp_tokens
    return not (changes or is_heard or self.noise)

  def target(self, model: Sizes) -> Sizes:
    """Sizes, and the epsilon of RMSNorm.

    Channels that hold 0 lower the mean square by the share of the others;
    epsilon follows, which makes `zero` exact (but for norms of queries and
    keys, which share the epsilon and did not grow).
    """
    eps = model.norm_eps * self.old_share
    return self.new.replace_in(model, norm_eps=eps)


@dataclasses.dataclass(frozen=True)
class Learn:
  """Linear maps from the old model to the new one, trained (LiGO).

  Attributes:
    num_layers: depth before and after.
    steps: optimizer steps that train the maps, as part of the run.
    learning_rate: of these steps.
  """

  num_layers: tuple[int, int]
  old: Widths
  new: Widths
  head_dim: int
  steps: int = 100
  learning_rate: float = 1e-3
  preserves = is_random = False
  ramp_tokens = 0

  def target(self, model: Sizes) -> Sizes:
    return self.new.replace_in(model, num_layers=self.num_layers[1])


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
  is_random = False
  ramp_tokens = 0

  @property
  def preserves(self) -> bool:
    return self.rope_theta == self.old_theta

  def target(self, model: Sizes) -> Sizes:
    return dataclasses.replace(model, rope_theta=self.rope_theta)


Operator = Depth | Width | Learn | Length
