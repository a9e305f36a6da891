"""The parameter tree: paths, axis names, and gathers along a named axis.

One table names the axes of every leaf. Growth gathers along `layers`, SAT
gathers along `heads`, `kv_heads` and `mlp`, and sharding maps the same names
to mesh axes. Optimizer moments mirror the parameters, so that a moment is
found by the end of its path.

`blocks` holds all layers in one stack. A sub-network whose layers differ in
size holds a tuple of stacks that follow each other: `blocks/0/...`.
"""

from collections.abc import Callable, Mapping
import functools
import re
from typing import Any, Protocol
import zlib

import jax

PyTree = Any

# Neuron-major: a head or a channel is contiguous rows in each of its matrices,
# also in those that write, so that leaving it out is a gather of whole rows.
AXES: dict[str, tuple[str, ...]] = {
  'embed': ('vocab', 'embed'),
  'blocks/attention_norm': ('layers', 'embed'),
  'blocks/attention/query': ('layers', 'heads', 'head_dim', 'embed'),
  'blocks/attention/key': ('layers', 'kv_heads', 'head_dim', 'embed'),
  'blocks/attention/value': ('layers', 'kv_heads', 'head_dim', 'embed'),
  'blocks/attention/output': ('layers', 'heads', 'head_dim', 'embed'),
  'blocks/attention/query_bias': ('layers', 'heads', 'head_dim'),
  'blocks/attention/key_bias': ('layers', 'kv_heads', 'head_dim'),
  'blocks/attention/value_bias': ('layers', 'kv_heads', 'head_dim'),
  'blocks/attention/query_norm': ('layers', 'head_dim'),
  'blocks/attention/key_norm': ('layers', 'head_dim'),
  'blocks/mlp_norm': ('layers', 'embed'),
  'blocks/mlp/gate': ('layers', 'mlp', 'embed'),
  'blocks/mlp/up': ('layers', 'mlp', 'embed'),
  'blocks/mlp/down': ('layers', 'mlp', 'embed'),
  'final_norm': ('embed',),
  'unembed': ('vocab', 'embed'),
}
# The axis that a matrix sums over; it produces its other named axes. Tables,
# norms and biases sum over none.
READS = {
  'blocks/attention/query': 'embed',
  'blocks/attention/key': 'embed',
  'blocks/attention/value': 'embed',
  'blocks/attention/output': 'heads',
  'blocks/mlp/gate': 'embed',
  'blocks/mlp/up': 'embed',
  'blocks/mlp/down': 'mlp',
  'unembed': 'embed',
}
# The matrix through which each kind of neuron writes to the residual stream.
WRITES = {axis: path for path, axis in READS.items() if axis != 'embed'}
# The two factors of an adapter of a matrix (`lora`): not part of a model.
ADAPTERS: dict[str, tuple[str, ...]] = {
  f'{path}/{factor}': kept
  for path, axes in AXES.items()
  if path in READS or path == 'embed'
  for factor, kept in (
    ('rows', (*axes[:-1], 'rank')),
    ('columns', (*(n for n in axes if n == 'layers'), 'rank', 'embed')),
  )
}
_NAMED = AXES | ADAPTERS


class Sizes(Protocol):
  """What the two ideas know of a model; `config.ModelConfig` has it.

  `growth` makes a larger one with `dataclasses.replace`.
  """

  num_layers: int
  embed_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  vocab_size: int
  tied: bool
  qkv_bias: bool
  qk_norm: bool
  norm_eps: float
  rope_theta: float


def has(model: Sizes, path: str) -> bool:
  """Whether a model has a parameter."""
  if path.endswith('_bias'):
    return model.qkv_bias
  if path.endswith(('/query_norm', '/key_norm')):
    return model.qk_norm
  return path != 'unembed' or not model.tied


def shapes(model: Sizes) -> dict[str, tuple[int, ...]]:
  """Shape of every parameter of a model, by path."""
  sizes = {
    'layers': model.num_layers,
    'embed': model.embed_dim,
    'heads': model.num_heads,
    'kv_heads': model.num_kv_heads,
    'head_dim': model.head_dim,
    'mlp': model.mlp_dim,
    'vocab': model.vocab_size,
  }
  return {
    path: tuple(sizes[name] for name in axes)
    for path, axes in AXES.items()
    if has(model, path)
  }


def path_of(keys: tuple[Any, ...]) -> str:
  """Slash-separated path of a leaf, for dicts, sequences and dataclasses."""
  return jax.tree_util.keystr(keys, simple=True, separator='/')


@functools.cache
def param_of(path: str) -> str | None:
  """The parameter that a leaf is or mirrors: '0/mu/blocks/mlp/up' -> the up.

  Of an adapter, the factor.
  """
  parts = re.sub(r'\bblocks/\d+/', 'blocks/', path).split('/')
  suffixes = ('/'.join(parts[start:]) for start in range(len(parts)))
  return next((name for name in suffixes if name in _NAMED), None)


def axes_of(path: str, ndim: int) -> tuple[str, ...] | None:
  """Axis names of the leaf at `path`, or None where the table has none.

  A moment that is stored factored (Adafactor) has fewer axes than its
  parameter and is not named.
  """
  axes = _NAMED.get(param_of(path))
  return axes if axes and len(axes) == ndim else None


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


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts from slash-separated paths: inverse of `flatten` for dicts."""
  nested = {}
  for path, leaf in leaves.items():
    *folders, name = path.split('/')
    inner = nested
    for folder in folders:
      inner = inner.setdefault(folder, {})
    inner[name] = leaf
  return nested


def key_of(key: jax.Array, name: str) -> jax.Array:
  """Randomness of its own for each name: of a leaf, or of a unit."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def is_params(node: PyTree) -> bool:
  """Whether a node of a state is a tree of parameters, or mirrors one."""
  return isinstance(node, dict) and 'blocks' in node


def stacks(params: PyTree) -> tuple[PyTree, ...]:
  """The stacks of layers of a parameter tree, from the first layer on."""
  blocks = params['blocks']
  return tuple(blocks) if isinstance(blocks, (tuple, list)) else (blocks,)


def neuron_units(
  params: PyTree, names: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, dict[str, tuple[int, int]]]:
  """`{'heads': {path: (layer axis, head axis)}, 'mlp': {...}}`: their leaves.

  `names` has the named axes that number the neurons of each unit; of 'layers'
  the layer axis alone does. Without it a head owns rows of key and value only
  if every head has its own (no grouped queries). `params` may be anything with
  shapes.
  """
  leaves = flatten(params)
  if names is None:
    query, key = (leaves[f'blocks/attention/{n}'] for n in ('query', 'key'))
    grouped = key.shape[1] != query.shape[1]
    heads = ('heads',) if grouped else ('heads', 'kv_heads')
    names = {'heads': heads, 'mlp': ('mlp',)}
  return {
    unit: {
      path: (0,) if axes == ('layers',) else (0, 1)
      for path in leaves
      if any(name in _NAMED.get(path, ()) for name in axes)
    }
    for unit, axes in names.items()
  }
