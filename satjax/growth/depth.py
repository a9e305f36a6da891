"""Depth growth: a gather along the `layers` axis of the parameter tree.

G_stack, the operator that Du et al. (2024) recommend, repeats the whole stack.
Every other depth operator is another layer map, and what is done to the layers
that are new.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.growth import fresh
from satjax.operators import Depth
from satjax.tree import PyTree


def grow_depth(
  params: PyTree,
  layer_map: Sequence[int],
  zero_out: Sequence[bool] | None = None,
  noise: float = 0.0,
  branch_scale: float = 1.0,
  *,
  noise_on: str = 'all',
  key: jax.Array | None = None,
) -> PyTree:
  """Target layer i becomes a copy of layer `layer_map[i]`.

  Args:
    params: tree with layers on axis 0 of the leaves under `blocks`, or any
      state that mirrors it (moments are found by their path).
    layer_map: source layer of each target layer.
    zero_out: target layers whose attention output and MLP down projections are
      0: they add nothing at first. Not the gate, nor the norm: zeroing only the
      last matrix of a branch leaves it a gradient.
    noise: a of `W <- (1 - a) W + a eps` on every matrix of parameters.
    branch_scale: factor on what new layers (later copies) write.
    noise_on: 'all' matrices, or those of 'new' layers only.
    key: of the noise.

  Raises:
    ValueError: a source that is not a layer of the tree, no layer at all, or
      noise without a key.
  """
  rows = np.asarray(layer_map)
  if rows.ndim != 1 or not rows.size or rows.dtype.kind not in 'iu':
    raise ValueError(
      f'layer_map {rows.tolist()} must be the numbers of one or more layers'
    )
  zeros = tuple(map(bool, zero_out if zero_out is not None else ()))
  if zeros and len(zeros) != rows.size:
    raise ValueError(
      f'zero_out has {len(zeros)} entries for {rows.size} layers; give one each'
    )
  if noise_on not in ('all', 'new'):
    raise ValueError(f"noise_on {noise_on!r}; allowed: 'all' | 'new'")
  if noise and key is None:
    raise ValueError(f'noise {noise} needs a key; pass jax.random.key(seed)')
  operator = Depth(
    tuple(rows.tolist()),
    zero_out=zeros,
    noise=noise,
    noise_on=noise_on,
    branch_scale=branch_scale,
  )
  layers = tuple(range(rows.size))

  def grow(path, leaf):
    stacked = is_stacked(path, leaf.ndim)
    if stacked:
      _check_range(rows, leaf.shape[0])
      leaf = jnp.take(leaf, rows, axis=0)
    if fresh.kind_of(path) != 'param':
      return leaf
    name = tree.param_of(path)
    return transform(operator, name, leaf, layers if stacked else None, key)

  return tree.map_with_path(grow, params)


def transform(
  operator: Depth,
  name: str,
  x: jax.Array,
  layers: tuple[int, ...] | None,
  key: jax.Array | None,
) -> jax.Array:
  """What is done to copied layers of a parameter.

  Args:
    operator: which layers are new, and what becomes of them.
    name: of the parameter, as in `tree.AXES`.
    x: the copies, `[len(layers), ...]`, or a leaf without layers.
    layers: their numbers in the target; None: the leaf has none.
    key: of noise and fresh layers.
  """
  num_layers = len(operator.layer_map)
  is_new = np.array(operator.is_new)
  if layers is None:
    everywhere = operator.noise_on == 'all'
    return fresh.add_noise(
      x, operator.noise, everywhere, key, name, None, num_layers
    )

  def flags(values):
    picked = np.array(values)[list(layers)]
    return picked.reshape(-1, *[1] * (x.ndim - 1))

  if any(operator.fresh):
    new = fresh.weights(key, name, x.shape, layers, num_layers)
    x = jnp.where(flags(operator.fresh), new.astype(x.dtype), x)
  if name in fresh.WRITES:
    if operator.branch_scale != 1:
      scale = jnp.where(flags(is_new), operator.branch_scale, 1)
      x = x * scale.astype(x.dtype)
    if any(operator.zero_out):
      x = jnp.where(flags(operator.zero_out), jnp.zeros((), x.dtype), x)
  where = True if operator.noise_on == 'all' else flags(is_new)
  return fresh.add_noise(
    x, operator.noise, where, key, name, layers, num_layers
  )


def transform_moment(
  operator: Depth, x: jax.Array, layers: tuple[int, ...] | None
) -> jax.Array:
  """Moments and counts of copies are copies; those of fresh layers are 0."""
  if layers is None or not any(operator.fresh):
    return x
  where = np.array(operator.fresh)[list(layers)]
  return jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), 0, x)


def ramp(
  operator: Depth, name: str, x: jax.Array, share: jax.Array
) -> jax.Array:
  """A parameter under the mask of `random`: fresh layers write a share.

  Du et al. (2024), A.5: `x + branch(x) c` is the branch with its last matrix
  times c.
  """
  if name not in fresh.WRITES:
    return x
  where = np.array(operator.fresh).reshape(-1, *[1] * (x.ndim - 1))
  return jnp.where(where, share.astype(x.dtype) * x, x)


def is_stacked(path: str, ndim: int) -> bool:
  """Whether a leaf has layers on axis 0.

  Factored moments (Adafactor) lose a later axis, not the layers; where they
  are off, a placeholder of one number stands in.
  """
  name = tree.param_of(path)
  return name is not None and name.startswith('blocks/') and ndim >= 2


def _check_range(rows: np.ndarray, num_layers: int) -> None:
  if rows.min() < 0 or rows.max() >= num_layers:
    raise ValueError(
      f'layer_map {rows.tolist()} names layers outside 0..{num_layers - 1}'
    )
