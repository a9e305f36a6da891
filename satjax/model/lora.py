"""Low-rank adapters: matrices `W + s B A` of which W stands still.

LoRA (Hu et al., 2021). In the layout of `tree.AXES` a matrix is `[*neurons, D]`
and its adapter the product of `rows` [*neurons, r] and `columns` [r, D], so
that what belongs to a neuron is its rows, in adapters as everywhere. Of a
matrix that reads the residual stream `rows` are B and `columns` A; of one that
writes to it they are A and B. Layers are stacked on axis 0.

Adapters are a tree beside the parameters, `{'blocks': {'attention': {'query':
{'rows': ..., 'columns': ...}}}}`, with the axis names of `tree.ADAPTERS`.
"""

from collections.abc import Callable
import math
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.config.groups import LoraConfig, ModelConfig
from satjax.tree import PyTree


class LowRank(NamedTuple):
  """`base + rows columns`, which `ops` multiplies without ever adding it up.

  Stands in a parameter tree in place of a matrix. So no gradient of the size of
  `base` is formed, if `base` is no function of what is differentiated.
  """

  base: jax.Array
  rows: jax.Array
  columns: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def astype(self, dtype: jnp.dtype) -> Self:
    return LowRank(*(x.astype(dtype) for x in self))


def paths(config: LoraConfig) -> dict[str, str]:
  """Paths of the matrices that have adapters, by target."""
  names = {path.rsplit('/', 1)[-1]: path for path in tree.AXES}
  return {target: names[target] for target in config.targets}


def init(
  config: LoraConfig, model: ModelConfig, key: jax.Array
) -> dict[str, PyTree]:
  """Adapters that change nothing: B is zero.

  A is uniform between +-1 / sqrt(inputs), as `kaiming_uniform_(a=sqrt(5))` in
  the released code of LoRA and in PEFT; the paper has a Gaussian.
  """
  shapes, leaves = tree.shapes(model), {}
  for path in paths(config).values():
    layers, *neurons, embed = shapes[path]
    writes = path in tree.WRITES.values()
    bound = (math.prod(neurons) if writes else embed) ** -0.5
    for factor, shape, is_a in (
      ('rows', (layers, *neurons, config.rank), writes),
      ('columns', (layers, config.rank, embed), not writes),
    ):
      own = tree.key_of(key, path)
      leaves[f'{path}/{factor}'] = (
        jax.random.uniform(own, shape, minval=-bound, maxval=bound)
        if is_a
        else jnp.zeros(shape)
      )
  return tree.unflatten(leaves)


def attach(adapters: PyTree, params: PyTree, scale: float) -> PyTree:
  """The parameters, with a `LowRank` in place of every adapted matrix.

  Both whole, or the same sub-network; `scale` is s, `LoraConfig.scale`.
  """
  return _adapt(
    lambda x, rows, columns: LowRank(x, rows, scale * columns), params, adapters
  )


def merge(adapters: PyTree, params: PyTree, scale: float) -> PyTree:
  """The parameters with the adapters added to them; arguments as `attach`."""

  def add(x, rows, columns):
    product = jnp.einsum(
      'l...r,lrd->l...d', rows, scale * columns, precision='highest'
    )
    return x + product.astype(x.dtype)

  return _adapt(add, params, adapters)


def _adapt(fn: Callable[..., PyTree], params: PyTree, adapters: PyTree):
  """`fn(matrix, rows, columns)` of the matrices that have an adapter."""
  if isinstance(params, tuple):  # stacks of layers
    return tuple(_adapt(fn, *both) for both in zip(params, adapters))
  if isinstance(params, dict):
    return params | {
      name: _adapt(fn, params[name], inner) for name, inner in adapters.items()
    }
  return fn(params, **adapters)
