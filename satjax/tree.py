"""The parameter tree: paths, axis names, and gathers along a named axis.

One table names the axes of every leaf. Growth gathers along `layers`, SAT
gathers along `heads`, `kv_heads` and `mlp`, and sharding maps the same names
to mesh axes. Optimizer moments mirror the parameters, so that a moment is
found by the end of its path.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any

AXES: dict[str, tuple[str, ...]] = {
  'embed': ('vocab', 'embed'),
  'blocks/attention_norm': ('layers', 'embed'),
  'blocks/attention/query': ('layers', 'heads', 'head_dim', 'embed'),
  'blocks/attention/key': ('layers', 'kv_heads', 'head_dim', 'embed'),
  'blocks/attention/value': ('layers', 'kv_heads', 'head_dim', 'embed'),
  'blocks/attention/output': ('layers', 'heads', 'head_dim', 'embed'),
  'blocks/mlp_norm': ('layers', 'embed'),
  'blocks/mlp/gate': ('layers', 'mlp', 'embed'),
  'blocks/mlp/up': ('layers', 'mlp', 'embed'),
  'blocks/mlp/down': ('layers', 'mlp', 'embed'),
  'final_norm': ('embed',),
  'unembed': ('vocab', 'embed'),
}


def path_of(keys: tuple[Any, ...]) -> str:
  """Slash-separated path of a leaf, for dicts, sequences and dataclasses."""
  return jax.tree_util.keystr(keys, simple=True, separator='/')


def param_of(path: str) -> str | None:
  """The parameter that a leaf is or mirrors: '0/mu/blocks/mlp/up' -> the up."""
  parts = path.split('/')
  for start in range(len(parts)):
    name = '/'.join(parts[start:])
    if name in AXES:
      return name
  return None


def axes_of(path: str, ndim: int) -> tuple[str, ...] | None:
  """Axis names of the leaf at `path`, or None where the table has none.

  A moment that is stored factored (Adafactor) has fewer axes than its
  parameter and is not named.
  """
  name = param_of(path)
  if name is None or len(AXES[name]) != ndim:
    return None
  return AXES[name]


def map_with_path(
  fn: Callable[..., Any], tree: PyTree, *rest: PyTree
) -> PyTree:
  """`jax.tree.map` that also passes the slash-separated path."""
  return jax.tree_util.tree_map_with_path(
    lambda keys, *leaves: fn(path_of(keys), *leaves), tree, *rest
  )


def flatten(tree: PyTree) -> dict[str, Any]:
  """Leaves by slash-separated path."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {path_of(keys): leaf for keys, leaf in leaves}


def indexed_axis(
  path: str, ndim: int, index: Mapping[str, Any]
) -> tuple[str, int] | None:
  """The (name, position) of the one axis of a leaf that `index` selects on."""
  axes = axes_of(path, ndim) or ()
  for position, name in enumerate(axes):
    if name in index:
      return name, position
  return None


def take_rows(x: jax.Array, rows_LR: jax.Array) -> jax.Array:
  """Row `rows_LR[l, r]` of layer l, for a leaf `[layers, rows, ...]`."""

  def take(layer, rows):
    return jnp.take(layer, rows, axis=0, mode='clip')

  return jax.vmap(take)(x, rows_LR)


def put_rows(x: jax.Array, rows_LR: jax.Array, values: jax.Array) -> jax.Array:
  """Inverse of `take_rows`: sorted, distinct rows return to their places."""

  def put(layer, rows, new):
    return layer.at[rows].set(new, unique_indices=True, indices_are_sorted=True)

  return jax.vmap(put)(x, rows_LR, values)


def num_params(params: PyTree) -> int:
  """How many numbers the tree holds."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def neuron_units(params: PyTree) -> dict[str, dict[str, tuple[int, int]]]:
  """The leaves that make up a head and a channel of the parameter tree.

  Returns:
    `{'heads': {path: (layer axis, head axis)}, 'mlp': {...}}`. A head owns its
    rows of key and value only if every head has its own (no grouped queries).
  """
  leaves = flatten(params)
  grouped = (
    leaves['blocks/attention/key'].shape[1]
    != leaves['blocks/attention/query'].shape[1]
  )
  members = {
    'heads': ('heads',) if grouped else ('heads', 'kv_heads'),
    'mlp': ('mlp',),
  }
  return {
    unit: {
      path: (0, 1)
      for path in leaves
      if any(name in AXES.get(path, ()) for name in names)
    }
    for unit, names in members.items()
  }
