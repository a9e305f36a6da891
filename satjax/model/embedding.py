"""The look-up of tokens in the embedding table, and its gradient.

The gradient adds up many rows at few places, for texts repeat their words. XLA
does that on a GPU by atomic additions that wait for each other; a matmul with
one-hot rows costs a third of the output layer and waits for nothing.
Letters as in `ops`, V words, C positions of a chunk.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from satjax import sharding
from satjax.model import lora, ops, shards

_CHUNK = 4096  # positions whose one-hot rows a device holds at once


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
  """Rows of the table, `[B, T, D]` in `dtype`."""
  # Split by words alone: rows of a table split both ways are looked up by
  # sending the tokens around.
  table_VD = sharding.constrain(table_VD, 'tensor', None)
  x_BTD = jnp.take(table_VD, tokens_BT, axis=0, mode='clip').astype(dtype)
  # Fewer rows than devices, as of a probe: each device has all of them.
  rows, _ = shards.axes_that_divide(len(x_BTD), 1)
  return sharding.constrain(x_BTD, rows)


def embed(
  table_VD: jax.Array | lora.LowRank, tokens_BT: jax.Array, dtype: str
) -> jax.Array:
  """The same, with the adapters of the table if it has any."""
  if not isinstance(table_VD, lora.LowRank):
    return look_up(table_VD, tokens_BT, dtype)
  low_BTR = look_up(table_VD.rows, tokens_BT, dtype)
  added_BTD = ops.project_out(low_BTR, table_VD.columns.astype(dtype))
  return look_up(table_VD.base, tokens_BT, dtype) + added_BTD


def _look_up_fwd(table_VD, tokens_BT, dtype):
  like_V0 = table_VD[:, :0]  # carries the number of words, and the dtype
  return look_up(table_VD, tokens_BT, dtype), (tokens_BT, like_V0)


def _look_up_bwd(dtype, residuals, dx_BTD):
  del dtype
  tokens_BT, like_V0 = residuals
  words, dtype = len(like_V0), like_V0.dtype
  tokens_BT = jnp.clip(tokens_BT, 0, words - 1)
  return gradient(tokens_BT, dx_BTD, words, dtype), None


look_up.defvjp(_look_up_fwd, _look_up_bwd)


def gradient(
  tokens_BT: jax.Array,
  dx_BTD: jax.Array,
  words: int,
  dtype: jnp.dtype,
) -> jax.Array:
  """The gradient of the table `[V, D]`, from that of the rows looked up.

  Each device adds up its rows and its words in float32; the sums travel once,
  in `dtype`.
  """
  wide = jnp.promote_types(dtype, jnp.float32)
  rows, split = shards.axes_that_divide(len(tokens_BT), words)

  def local(tokens_BT, dx_BTD):
    own, first = words, 0
    if split:
      own //= lax.axis_size(split)
      first = lax.axis_index(split) * own
    how = {'words': own, 'dtype': wide}
    dtable_VD = lax.platform_dependent(
      tokens_BT - first,
      dx_BTD,
      cuda=functools.partial(multiplied, **how),
      default=functools.partial(scattered, **how),
    )
    return shards.sum_gradient(dtable_VD.astype(dtype), rows)

  out = shards.gradient_axes(rows, split, dx_BTD.shape[-1])
  return shards.on_each(local, [(rows,), (rows,)], out)(tokens_BT, dx_BTD)


def scattered(
  tokens_BT: jax.Array, dx_BTD: jax.Array, words: int, dtype: jnp.dtype
) -> jax.Array:
  """Row added after row, `[V, D]`; a token out of range adds nothing."""
  is_known_BT = (tokens_BT >= 0) & (tokens_BT < words)
  places_BT = jnp.where(is_known_BT, tokens_BT, words)
  dtable_VD = jnp.zeros((words, dx_BTD.shape[-1]), dtype)
  return dtable_VD.at[places_BT].add(dx_BTD.astype(dtype), mode='drop')


def multiplied(
  tokens_BT: jax.Array,
  dx_BTD: jax.Array,
  words: int,
  dtype: jnp.dtype,
  chunk: int = _CHUNK,
) -> jax.Array:
  """The same by matmuls."""

  def add(dtable_VD, part):
    token_C, dx_CD = part
    one_hot_CV = jax.nn.one_hot(token_C, words, dtype=dx_CD.dtype)
    dtable_VD += jnp.einsum(
      'CV,CD->VD',
      one_hot_CV,
      dx_CD,
      precision='highest',
      preferred_element_type=dtype,
    )
    return dtable_VD, None

  zero = jnp.zeros((words, dx_BTD.shape[-1]), dtype)
  return lax.scan(add, zero, shards.chunks(chunk, tokens_BT, dx_BTD))[0]
