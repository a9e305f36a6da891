"""The decoder with a cache: keys and values are kept, not recomputed.

For inference alone. A cache holds, for each stack of layers, `{'key', 'value'}`
`[L, B, K, S, H]` in the compute dtype, keys already rotated: what a head looks
at lies together, which makes a step on a CPU more than twice as fast. Slot s of
a row holds position s, and a query sees the slots up to its own position, or
the last ones of them that its window holds: prompts are padded on the right,
what the padding wrote is never seen, and a token that is taken back is simply
written over.
Letters as in `ops`, and L layers, V vocabulary, S slots.
"""

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.config.groups import ModelConfig
from satjax.model import decoder, ops
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
  """Reads whole prompts, padded on the right with anything.

  A row has `lengths_B` tokens, at least 1; the cache has `size` slots, at least
  T.

  Returns:
    Float32 logits `[B, V]` of each row's last token, and the cache.
  """
  pad = ((0, 0), (0, 0), (0, 0), (0, size - tokens_BT.shape[1]), (0, 0))

  def keep(block):
    part = block['attention']
    kept = {'key': part['rotated_key'], 'value': part['value']}
    return jax.tree.map(lambda x_BTKH: x_BTKH.swapaxes(1, 2), kept)

  batch = {'tokens': tokens_BT}
  (x_BTD, unembed_VD), kept, _ = decoder.run(
    config, params, batch, observe=keep
  )
  last_B11 = (lengths_B - 1)[:, None, None]
  x_B1D = jnp.take_along_axis(x_BTD, last_B11, axis=1)
  cache = jax.tree.map(lambda x_LBKTH: jnp.pad(x_LBKTH, pad), kept)
  return ops.logits(x_B1D, unembed_VD)[:, 0], cache


def extend(
  config: ModelConfig,
  params: PyTree,
  cache: Cache,
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Reads a few more tokens of every row; the cache has all those before.

  Positions rise by 1 in a row. What lies beyond the last slot is not kept, and
  its logits mean nothing.

  Returns:
    Float32 logits `[B, T, V]`, and the cache with T more positions of a row.
  """
  batch = {'tokens': tokens_BT, 'positions': positions_BT}
  last, _, cache = decoder.run(
    config, params, batch, mix=_mix_slots, context=positions_BT, cache=cache
  )
  return ops.logits(*last), cache


def _mix_slots(config, qkv, positions_BT, layer, cache):
  """`layers.mix_rows` over the slots; the cache is that of the stack.

  It is carried from layer to layer, and not sliced and stacked again, so that
  one token writes one token's worth of memory.
  """
  query_BTNH, key_BTKH, value_BTKH = qkv
  rows_B11 = jnp.arange(len(positions_BT))[:, None, None]
  heads_K1 = jnp.arange(key_BTKH.shape[2])[:, None]
  at = layer, rows_B11, heads_K1, positions_BT[:, None]
  new = {'key': key_BTKH, 'value': value_BTKH}
  cache = {
    name: cache[name].at[at].set(x_BTKH.swapaxes(1, 2), mode='drop')
    for name, x_BTKH in new.items()
  }
  slots_S = jnp.arange(cache['key'].shape[3])
  query_B1T1 = positions_BT[:, None, :, None]
  seen_B1TS = slots_S <= query_B1T1
  if config.sliding_window:
    seen_B1TS &= slots_S > query_B1T1 - config.sliding_window
  mixed_BTNH = jax.nn.dot_product_attention(
    query_BTNH,
    cache['key'][layer].swapaxes(1, 2),
    cache['value'][layer].swapaxes(1, 2),
    mask=seen_B1TS,
    implementation='xla',
  )
  return mixed_BTNH, cache
