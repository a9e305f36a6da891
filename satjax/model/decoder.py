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
from satjax.model import embedding, layers, ops, resting
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
  """tokens `[B, T]` -> what `run` returns.

  Attributes:
    stacks: a configuration for each stack of layers; they differ in counts.
    mix: see `layers.mix_rows`.
    observe: what to keep of each block's intermediate values; None: nothing.
  """

  stacks: tuple[ModelConfig, ...]
  mix: layers.Mix = layers.mix_rows
  observe: Callable[[dict[str, Any]], Any] | None = None

  @nn.compact
  def __call__(
    self, tokens_BT, positions_BT, context, extra=None, seeds_B=None, cache=None
  ):
    c = self.stacks[0]
    init = nn.initializers.normal(c.embed_dim**-0.5)
    embed_VD = self.param('embed', init, (c.vocab_size, c.embed_dim))
    x_BTD = embedding.embed(embed_VD, tokens_BT, c.dtype)
    angles = ops.rope_angles(
      positions_BT, c.head_dim, c.rope_theta, c.rope_scaling
    )
    seen, caches, first = [], [], 0
    for number, config in enumerate(self.stacks):
      name = stack_name(number, len(self.stacks))
      added = dict(extra[number] or {}) if extra else {}
      layers_L = added.pop('layers', first + jnp.arange(config.num_layers))
      others = {how: added.pop(how) for how in resting.HOW if how in added}
      first += config.num_layers
      own = added or None, _keys(seeds_B, layers_L)
      if others:
        shared = angles, context, seeds_B
        x_BTD = self._among(others, config, name, x_BTD, own, shared)
        continue
      layer_L = None if cache is None else jnp.arange(config.num_layers)
      (x_BTD, kept), observed = self._stack(config, name)(
        (x_BTD, cache and cache[number]), (angles, context), (*own, layer_L)
      )
      seen.append(observed)
      caches.append(kept)
    ones = nn.initializers.ones_init()
    gain_D = self.param('final_norm', ones, (c.embed_dim,))
    x_BTD = ops.rms_norm(x_BTD, gain_D, c.norm_eps)
    unembed_VD = embed_VD
    if not c.tied:
      unembed_VD = self.param('unembed', init, (c.vocab_size, c.embed_dim))
    return (x_BTD, unembed_VD.astype(c.dtype)), tuple(seen), tuple(caches)

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
      in_axes=(nn.broadcast, 0),
      length=config.num_layers,
      unroll=1 if config.scan else config.num_layers,
    )
    return stack(config, self.mix, self.observe, name=name)

  def _among(self, others, config, name, x_BTD, own, shared):
    """Layers that train, and the others that rest among them."""
    (how, rest), (angles, context, seeds_B) = *others.items(), shared

    def layer(x_BTD, weights, own):
      fitted = fit(config, {'blocks': jax.tree.map(lambda x: x[None], weights)})
      block = layers.Block(fitted, self.mix, None, parent=None)
      carry, shared = (x_BTD, None), (angles, context)
      return block.apply({'params': weights}, carry, shared, (*own, None))[0][0]

    if config.remat != 'none':
      policy = _POLICIES[config.remat]
      layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    return resting.run(
      layer,
      x_BTD,
      self.variables['params'][name],
      own,
      resting.Resting(
        rest['weights'], (None, _keys(seeds_B, rest['layers'])), rest['before']
      ),
      through=how == 'through',
      unroll=1 if config.scan else config.num_layers,
    )


def _keys(seeds_B, layers_L):
  """A key for each of some layers and each row, from the rows' seeds."""
  if seeds_B is None:
    return None
  keys_B = jax.vmap(jax.random.key)(seeds_B)
  fold = jax.vmap(jax.random.fold_in, (0, None))
  return jax.vmap(fold, (None, 0))(keys_B, layers_L)


def stack_name(number: int, count: int) -> str:
  """Linen knows no tuples of modules: several stacks are numbered names."""
  return 'blocks' if count == 1 else f'blocks_{number}'


def init_params(config: ModelConfig, key: jax.Array) -> dict[str, PyTree]:
  """Random float32 parameters, layers stacked on axis 0 (`tree.AXES`)."""
  tokens_BT = jnp.zeros((1, 2), jnp.int32)
  return Decoder((config,)).init(key, tokens_BT, tokens_BT, None)['params']


def apply(
  config: ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  extra: PyTree = None,
) -> jax.Array:
  """Logits of every position.

  Args:
    config: of the dense model; counts of layers, heads and channels are read
      off `params`.
    params: tree of `tree.AXES`, dense or a sub-network.
    batch: 'tokens' int32 [B, T]; optional 'positions' int32 [B, T] (default 0,
      1, 2...), 'segments' int32 [B, T] (default: one document a row) and
      'dropout' uint32 [B], a seed for each row (default: no dropout).
    extra: what parked neurons contribute (`layers.complete`), by stack
      `{'attention': {...}, 'mlp': {...}}`, stacked on layers; 'layers', int32
      [L], the numbers of these in the dense model; and layers that rest among
      them, 'exact' or 'through' (`resting.run`): `{'weights': ..., 'layers':
      ..., 'before': ...}`. None: nothing.

  Returns:
    float32 [B, T, V].
  """
  return ops.logits(*run(config, params, batch, extra)[0])


def observe(
  config: ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  reduce: Callable[[dict[str, Any]], Any],
) -> Any:
  """What `reduce` makes of each block, stacked over all layers on axis 0.

  It goes from a block's intermediate values (`importance.observe`) to arrays.
  """
  seen = run(config, params, batch, observe=reduce)[1]
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)


def run(
  config: ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  extra: PyTree = None,
  *,
  observe: Callable[[dict[str, Any]], Any] | None = None,
  mix: layers.Mix = layers.mix_rows,
  context: Any = None,
  cache: tuple[PyTree, ...] | None = None,
) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...], tuple[Any, ...]]:
  """The one forward pass; first arguments as in `apply`.

  Each block's intermediate values go through `observe`. Heads look at positions
  as `mix` does (`layers.mix_rows`), with the `context` (None: the batch's
  'segments') and the `cache` of each stack of layers, which it returns.

  Returns:
    What `ops.logits` multiplies, `[B, T, D]` and the matrix `[V, D]`; what was
    observed, and the cache, of each stack.
  """
  tokens_BT = batch['tokens']
  positions_BT = batch.get('positions')
  if positions_BT is None:
    positions_BT = jnp.arange(tokens_BT.shape[1])[None]
  stacks = tree.stacks(params)
  extra = extra if isinstance(extra, tuple) else (extra,) * len(stacks)
  context = batch.get('segments') if context is None else context
  named = {name: leaf for name, leaf in params.items() if name != 'blocks'}
  for number, stack in enumerate(stacks):
    named[stack_name(number, len(stacks))] = stack
  fitted = tuple(fit(config, {'blocks': stack}) for stack in stacks)
  arguments = positions_BT, context, extra, batch.get('dropout'), cache
  model = Decoder(fitted, mix, observe)
  return model.apply({'params': named}, tokens_BT, *arguments)


def fit(config: ModelConfig, params: PyTree) -> ModelConfig:
  """The configuration with the counts that `params`, one stack, really has."""
  (stack,) = tree.stacks(params)
  num_layers, num_heads = stack['attention']['query'].shape[:2]
  return dataclasses.replace(
    config,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=stack['attention']['key'].shape[1],
    mlp_dim=stack['mlp']['gate'].shape[1],
    # Unrolled, all layers would come from the host at once.
    scan=config.scan or any(map(sharding.is_away, jax.tree.leaves(stack))),
  )
