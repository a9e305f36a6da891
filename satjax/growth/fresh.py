"""Random weights for new units, layers and noise; a key for each matrix."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from satjax import tree


def is_gain(name: str) -> bool:
  """Whether a parameter is the gain of a norm."""
  return name.endswith('_norm')


def is_bias(name: str) -> bool:
  """Whether a parameter is the bias of a projection."""
  return name.endswith('_bias')


def normal(
  key: jax.Array,
  name: str,
  shape: tuple[int, ...],
  layers: tuple[int, ...] | None = None,
) -> jax.Array:
  """Standard normal float32 numbers; a layer's do not depend on the others.

  So a tensor that grows by itself gets the numbers of the whole tree. `layers`
  are the numbers in the target of those on axis 0; None: there are none.
  """
  key = tree.key_of(key, name)
  if layers is None:
    return jax.random.normal(key, shape, jnp.float32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(layers))
  return jax.vmap(lambda k: jax.random.normal(k, shape[1:], jnp.float32))(keys)


class Draws(NamedTuple):
  """What is drawn for one parameter of the grown model.

  Attributes:
    key: of the operator.
    name: of the parameter.
    layers: as of `normal`.
    num_layers: of the grown model.
  """

  key: jax.Array
  name: str
  layers: tuple[int, ...] | None
  num_layers: int

  def weights(self, shape: tuple[int, ...]) -> jax.Array:
    """Initial values: gains are 1, biases 0, matrices random.

    N(0, 1 / (D L^2)) for matrices that write to the residual stream, with width
    D and depth L of the target, and N(0, 2 / (5 D)) for all others (Du et al.,
    2024, appendix I.2).
    """
    if is_gain(self.name):
      return jnp.ones(shape)
    if is_bias(self.name):
      return jnp.zeros(shape)
    width = shape[-1]
    std = math.sqrt(2 / (5 * width))
    if self.name in tree.WRITES.values():
      std = 1 / (math.sqrt(width) * self.num_layers)
    return normal(self.key, self.name, shape, self.layers) * std

  def add_noise(
    self, x: jax.Array, share: float, where: jax.Array | bool
  ) -> jax.Array:
    """`(1 - a) W + a eps` where asked; gains stay (Du et al., 2024, I.2)."""
    if not share or is_gain(self.name) or is_bias(self.name):
      return x
    # Not the numbers of fresh weights.
    other = self._replace(key=jax.random.fold_in(self.key, 1))
    eps = other.weights(x.shape).astype(x.dtype)
    return jnp.where(where, (1 - share) * x + share * eps, x)


def kind_of(path: str) -> str | None:
  """What a leaf of a train state is: by its path.

  'param', 'first' or 'second' moment, or 'count' of steps; None: it mirrors no
  parameter.
  """
  name = tree.param_of(path)
  if name is None:
    return None
  owner = path.removesuffix(name).strip('/').rpartition('/')[2]
  kinds = {'nu': 'second', 'count': 'count', 'params': 'param', '': 'param'}
  return kinds.get(owner, 'first')
