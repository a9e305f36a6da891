"""Depth growth: a gather along the `layers` axis of the parameter tree.

G_stack, the operator that Du et al. (2024) recommend, repeats the whole stack:
target layer i is base layer i modulo the base depth.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.tree import PyTree


def stack_map(num_layers: int, factor: int) -> tuple[int, ...]:
  """Source of every target layer for G_stack: `(0, 1, 0, 1)` for 2 x 2."""
  return tuple(range(num_layers)) * factor


def grow_depth(params: PyTree, layer_map: Sequence[int]) -> PyTree:
  """Target layer i becomes a copy of layer `layer_map[i]`.

  Args:
    params: tree with layers on axis 0 of the leaves under `blocks`, or any
      state that mirrors it (moments are found by their path).
    layer_map: source layer of each target layer.

  Raises:
    ValueError: a source that is not a layer of the tree, or no layer at all.
  """
  rows = np.asarray(layer_map)

  def take(path, leaf):
    if not is_stacked(path, leaf.ndim):
      return leaf
    _check(rows, leaf.shape[0])
    return jnp.take(leaf, rows, axis=0)

  return tree.map_with_path(take, params)


def is_stacked(path: str, ndim: int) -> bool:
  """Whether a leaf has layers on axis 0.

  Factored moments (Adafactor) lose a later axis, not the layers; where they
  are off, a placeholder of one number stands in.
  """
  name = tree.param_of(path)
  return name is not None and name.startswith('blocks/') and ndim >= 2


def _check(rows: np.ndarray, num_layers: int) -> None:
  if rows.ndim != 1 or not rows.size or rows.dtype.kind not in 'iu':
    raise ValueError(
      f'layer_map {rows.tolist()} must be the numbers of one or more layers'
    )
  if rows.min() < 0 or rows.max() >= num_layers:
    raise ValueError(
      f'layer_map {rows.tolist()} names layers outside 0..{num_layers - 1}'
    )
