"""Causal attention of packed documents on a GPU, by cuDNN.

A mask is a T x T matrix for each row, and so is its gradient: what flash
attention is there to avoid. cuDNN takes the places and lengths of documents
instead. `jax.nn` does not pass them on (pull request 29731 of JAX is open), and
so the function below it is called, if it is there.
Letters as in `ops`, M documents of a row at most.
"""

import functools
import inspect

import jax
from jax import lax
import jax.numpy as jnp

from satjax.model import ops, shards

try:
  from jax._src.cudnn import fused_attention_stablehlo as fused
except ImportError:
  fused = None

# cuDNN keeps M numbers of each query and head for the backward pass, and looks
# at M documents even if there are fewer. MaxText has 32.
_MOST = 64
_SHORTEST = 32  # tokens of a document, on average, from which on rows are fast


@functools.cache
def can_pack() -> bool:
  """Whether this JAX, cuDNN and GPU (Hopper or later) take documents."""
  device = jax.local_devices()[0]
  if fused is None or device.platform != 'gpu':
    return False
  names = inspect.signature(fused.dot_product_attention).parameters
  return (
    {'q_offsets', 'kv_offsets'} <= set(names)
    and float(device.compute_capability) >= 9
    and fused.check_cudnn_version() >= 90600
  )


def attention(
  qkv: ops.QKV, segments_BT: jax.Array, window: int = 0
) -> jax.Array:
  """`attention.attention` where a document is one run of equal numbers."""
  attend = functools.partial(_attend, window=window)
  return shards.attend(attend, qkv, segments_BT)


def _attend(qkv, segments_BT, *, window):
  """The rows and heads of one device, whatever the number of documents."""
  starts_BM, lengths_BM, fits = documents(segments_BT)
  out_BTNH = _packed(*qkv, starts_BM, lengths_BM, window)

  def one_row(row):
    qkv, segments_1T = jax.tree.map(lambda x: x[None], row)
    return masked(qkv, segments_1T, window)[0]

  def otherwise(fits, *batch):
    return lax.cond(
      fits,
      lambda qkv, _: jnp.zeros_like(qkv[0]),
      lambda *rows: lax.map(lambda row: _forget(one_row, row), rows),
      *batch,
    )

  # Where they do not fit, nothing of `out` is used, and its gradient is 0.
  return jnp.where(fits, out_BTNH, _forget(otherwise, fits, qkv, segments_BT))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forget(fn, *arguments):
  """`fn`, of which nothing is kept for the backward pass: no masks of rows.

  A `jax.checkpoint` inside of another one (`model.remat`) would keep what that
  one wants to.
  """
  return fn(*arguments)


_forget.defvjp(
  lambda fn, *arguments: (fn(*arguments), arguments),
  lambda fn, arguments, dy: jax.vjp(fn, *arguments)[1](dy),
)


def documents(segments_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Where the documents of rows begin, and how long they are.

  Returns:
    int32 `[B, M]` twice, -1 where there is no document; and whether M is
    enough for all rows. If not, the last one of a row reaches to its end.
  """
  length = segments_BT.shape[1]
  most = min(max(length // _SHORTEST, 2), _MOST)
  begins_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
  begins_BT = jnp.pad(begins_BT, ((0, 0), (1, 0)), constant_values=True)
  find = functools.partial(jnp.nonzero, size=most + 1, fill_value=length)
  ends_BN = jax.vmap(find)(begins_BT)[0].astype(jnp.int32)
  fits = jnp.all(ends_BN[:, -1] == length)
  starts_BM = ends_BN[:, :-1]
  lengths_BM = jnp.diff(ends_BN.at[:, -1].set(length), axis=1)
  exists_BM = starts_BM < length
  return (
    jnp.where(exists_BM, starts_BM, -1),
    jnp.where(exists_BM, lengths_BM, -1),
    fits,
  )


def _packed(query_BTNH, key_BSKH, value_BSKH, starts_BM, lengths_BM, window):
  # JAX 0.10.2 finds keys by the number of query heads, which is wrong where
  # they share them (pull request 39521): every head gets its own.
  groups = query_BTNH.shape[2] // key_BSKH.shape[2]
  if groups > 1:
    key_BSKH = jnp.repeat(key_BSKH, groups, axis=2)
    value_BSKH = jnp.repeat(value_BSKH, groups, axis=2)
  offsets_BN = jnp.pad(starts_BM, ((0, 0), (0, 1)), constant_values=-1)
  return fused.dot_product_attention(
    query_BTNH,
    key_BSKH,
    value_BSKH,
    q_seqlen=lengths_BM,
    kv_seqlen=lengths_BM,
    q_offsets=offsets_BN,
    kv_offsets=offsets_BN,
    scale=query_BTNH.shape[-1] ** -0.5,
    mask_type=fused.MaskType.PADDING_CAUSAL,
    sliding_window_length=window or None,
  )


def masked(
  qkv: ops.QKV,
  segments_BT: jax.Array | None,
  window: int = 0,
  implementation: str = 'cudnn',
) -> jax.Array:
  """`attention.attention` by `jax.nn`, documents as a mask."""
  mask_B1TS = None
  if segments_BT is not None:
    mask_B1TS = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
  return jax.nn.dot_product_attention(
    *qkv,
    mask=mask_B1TS,
    is_causal=True,
    local_window_size=(window - 1, 0) if window else None,
    implementation=implementation,
  )
