"""A sub-network is a smaller tree: rows gathered out, trained, written back.

All functions work on parameters, on a whole train state, and on a flat dict of
leaves by path: moments mirror the parameters and are found by their path.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.sparsity.importance import Units
from satjax.sparsity.selection import Active
from satjax.tree import PyTree


def gather(full: PyTree, active: Active) -> PyTree:
  """The sub-network: the active rows, and every other leaf as it is."""

  def take(path, leaf):
    found = tree.indexed_axis(path, leaf.ndim, active)
    return leaf if found is None else tree.take_rows(leaf, active[found[0]])

  return tree.map_with_path(take, full)


def write_back(full: PyTree, sub: PyTree, active: Active) -> PyTree:
  """`full` with the rows of `sub` in their places; omitted rows untouched."""

  def put(path, leaf, new):
    found = tree.indexed_axis(path, leaf.ndim, active)
    return new if found is None else tree.put_rows(leaf, active[found[0]], new)

  return tree.map_with_path(put, full, sub)


def neuron_leaves(full: PyTree, active: Mapping) -> dict[str, jax.Array]:
  """The leaves that a selection cuts, by path."""
  return {
    path: leaf
    for path, leaf in tree.flatten(full).items()
    if tree.indexed_axis(path, leaf.ndim, active)
  }


def replace_leaves(full: PyTree, leaves: Mapping[str, jax.Array]) -> PyTree:
  """`full` with the leaves at the given paths replaced."""
  return tree.map_with_path(lambda path, leaf: leaves.get(path, leaf), full)


def taking_part(params: PyTree, active: Active) -> dict[str, jax.Array]:
  """Which neurons of each unit a selection keeps: bool `[layers, neurons]`."""
  kept = {}
  for unit, members in tree.neuron_units(params).items():
    if unit in active:
      path = next(iter(members))
      shape = tree.flatten(params)[path].shape[:2]
      rows_LR = active[unit]
      ones_LR = jnp.ones(rows_LR.shape, bool)
      kept[unit] = tree.put_rows(jnp.zeros(shape, bool), rows_LR, ones_LR)
  return kept


def masks(
  params: PyTree, units: Units, kept: Mapping[str, jax.Array]
) -> PyTree:
  """For each leaf, True where it takes part; broadcasts against the leaf.

  Args:
    params: any tree of parameters.
    units: the leaves, and which of their axes, that make up a neuron.
    kept: which neurons of each unit take part; a missing unit is kept whole.
  """

  def mask(path, leaf):
    result = jnp.ones((), bool)
    for unit, members in units.items():
      if path in members:
        shape = [1] * leaf.ndim
        for axis in members[path]:
          shape[axis] = leaf.shape[axis]
        rows = kept[unit].reshape(shape) if unit in kept else True
        result &= jnp.broadcast_to(rows, shape)
    return result

  return tree.map_with_path(mask, params)
