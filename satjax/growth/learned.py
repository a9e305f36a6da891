"""Learned growth: linear maps from the old model to the new one (LiGO).

The old parameters stand still while the maps train on the loss of the new
model; then its parameters are computed once, and train. Width first, then
depth (Wang et al., 2023; as Du et al., 2024, A.6, share the maps).
"""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.growth.operators import Learn
from satjax.tree import PyTree


def init(operator: Learn, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
  """The maps to begin with: width `[I; N(0, 1 / D)]`, depth G_stack.

  Returns:
    `{'width': {name: [new, old]}, 'depth': {name: [L, l]}}`; maps that would
    change no size are absent. Names do not occur in `tree.AXES`: the maps are
    no parameters of a model.
  """
  old, new, size = operator.old, operator.new, operator.head_dim
  shapes = {'residual': (new.embed, old.embed)}
  for name in ('query', 'key', 'value'):
    shapes[name] = (new.heads * size, old.heads * size)
  shapes['channels'] = (new.mlp, old.mlp)
  width = {}
  for name, (rows, columns) in shapes.items():
    if rows != columns:
      extra = jax.random.normal(
        tree.key_of(key, name), (rows - columns, columns)
      )
      scaled = extra / math.sqrt(rows)
      width[name] = jnp.concatenate([jnp.eye(columns), scaled])
  before, after = operator.num_layers
  depth = {}
  if before != after:
    for path in tree.AXES:
      if path.startswith('blocks/') and _name(path) not in depth:
        depth[_name(path)] = jnp.eye(before)[jnp.arange(after) % before]
  return {'width': width, 'depth': depth}


def materialise(maps: Mapping[str, PyTree], params: PyTree) -> PyTree:
  """The parameters of the new model, differentiable in the maps."""
  width, depth = maps['width'], maps['depth']

  def grow(path, x):
    rows_SR = width.get(_rows(path))
    if rows_SR is not None:
      layers, _, *inner = x.shape
      x = jnp.einsum(
        'lrd,sr->lsd',
        x.reshape(layers, rows_SR.shape[1], -1),
        rows_SR.astype(x.dtype),
      ).reshape(layers, -1, *inner)
    if 'residual' in width and tree.AXES[path][-1] == 'embed':
      x = jnp.einsum('...d,ed->...e', x, width['residual'].astype(x.dtype))
    if _name(path) in depth:
      x = jnp.einsum('ml,l...->m...', depth[_name(path)].astype(x.dtype), x)
    return x

  return tree.map_with_path(grow, params)


def _rows(path: str) -> str | None:
  """Of the map of the rows: heads or channels; None: it has neither."""
  if 'mlp' in tree.AXES[path]:
    return 'channels'
  is_of_heads = {'heads', 'kv_heads'} & {*tree.AXES[path]}
  return _name(path).replace('output', 'value') if is_of_heads else None


def _name(path: str) -> str:
  """Of the depth map; the bias and the norm of queries go with them."""
  name = path.rsplit('/', 1)[-1]
  for suffix in ('_bias', '_norm'):
    if name.removesuffix(suffix) in ('query', 'key', 'value'):
      name = name.removesuffix(suffix)
  return name
