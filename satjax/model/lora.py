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

  def sum(self) -> jax.Array:
    """The matrix itself, or that of each layer."""
    product = jnp.einsum(
      'l...r,lrd->l...d' if self.columns.ndim == 3 else 'vr,rd->vd',
      self.rows,
      self.columns,
      precision='highest',
    )
    return self.base + product.astype(self.base.dtype)


def paths(config: LoraConfig, model: ModelConfig) -> list[str]:
  """Paths of the matrices that have adapters; tied tables are one."""
  names = {path.rsplit('/', 1)[-1]: path for path in tree.AXES}
  if model.tied:
    names['unembed'] = 'embed'
  return list(dict.fromkeys(names[target] for target in config.targets))


def init(
  config: LoraConfig, model: ModelConfig, key: jax.Array
) -> dict[str, PyTree]:
  """Adapters that change nothing: B is zero.

  A is uniform between +-1 / sqrt(inputs), as `kaiming_uniform_(a=sqrt(5))` in
  the released code of LoRA and in PEFT; the paper has a Gaussian. Of a table
  that is looked up alone the columns are, as there, normal, and the rows zero.
  """
  shapes, leaves = tree.shapes(model), {}
  for path in paths(config, model):
    *before, embed = shapes[path]
    layers = before[:1] if tree.AXES[path][0] == 'layers' else []
    neurons = before[len(layers) :]
    writes = path in tree.WRITES.values()
    is_input = path == 'embed' and not model.tied
    bound = (math.prod(neurons) if writes else embed) ** -0.5
    for factor, shape, is_a in (
      ('rows', (*before, config.rank), writes),
      ('columns', (*layers, config.rank, embed), not writes),
    ):
      own, drawn = tree.key_of(key, path), jnp.zeros(shape)
      if is_a and is_input:
        drawn = jax.random.normal(own, shape)
      elif is_a:
        drawn = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
      leaves[f'{path}/{factor}'] = drawn
  return tree.unflatten(leaves)


def attach(adapters: PyTree, params: PyTree, scale: float | None) -> PyTree:
  """The parameters, with a `LowRank` in place of every adapted matrix.

  Both whole, or the same sub-network; `scale` is s, `LoraConfig.scale`;
  None: the adapters have it already.
  """

  def low_rank(x, rows, columns):
    return LowRank(x, rows, columns if scale is None else scale * columns)

  return _adapt(low_rank, params, adapters)


def merge(adapters: PyTree, params: PyTree, scale: float) -> PyTree:
  """The parameters with the adapters added to them; arguments as `attach`."""

  return jax.tree.map(
    lambda x: x.sum() if isinstance(x, LowRank) else x,
    attach(adapters, params, scale),
    is_leaf=lambda x: isinstance(x, LowRank),
  )


def _adapt(fn: Callable[..., PyTree], params: PyTree, adapters: PyTree):
  """`fn(matrix, rows, columns)` of the matrices that have an adapter."""
  if isinstance(params, tuple):  # stacks of layers
    return tuple(_adapt(fn, *both) for both in zip(params, adapters))
  if isinstance(params, dict):
    return params | {
      name: _adapt(fn, params[name], inner) for name, inner in adapters.items()
    }
  return fn(params, **adapters)
