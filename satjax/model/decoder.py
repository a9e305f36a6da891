"""The decoder: embedding, a stack of blocks, norm, logits.

`apply` reads the number of layers, heads and channels off the parameter tree,
so that one function runs the dense model, any sub-network and any grown model.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from satjax import sharding, tree
from satjax.config.groups import ModelConfig
from satjax.model import embedding, layers, ops
from satjax.tree import PyTree


def _is_fused_attention(primitive, *_, **__):
  """cuDNN's: its backward pass needs all that it returns, which has no name."""
  return primitive.name == 'dot_product_attention_fwd_wrapper'


_POLICIES = {
  'full': None,
  'minimal': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(*layers.KEPT),
    _is_fused_attention,
  ),
}


class Decoder(nn.Module):
  """tokens `[B, T]` -> what `hidden` returns, and what is observed.

  Attributes:
    stacks: a configuration for each stack of layers; they differ in counts.
    observe: what to keep of each block's intermediate values; None: nothing.
  """

  stacks: tuple[ModelConfig, ...]
  observe: Callable[[dict[str, Any]], Any] | None = None

  @nn.compact
  def __call__(
    self, tokens_BT, positions_BT, segments_BT, rest=(None,), seeds_B=None
  ):
    c = self.stacks[0]
    init = nn.initializers.normal(c.embed_dim**-0.5)
    embed_VD = self.param('embed', init, (c.vocab_size, c.embed_dim))
    x_BTD = embedding.look_up(embed_VD, tokens_BT, c.dtype)
    angles = ops.rope_angles(
      positions_BT, c.head_dim, c.rope_theta, c.rope_scaling
    )
    seen, first = [], 0
    for number, (config, part) in enumerate(zip(self.stacks, rest)):
      name = stack_name(number, len(self.stacks))
      stack = self._stack(config, name)
      keys_LB = _keys(seeds_B, first, config.num_layers)
      x_BTD, observed = stack(x_BTD, angles, segments_BT, part, keys_LB)
      seen.append(observed)
      first += config.num_layers
    gain_D = self.param(
      'final_norm', nn.initializers.ones_init(), (c.embed_dim,)
    )
    x_BTD = ops.rms_norm(x_BTD, gain_D, c.norm_eps)
    unembed_VD = embed_VD
    if not c.tied:
      unembed_VD = self.param('unembed', init, (c.vocab_size, c.embed_dim))
    return (x_BTD, unembed_VD.astype(c.dtype)), seen

  def _stack(self, config, name):
    # Weights that are in the memory of the host come a layer at a time.
    block = nn.map_variables(
      layers.Block,
      'params',
      trans_in_fn=lambda weights: jax.tree.map(sharding.fetch, weights),
      init=self.is_initializing(),
    )
    if config.remat != 'none':
      block = nn.remat(
        block, prevent_cse=not config.scan, policy=_POLICIES[config.remat]
      )
    stack = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast, 0, 0),
      length=config.num_layers,
      unroll=1 if config.scan else config.num_layers,
    )
    return stack(config, self.observe, name=name)


def _keys(seeds_B, first, count):
  """A key for each of some layers and each row, from the rows' seeds."""
  if seeds_B is None:
    return None
  keys_B = jax.vmap(jax.random.key)(seeds_B)
  fold = jax.vmap(jax.random.fold_in, (0, None))
  return jax.vmap(fold, (None, 0))(keys_B, first + jnp.arange(count))


def stack_name(number: int, count: int) -> str:
  """Linen knows no tuples of modules: several stacks are numbered names."""
  return 'blocks' if count == 1 else f'blocks_{number}'


def init_params(config: ModelConfig, key: jax.Array) -> dict[str, PyTree]:
  """Random float32 parameters, layers stacked on axis 0 (`tree.AXES`)."""
  tokens_BT = jnp.zeros((1, 2), jnp.int32)
  variables = Decoder((config,)).init(key, tokens_BT, tokens_BT, None)
  return variables['params']


def apply(
  config: ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  rest: PyTree = None,
) -> jax.Array:
  """Logits of every position.

  Args:
    config: of the dense model; counts of layers, heads and channels are read
      off `params`.
    params: tree of `tree.AXES`, dense or a sub-network.
    batch: 'tokens' int32 [B, T]; optional 'positions' int32 [B, T] (default 0,
      1, 2...), 'segments' int32 [B, T] (default: one document a row) and
      'dropout' uint32 [B], a seed for each row (default: no dropout).
    rest: what the neurons that rest contribute (`layers.complete`), by stack
      `{'attention': {...}, 'mlp': {...}}`, stacked on layers; None: nothing.

  Returns:
    float32 [B, T, V].
  """
  return ops.logits(*hidden(config, params, batch, rest))


def hidden(
  config: ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  rest: PyTree = None,
) -> tuple[jax.Array, jax.Array]:
  """What `ops.logits` multiplies: `[B, T, D]` and the output matrix `[V, D]`.

  Both in the compute dtype; arguments as in `apply`.
  """
  return _run(config, params, batch, rest, None)[0]


def observe(
  config: ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  reduce: Callable[[dict[str, Any]], Any],
) -> Any:
  """Runs the forward pass for what `reduce` makes of each block.

  Args:
    config: as in `apply`.
    params: as in `apply`.
    batch: as in `apply`.
    reduce: from one block's intermediate values, as `importance.observe`
      describes them, to a tree of arrays.

  Returns:
    That tree, stacked over all layers on axis 0.
  """
  seen = _run(config, params, batch, None, reduce)[1]
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)


def _run(config, params, batch, rest, observe):
  tokens_BT = batch['tokens']
  positions_BT = batch.get('positions')
  if positions_BT is None:
    positions_BT = jnp.arange(tokens_BT.shape[1])[None]
  stacks = tree.stacks(params)
  rest = rest if isinstance(rest, tuple) else (rest,) * len(stacks)
  named = {name: leaf for name, leaf in params.items() if name != 'blocks'}
  for number, stack in enumerate(stacks):
    named[stack_name(number, len(stacks))] = stack
  model = Decoder(tuple(_fit(config, stack) for stack in stacks), observe)
  return model.apply(
    {'params': named},
    tokens_BT,
    positions_BT,
    batch.get('segments'),
    rest,
    batch.get('dropout'),
  )


def fit(config: ModelConfig, params: PyTree) -> ModelConfig:
  """The configuration with the counts that `params`, one stack, really has."""
  (stack,) = tree.stacks(params)
  return _fit(config, stack)


def _fit(config, stack):
  num_layers, num_heads = stack['attention']['query'].shape[:2]
  return dataclasses.replace(
    config,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=stack['attention']['key'].shape[1],
    mlp_dim=stack['mlp']['gate'].shape[1],
    # Unrolled, all layers would come from the host at once.
    scan=config.scan or sharding.is_away(stack['mlp']['gate']),
  )
