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
from satjax.model import shards

_CHUNK = 4096  # positions whose one-hot rows a device holds at once


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VD: jax.Array, tokens_BT: jax.Array, dtype: str) -> jax.Array:
  """Rows of the table, `[B, T, D]` in `dtype`."""
  # Split by words alone: rows of a table split both ways are looked up by
  # sending the tokens around.
  table_VD = sharding.constrain(table_VD, 'tensor', None)
  x_BTD = jnp.take(table_VD, tokens_BT, axis=0, mode='clip').astype(dtype)
  return sharding.constrain(x_BTD, sharding.BATCH)


def _look_up_fwd(table_VD, tokens_BT, dtype):
  like_V0 = table_VD[:, :0]  # carries the number of words, and the dtype
  return look_up(table_VD, tokens_BT, dtype), (tokens_BT, like_V0)


def _look_up_bwd(dtype, residuals, dx_BTD):
  del dtype
  tokens_BT, like_V0 = residuals
  words, wide = len(like_V0), jnp.promote_types(like_V0.dtype, jnp.float32)
  dx_BTD = sharding.constrain(dx_BTD, sharding.BATCH)
  dtable_VD = lax.platform_dependent(
    jnp.clip(tokens_BT, 0, words - 1),
    dx_BTD,
    cuda=functools.partial(multiplied, words=words, dtype=wide),
    default=functools.partial(scattered, words=words, dtype=wide),
  )
  return dtable_VD.astype(like_V0.dtype), None


look_up.defvjp(_look_up_fwd, _look_up_bwd)


def scattered(
  tokens_BT: jax.Array, dx_BTD: jax.Array, words: int, dtype: jnp.dtype
) -> jax.Array:
  """The gradient of the table, by adding row after row."""
  dtable_VD = jnp.zeros((words, dx_BTD.shape[-1]), dtype)
  dtable_VD = dtable_VD.at[tokens_BT].add(dx_BTD.astype(dtype))
  return sharding.constrain(dtable_VD, 'tensor', None)


def multiplied(
  tokens_BT: jax.Array,
  dx_BTD: jax.Array,
  words: int,
  dtype: jnp.dtype,
  chunk: int = _CHUNK,
) -> jax.Array:
  """The same by matmuls, each device for its rows and its words."""
  rows, split = shards.axes_that_divide(len(tokens_BT), words)
  local = functools.partial(
    _local, words=words, dtype=dtype, chunk=chunk, rows=rows, split=split
  )
  out = shards.gradient_axes(rows, split)
  return shards.on_each(local, [(rows,), (rows,)], out)(tokens_BT, dx_BTD)


def _local(tokens_BT, dx_BTD, *, words, dtype, chunk, rows, split):
  first = 0
  if split:
    words //= lax.axis_size(split)
    first = lax.axis_index(split) * words

  def add(dtable_VD, part):
    token_C, dx_CD = part
    # Words of other devices, and padding, are rows of zeros.
    one_hot_CV = jax.nn.one_hot(token_C - first, words, dtype=dx_CD.dtype)
    dtable_VD += jnp.einsum(
      'CV,CD->VD',
      one_hot_CV,
      dx_CD,
      precision='highest',
      preferred_element_type=dtype,
    )
    return dtable_VD, None

  zero = jnp.zeros((words, dx_BTD.shape[-1]), dtype)
  parts = shards.chunks(chunk, tokens_BT, dx_BTD)
  return shards.sum_gradient(lax.scan(add, zero, parts)[0], rows)
