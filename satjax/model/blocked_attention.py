"""Causal attention for a CPU, where no fused kernel exists.

Heads first, so that a head's matrices are contiguous; one block of queries at a
time, so that the keys after a block, and those before its window, are never
touched. The backward pass is that of FlashAttention (Dao et al., 2022) without
its tiles along the keys.
Letters as in `ops`.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from satjax.model import ops

_BLOCK = 128


def attention(
  qkv: ops.QKV, segments_BT: jax.Array | None, window: int = 0
) -> jax.Array:
  """`attention.attention`: `[B, T, N, H]`, softmax in float32 or wider."""
  query_BTNH, *key_value = qkv
  batch, length, heads, head_dim = query_BTNH.shape
  kv_heads = qkv[1].shape[2]
  query_BKGTH = query_BTNH.reshape(
    batch, length, kv_heads, heads // kv_heads, head_dim
  ).transpose(0, 2, 3, 1, 4) * (head_dim**-0.5)
  key_BKSH, value_BKSH = (x.transpose(0, 2, 1, 3) for x in key_value)
  out_BKGTH = _attend(query_BKGTH, key_BKSH, value_BKSH, segments_BT, window)
  return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(query_BTNH.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query_BKGTH, key_BKSH, value_BKSH, segments_BT, window):
  return _attend_fwd(query_BKGTH, key_BKSH, value_BKSH, segments_BT, window)[0]


def _attend_fwd(query_BKGTH, key_BKSH, value_BKSH, segments_BT, window):
  """Keeps each block's unnormalised weights and their sums, `[.., T, 1]`."""
  dtype = query_BKGTH.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  outs, kept = [], []
  for start, end, first in _blocks(query_BKGTH, window):
    score_BKGTS = jnp.einsum(
      'BKGTH,BKSH->BKGTS',
      query_BKGTH[..., start:end, :],
      key_BKSH[..., first:end, :],
      preferred_element_type=wide,
    )
    score_BKGTS = jnp.where(
      _mask(segments_BT, start, end, first, window), score_BKGTS, -jnp.inf
    )
    highest = jnp.max(score_BKGTS, axis=-1, keepdims=True)
    weight_BKGTS = jnp.exp(score_BKGTS - highest)
    total = jnp.sum(weight_BKGTS, axis=-1, keepdims=True)
    weight_BKGTS = weight_BKGTS.astype(dtype)
    out_BKGTH = jnp.einsum(
      'BKGTS,BKSH->BKGTH',
      weight_BKGTS,
      value_BKSH[..., first:end, :],
      preferred_element_type=wide,
    )
    outs.append((out_BKGTH / total).astype(dtype))
    kept.append((weight_BKGTS, total))
  out_BKGTH = jnp.concatenate(outs, axis=-2)
  return out_BKGTH, (query_BKGTH, key_BKSH, value_BKSH, out_BKGTH, kept)


def _attend_bwd(window, residuals, dout_BKGTH):
  query_BKGTH, key_BKSH, value_BKSH, out_BKGTH, kept = residuals
  dtype, wide = query_BKGTH.dtype, kept[0][1].dtype
  length = query_BKGTH.shape[-2]
  # A row's sum of weight x gradient equals that of out x gradient, which is
  # shorter. As a matmul: XLA sums over a short axis slowly on a CPU.
  product = out_BKGTH.astype(wide) * dout_BKGTH.astype(wide)
  row_sum = product @ jnp.ones((product.shape[-1], 1), wide)
  dquery_BKGTH, dkey_BKHS, dvalue_BKHS = [], 0, 0
  for block, (weight_BKGTS, total) in zip(_blocks(query_BKGTH, window), kept):
    start, end, first = block
    dout = (dout_BKGTH[..., start:end, :] / total).astype(dtype)
    dweight_BKGTS = jnp.einsum(
      'BKGTH,BKSH->BKGTS',
      dout,
      value_BKSH[..., first:end, :],
      preferred_element_type=wide,
    )
    mean = row_sum[..., start:end, :] / total
    dscore_BKGTS = (weight_BKGTS * (dweight_BKGTS - mean)).astype(dtype)
    dquery_BKGTH.append(
      jnp.einsum('BKGTS,BKSH->BKGTH', dscore_BKGTS, key_BKSH[..., first:end, :])
    )
    pad = [(0, 0)] * 3 + [(first, length - end)]
    query = query_BKGTH[..., start:end, :]
    dkey_BKHS += jnp.pad(_over_queries(query, dscore_BKGTS), pad)
    dvalue_BKHS += jnp.pad(_over_queries(dout, weight_BKGTS), pad)
  return (
    jnp.concatenate(dquery_BKGTH, axis=-2),
    dkey_BKHS.swapaxes(-1, -2),
    dvalue_BKHS.swapaxes(-1, -2),
    None,
  )


_attend.defvjp(_attend_fwd, _attend_bwd)


def _over_queries(x_BKGTH, weight_BKGTS):
  """Sums over queries, the wide matrix right; see `ops.weight_gradient`."""
  out_BKHS = jnp.einsum('BKGTH,BKGTS->BKHS', x_BKGTH, weight_BKGTS)
  return lax.optimization_barrier(out_BKHS)


def _mask(segments_BT, start, end, first, window):
  """Which keys of a block each of its queries may see, `[.., T, S]`."""
  query_T1, key_S = jnp.arange(start, end)[:, None], jnp.arange(first, end)
  seen_TS = query_T1 >= key_S
  if window:
    seen_TS &= query_T1 < key_S + window
  if segments_BT is None:
    return seen_TS
  same_BTS = segments_BT[:, start:end, None] == segments_BT[:, None, first:end]
  return seen_TS & same_BTS[:, None, None]


def _blocks(query_BKGTH, window):
  """Of each block: its first query, the one after its last, its first key."""
  length = query_BKGTH.shape[-2]
  window = window or length
  return [
    (start, min(start + _BLOCK, length), max(0, start - window + 1))
    for start in range(0, length, _BLOCK)
  ]
