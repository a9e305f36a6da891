"""Causal attention on a TPU by JAX's splash kernel, also on a mesh.

The kernel works on one row with heads first, in tiles of whole lanes: rows are
padded to a multiple of 128 positions, which no real query sees.
Letters as in `ops`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from satjax.model import ops, shards

_LANES = 128
_BLOCK = 512  # positions of a tile, at most; MaxText's choice


def is_placeable() -> bool:
  """Whether the rows of each device are known.

  The partitioner cannot cut a kernel; outside of a mesh with several devices
  nobody else says where its rows are.
  """
  return not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1


def attention(
  qkv: ops.QKV,
  segments_BT: jax.Array | None,
  window: int = 0,
  name: str | None = None,
  interpret: bool = False,
) -> jax.Array:
  """`attention.attention`; `interpret`: without a TPU, slowly, for tests.

  `name` is of what the backward pass needs (`jax.ad_checkpoint`).
  """
  attend = functools.partial(
    _attend, window=window, name=name, interpret=interpret
  )
  return shards.attend(attend, qkv, segments_BT)


def _attend(qkv, segments_BT, *, window, name, interpret):
  """The rows and heads of one device."""
  from jax.experimental.pallas.ops.tpu import splash_attention as lib

  query_BTNH, key_BTKH, value_BTKH = qkv
  length, heads, head_dim = query_BTNH.shape[1:]
  padded = -(-length // _LANES) * _LANES

  def pad(x):
    return jnp.pad(x, [(0, 0), (0, padded - length)] + [(0, 0)] * (x.ndim - 2))

  square = (padded, padded)
  mask = lib.CausalMask(square)
  if window:
    mask = lib.LocalMask(square, (window - 1, 0), offset=0)
  size = math.gcd(padded, _BLOCK)
  names = [field.name for field in dataclasses.fields(lib.BlockSizes)]
  tiles = [name for name in names if name.startswith('block_')]
  kernel = lib.make_splash_mha(
    lib.MultiHeadMask([mask] * heads),
    block_sizes=lib.BlockSizes(**dict.fromkeys(tiles, size)),
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=name,
    interpret=interpret,
  )
  ids = None
  if segments_BT is not None:
    ids = lib.SegmentIds(pad(segments_BT), pad(segments_BT))
  query_BTNH *= head_dim**-0.5
  out_BNTH = jax.vmap(kernel)(
    *(pad(x).swapaxes(1, 2) for x in (query_BTNH, key_BTKH, value_BTKH)), ids
  )
  return out_BNTH.swapaxes(1, 2)[:, :length]
