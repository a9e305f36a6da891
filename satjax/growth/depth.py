"""Depth growth: a gather along the `layers` axis of the parameter tree.

G_stack, the operator that Du et al. (2024) recommend, repeats the whole stack.
Every other depth operator is another layer map, and what is done to the layers
that are new.
"""

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.growth import fresh
from satjax.growth.operators import Depth


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
  if name in tree.WRITES.values():
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
  if name not in tree.WRITES.values():
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
