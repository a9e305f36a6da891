"""The decoder one token at a time: keys and values are kept, not recomputed.

Plain functions on the parameter tree, for inference alone. A cache holds, for
each stack of layers, `{'key', 'value'}` `[L, B, K, S, H]` in the compute dtype,
keys already rotated: what a head looks at lies together, which makes a step on
a CPU more than twice as fast. Slot s of a row holds position s, and a query
sees the slots up to its own position, or the last ones of them that its window
holds: prompts are padded on the right, what the padding wrote is never seen,
and a token that is taken back is simply written over.
Letters as in `ops`, and L layers, V vocabulary, S slots.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

from satjax import tree
from satjax.config.groups import ModelConfig
from satjax.model import attention, embedding, layers, ops
from satjax.tree import PyTree

Cache = tuple[dict[str, jax.Array], ...]


def cast(config: ModelConfig, params: PyTree) -> PyTree:
  """Matrices in the compute dtype, once instead of at every token.

  Norm gains stay as they are, for the norms are computed in float32.
  """

  def one(path, leaf):
    leaf = jnp.asarray(leaf)
    return leaf if path.endswith('norm') else leaf.astype(config.dtype)

  return tree.map_with_path(one, params)


def prefill(
  config: ModelConfig,
  params: PyTree,
  tokens_BT: jax.Array,
  lengths_B: jax.Array,
  size: int,
) -> tuple[jax.Array, Cache]:
  """Reads whole prompts.

  Args:
    config: as in `decoder.apply`.
    params: as in `decoder.apply`.
    tokens_BT: int32, padded on the right with anything.
    lengths_B: tokens of each row, at least 1.
    size: slots of the cache, at least T.

  Returns:
    Float32 logits `[B, V]` of each row's last token, and the cache.
  """
  length = tokens_BT.shape[1]
  angles = _angles(config, jnp.arange(length)[None])
  pad = ((0, 0), (0, 0), (0, 0), (0, size - length), (0, 0))

  def mix(query_BTNH, key_BTKH, value_BTKH):
    mixed_BTNH = attention.attention(
      query_BTNH,
      key_BTKH,
      value_BTKH,
      None,
      config.sliding_window,
      config.attention,
    )
    kept = key_BTKH.swapaxes(1, 2), value_BTKH.swapaxes(1, 2)
    return mixed_BTNH, kept

  def block(x_BTD, weights):
    return _block(config, x_BTD, weights, angles, mix)

  x_BTD = embedding.look_up(params['embed'], tokens_BT, config.dtype)
  cache = []
  for stack in tree.stacks(params):
    x_BTD, kept = lax.scan(block, x_BTD, stack, unroll=_unroll(config, stack))
    key_LBKSH, value_LBKSH = (jnp.pad(leaf, pad) for leaf in kept)
    cache.append({'key': key_LBKSH, 'value': value_LBKSH})
  last_B11 = (lengths_B - 1)[:, None, None]
  x_B1D = jnp.take_along_axis(x_BTD, last_B11, axis=1)
  return _logits(config, params, x_B1D)[:, 0], tuple(cache)


def extend(
  config: ModelConfig,
  params: PyTree,
  cache: Cache,
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Reads a few more tokens of every row.

  Args:
    config: as in `decoder.apply`.
    params: as in `decoder.apply`.
    cache: with every position below those of `tokens_BT` filled.
    tokens_BT: int32.
    positions_BT: of the tokens, rising by 1 in a row. What lies beyond the
      last slot is not kept, and its logits mean nothing.

  Returns:
    Float32 logits `[B, T, V]`, and the cache with T more positions of a row.
  """
  seen_B1TS = _seen(config, positions_BT, cache[0]['key'].shape[3])
  rows_B11 = jnp.arange(tokens_BT.shape[0])[:, None, None]
  angles = _angles(config, positions_BT)

  def block(carry, part):
    # The cache is carried, and not sliced and stacked again, so that one token
    # writes one token's worth of memory.
    x_BTD, cache = carry
    layer, weights = part

    def mix(query_BTNH, key_BTKH, value_BTKH):
      heads_K1 = jnp.arange(key_BTKH.shape[2])[:, None]
      at = (layer, rows_B11, heads_K1, positions_BT[:, None])
      read = {'key': key_BTKH, 'value': value_BTKH}
      new = {
        name: cache[name].at[at].set(x_BTKH.swapaxes(1, 2), mode='drop')
        for name, x_BTKH in read.items()
      }
      mixed_BTNH = jax.nn.dot_product_attention(
        query_BTNH,
        new['key'][layer].swapaxes(1, 2),
        new['value'][layer].swapaxes(1, 2),
        mask=seen_B1TS,
        implementation='xla',
      )
      return mixed_BTNH, new

    return _block(config, x_BTD, weights, angles, mix), None

  x_BTD = embedding.look_up(params['embed'], tokens_BT, config.dtype)
  grown = []
  for stack, part in zip(tree.stacks(params), cache):
    numbers_L = jnp.arange(part['key'].shape[0])
    (x_BTD, part), _ = lax.scan(
      block, (x_BTD, part), (numbers_L, stack), unroll=_unroll(config, stack)
    )
    grown.append(part)
  return _logits(config, params, x_BTD), tuple(grown)


def _seen(config, positions_BT, num_slots):
  """Which slots each query sees."""
  slots_S, query_B1T1 = jnp.arange(num_slots), positions_BT[:, None, :, None]
  seen_B1TS = slots_S <= query_B1T1
  if config.sliding_window:
    seen_B1TS &= slots_S > query_B1T1 - config.sliding_window
  return seen_B1TS


def decode_step(
  config: ModelConfig,
  params: PyTree,
  cache: Cache,
  token_B: jax.Array,
  position_B: jax.Array,
) -> tuple[jax.Array, Cache]:
  """`extend` by one token: logits `[B, V]`, and the cache."""
  logits_B1V, cache = extend(
    config, params, cache, token_B[:, None], position_B[:, None]
  )
  return logits_B1V[:, 0], cache


def _block(config, x_BTD, weights, angles, mix: Callable):
  """A residual block; `mix` is the attention, and returns what to keep."""
  eps = config.norm_eps
  normed_BTD = ops.rms_norm(x_BTD, weights['attention_norm'], eps)
  y_BTD, kept = _attend(normed_BTD, weights['attention'], angles, eps, mix)
  x_BTD += y_BTD
  normed_BTD = ops.rms_norm(x_BTD, weights['mlp_norm'], eps)
  return x_BTD + layers.transform(normed_BTD, weights['mlp'])[0], kept


def _attend(x_BTD, weights, angles, norm_eps, mix):
  """`layers.attend`, with the attention itself left to `mix`."""
  w = {name: leaf.astype(x_BTD.dtype) for name, leaf in weights.items()}
  query_BTNH, key_BTKH, value_BTKH = layers.project_heads(x_BTD, w, norm_eps)
  mixed_BTNH, kept = mix(
    ops.apply_rope(query_BTNH, angles),
    ops.apply_rope(key_BTKH, angles),
    value_BTKH,
  )
  return ops.project_out(mixed_BTNH, w['output']), kept


def _angles(config, positions_BT):
  c = config
  return ops.rope_angles(positions_BT, c.head_dim, c.rope_theta, c.rope_scaling)


def _logits(config, params, x_BTD):
  x_BTD = ops.rms_norm(x_BTD, params['final_norm'], config.norm_eps)
  unembed_VD = params['embed'] if config.tied else params['unembed']
  return ops.logits(x_BTD, unembed_VD.astype(config.dtype))


def _unroll(config, stack):
  return 1 if config.scan else stack['attention_norm'].shape[0]
