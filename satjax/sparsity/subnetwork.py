"""A sub-network is a smaller tree: rows gathered out, trained, merged back.

`split` parts a state in two, the neurons that take part and those that rest;
`merge` is its inverse. Nothing is stored twice. Both work on parameters and on
a whole train state: moments mirror the parameters and are found by their path.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.sparsity import selection
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Stack:
  """Consecutive layers that keep the same number of neurons.

  Attributes:
    start: the first layer.
    stop: one past the last layer.
    kept: (axis name, how many neurons take part), for each axis that is cut.
  """

  start: int
  stop: int
  kept: tuple[tuple[str, int], ...]


Stacks = tuple[Stack, ...]
Place = Callable[[str, jax.Array], jax.Array]


def run(program: Callable[..., PyTree], *args: Any) -> PyTree:
  """The plain `call` for `split` and `merge`."""
  return program(*args)


def ahead(program: Any, *args: Any) -> PyTree:
  """A `call` for `split` and `merge` that compiles, and gives shapes.

  With it they take ShapeDtypeStructs; calls with arrays of the same shapes and
  shardings then find their programs ready.
  """
  lowered = program.lower(*args)
  lowered.compile()
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info
  )


@functools.partial(jax.jit, static_argnames='shards')
def orders(kept: selection.Kept, shards: int = 1) -> dict[str, jax.Array]:
  """Rows by axis: those that take part first, ascending.

  Args:
    kept: which neurons take part.
    shards: equal runs of neurons that keep as many each. A run has an order of
      its own, so that no row leaves the device of its run.

  Returns:
    int32 [L, S, R / S] by axis, numbered within the run.
  """
  result = {}
  for name, mask_LR in kept.items():
    mask_LSR = mask_LR.reshape(len(mask_LR), shards, -1)
    order_LSR = jnp.argsort(~mask_LSR, axis=-1, stable=True)
    result[name] = order_LSR.astype(jnp.int32)
  return result


def split(
  full: PyTree,
  order: Mapping[str, jax.Array],
  stacks: Stacks,
  *,
  place: Place = lambda path, leaf: leaf,
  park: Place = lambda path, leaf: leaf,
  consume: bool = False,
  call: Callable[..., Any] = run,
) -> tuple[PyTree, PyTree]:
  """The sub-network, and what rests.

  Args:
    full: parameters, or any state that holds trees like them.
    order: of `orders`.
    stacks: how many neurons take part, all layers in turn. One stack leaves
      `blocks` a single stack; several make it a tuple.
    place: puts the rows that take part, by path, where they will live.
    park: the same for resting rows.
    consume: frees each leaf as soon as it has been parted, so that memory
      never holds everything twice.
    call: runs a compiled program of one leaf; see `ahead`.

  Returns:
    Two trees of the same form. The second has None where nothing rests, and
    the first's scalars (step counts).
  """
  sub, rest = {}, {}

  def part(path, leaf):
    axis = tree.indexed_axis(path, leaf.ndim, order)
    cuts = _cuts(axis and axis[0], stacks)
    if cuts == ((0, leaf.shape[0], None),):
      sub[path], rest[path] = [place(path, leaf)], [None]
      return
    whole = place(path, leaf)
    parts = call(_split_leaf, whole, order.get(axis and axis[0]), cuts)
    sub[path] = [place(path, x) for x, _ in parts]
    rest[path] = [x if x is None else park(path, x) for _, x in parts]
    if consume:
      for x in (leaf, whole):
        x.delete()

  for path, leaf in tree.flatten(full).items():
    if (tree.param_of(path) or '').startswith('blocks/'):
      part(path, leaf)
    else:
      sub[path] = [leaf]
      rest[path] = [None if tree.param_of(path) else call(_copy, leaf)]
  return _rebuild(full, sub, len(stacks)), _rebuild(full, rest, len(stacks))


def merge(
  sub: PyTree,
  rest: PyTree,
  order: Mapping[str, jax.Array],
  stacks: Stacks,
  *,
  place: Place = lambda path, leaf: leaf,
  home: Place = lambda path, leaf: leaf,
  consume: bool = False,
  call: Callable[..., Any] = run,
) -> PyTree:
  """Inverse of `split`; `place` brings rows back, `home` takes full leaves."""
  inverse = call(_inverse, dict(order))
  inverse = {name: place('', rows) for name, rows in inverse.items()}
  resting = tree.flatten(rest)

  def join(path, leaves):
    axis = tree.indexed_axis(path, leaves[0].ndim, order)
    cuts = _cuts(axis and axis[0], stacks)
    if cuts == ((0, leaves[0].shape[0], None),):
      return leaves[0]
    names = _stack_paths(path, len(stacks))
    others = [resting.get(name) for name in names]
    others = [x if x is None else place(path, x) for x in others]
    rows = inverse.get(axis and axis[0])
    full = home(path, call(_merge_leaf, leaves, others, rows, cuts))
    if consume:
      for leaf in (*leaves, *others):
        if leaf is not None:
          leaf.delete()
    return full

  def one_stack(node):
    if not tree.is_params(node) or len(stacks) == 1:
      return node
    blocks = jax.tree.map(lambda *leaves: list(leaves), *node['blocks'])
    return {**node, 'blocks': blocks}

  # Lists of leaves, one of each stack, stand where the full leaf will.
  gathered = jax.tree.map(one_stack, sub, is_leaf=tree.is_params)

  def build(keys, leaves):
    path = tree.path_of(keys)
    if not (tree.param_of(path) or '').startswith('blocks/'):
      return leaves
    return join(path, leaves if isinstance(leaves, list) else [leaves])

  return jax.tree_util.tree_map_with_path(
    build, gathered, is_leaf=lambda x: isinstance(x, list)
  )


def _rebuild(full, parts, count):
  """Lists of leaves by path, back in the form of `full`."""

  def listed(keys, _):
    return parts[tree.path_of(keys)]

  lists = jax.tree_util.tree_map_with_path(listed, full)

  def pick(node, number):
    return jax.tree.map(
      lambda leaves: leaves[number],
      node,
      is_leaf=lambda x: isinstance(x, list),
    )

  def restack(node):
    if not tree.is_params(node):
      return node[0]
    blocks = [pick(node['blocks'], number) for number in range(count)]
    others = {name: x for name, x in node.items() if name != 'blocks'}
    return {
      **pick(others, 0),
      'blocks': blocks[0] if count == 1 else tuple(blocks),
    }

  return jax.tree.map(
    restack,
    lists,
    is_leaf=lambda x: tree.is_params(x) or isinstance(x, list),
  )


@jax.jit
def _copy(x):
  """So that a scalar outlives the sub-network that is donated to a step."""
  return jnp.copy(x)


def _stack_paths(path, count):
  if count == 1:
    return [path]
  head, tail = path.split('blocks/')
  return [f'{head}blocks/{number}/{tail}' for number in range(count)]


def _cuts(axis, stacks):
  """(first layer, last, rows kept or None) of each stack, for one axis."""
  return tuple((s.start, s.stop, dict(s.kept).get(axis)) for s in stacks)


@functools.partial(jax.jit, static_argnums=2)
def _split_leaf(leaf, order_LSR, cuts):
  """[(active, resting or None)] of each stack."""
  parts = []
  for start, stop, count in cuts:
    layers = leaf[start:stop]
    if count is None:
      parts.append((layers, None))
    else:
      rows = order_LSR[start:stop]
      runs, first = _in_runs(layers, rows), count // rows.shape[1]
      parts.append(
        (_take(runs, rows[..., :first]), _take(runs, rows[..., first:]))
      )
  return parts


@functools.partial(jax.jit, static_argnums=3)
def _merge_leaf(active, resting, inverse_LSR, cuts):
  layers = []
  for (start, stop, count), kept, others in zip(cuts, active, resting):
    if count is not None:
      rows = inverse_LSR[start:stop]
      runs = [_in_runs(x, rows) for x in (kept, others)]
      kept = _take(jnp.concatenate(runs, axis=2), rows)
    layers.append(kept)
  return layers[0] if len(layers) == 1 else jnp.concatenate(layers)


@jax.jit
def _inverse(order):
  return {
    name: jnp.argsort(rows, axis=-1).astype(jnp.int32)
    for name, rows in order.items()
  }


def _in_runs(x, rows_LSR):
  """A leaf `[layers, rows, ...]` as `[layers, runs, rows of a run, ...]`."""
  layers, runs, _ = rows_LSR.shape
  return x.reshape(layers, runs, x.shape[1] // runs, *x.shape[2:])


def _take(x, rows_LSR):
  """Row `rows_LSR[l, s, r]` of run s of layer l, as `[layers, rows, ...]`.

  Layers and runs are batch dimensions of the gather: the compiler sees that it
  needs no communication where the runs are on different devices.
  """
  take = functools.partial(jnp.take, axis=0, mode='clip')
  taken = jax.vmap(jax.vmap(take))(x, rows_LSR)
  layers, runs, rows = rows_LSR.shape
  return taken.reshape(layers, runs * rows, *taken.shape[3:])
