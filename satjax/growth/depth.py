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
from satjax.growth.operators import Depth


def transform(operator: Depth, x: jax.Array, draws: fresh.Draws) -> jax.Array:
  """What is done to copied layers `x` of the parameter of `draws`."""
  layers = draws.layers
  is_new = _flags(operator.is_new, layers, x.ndim)
  if layers and operator.is_random:
    is_fresh = _flags(operator.fresh, layers, x.ndim)
    x = jnp.where(is_fresh, draws.weights(x.shape).astype(x.dtype), x)
  if draws.name in tree.WRITES.values():
    if operator.branch_scale != 1:
      scale = jnp.where(is_new, operator.branch_scale, 1)
      x = x * scale.astype(x.dtype)
    if any(operator.zero_out):
      silent = _flags(operator.zero_out, layers, x.ndim)
      x = jnp.where(silent, jnp.zeros((), x.dtype), x)
  where = operator.noise_on == 'all' or is_new
  return draws.add_noise(x, operator.noise, where)


def _flags(
  values: Sequence[bool], layers: tuple[int, ...] | None, ndim: int
) -> np.ndarray:
  """Of each layer, to broadcast against a leaf; a leaf without has none."""
  picked = np.array(values)[list(layers)] if layers else np.zeros(1, bool)
  return picked.reshape(-1, *[1] * (ndim - 1))


def transform_moment(
  operator: Depth, x: jax.Array, layers: tuple[int, ...] | None, resets: bool
) -> jax.Array:
  """Moments and counts of copies are copies; those of fresh layers are 0.

  `resets`: so are those of all new layers.
  """
  gone = operator.is_new if resets else operator.fresh
  if not layers or not any(gone):
    return x
  return jnp.where(_flags(gone, layers, x.ndim), 0, x)


def ramp(
  operator: Depth, name: str, x: jax.Array, share: jax.Array
) -> jax.Array:
  """A parameter under the mask of `random`: fresh layers write a share.

  Du et al. (2024), A.5: `x + branch(x) c` is the branch with its last matrix
  times c.
  """
  if name not in tree.WRITES.values():
    return x
  where = _flags(operator.fresh, range(len(operator.fresh)), x.ndim)
  return jnp.where(where, share.astype(x.dtype) * x, x)


def is_stacked(path: str, ndim: int) -> bool:
  """Whether a leaf has layers on axis 0.

  Factored moments (Adafactor) lose a later axis, not the layers; where they
  are off, a placeholder of one number stands in.
  """
  return ndim >= 2 and (tree.param_of(path) or '').startswith('blocks/')
