"""Functions of what each device holds, for what XLA would split badly."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from satjax import sharding
from satjax.model import ops

Axes = str | tuple[str, ...] | None


def axes_that_divide(rows: int, neurons: int) -> tuple[Axes, Axes]:
  """Mesh axes that share out rows, and neurons; None where it goes not up."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return None, None
  parts = math.prod(mesh.shape[axis] for axis in sharding.BATCH)
  return (
    sharding.BATCH if rows % parts == 0 else None,
    'tensor' if neurons % mesh.shape['tensor'] == 0 else None,
  )


def gradient_axes(rows: Axes, neurons: Axes, width: int) -> tuple[Axes, Axes]:
  """Mesh axes that split what `sum_gradient` returns, of so many columns.

  `rows` and `neurons` are of `axes_that_divide`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return neurons, 'fsdp' if rows and width % mesh.shape['fsdp'] == 0 else None


def sum_gradient(x_VD: jax.Array, rows: Axes) -> jax.Array:
  """The gradient of a matrix, summed over the devices that share out rows.

  Each keeps its own columns, if they can be shared out.
  """
  if not rows:
    return x_VD
  if x_VD.shape[1] % lax.axis_size('fsdp'):  # as the few of an adapter may be
    return lax.psum(x_VD, rows)
  x_VD = lax.psum_scatter(x_VD, 'fsdp', scatter_dimension=1, tiled=True)
  # Without the barrier the TPU compiler (libtpu 0.0.42) fails where the sum is
  # widened and added up in a loop over microbatches.
  return lax.optimization_barrier(lax.psum(x_VD, 'data'))


def chunks(size: int, *arrays: jax.Array) -> list[jax.Array]:
  """`[B, T, ...]` to equal chunks `[n, C, ...]`, C at most `size`.

  The last one is padded with zeros.
  """
  positions = math.prod(arrays[0].shape[:2])
  count = -(-positions // size)
  size = -(-positions // count)

  def cut(x):
    x = x.reshape(positions, *x.shape[2:])
    pad = [(0, count * size - positions)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad).reshape(count, size, *x.shape[1:])

  return [cut(x) for x in arrays]


def on_each(
  fn: Callable[..., Any], inputs: Sequence[tuple[Axes, ...]], outputs: Any
) -> Callable[..., Any]:
  """`fn` of the part of each device; `fn` itself on a single device.

  `inputs` are, of each argument, the mesh axes that split its first dimensions;
  `outputs` those of what it returns, or a list of them.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return fn
  several = isinstance(outputs, list)
  return jax.shard_map(
    fn,
    in_specs=tuple(P(*axes) for axes in inputs),
    out_specs=tuple(P(*a) for a in outputs) if several else P(*outputs),
    check_vma=False,
  )


def attend(
  fn: Callable[..., jax.Array], qkv: ops.QKV, segments_BT: jax.Array | None
) -> jax.Array:
  """Attention by `fn`, of the rows and heads of each device."""
  batch, _, kv_heads, _ = qkv[1].shape
  rows, heads = axes_that_divide(batch, kv_heads)
  split = rows, None, heads
  return on_each(fn, [split, (rows,)], split)(qkv, segments_BT)
