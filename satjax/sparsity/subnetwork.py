"""A sub-network is a smaller tree: gathered out, trained, merged back.

`split` parts a state in two, the layers and neurons that take part and those
parked; `merge` is its exact inverse. Every row is in one of the two and in one
only, so nothing is stored twice and nothing can go stale. Both work on
parameters and on a whole train state: moments mirror the parameters and are
found by their path. Layers go first, then the neurons of those that stay.

Both go leaf by leaf, one small program each, so that a state may be parted
while memory has no room for two.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.sparsity import selection
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Stack:
  """Consecutive layers, up to `stop`, that keep the same number of neurons.

  Numbers are of layers that take part. `kept`: (axis name, how many take part),
  for each axis that is cut.
  """

  start: int
  stop: int
  kept: tuple[tuple[str, int], ...]


Stacks = tuple[Stack, ...]


class Parked(NamedTuple):
  """What takes no part, in states of the form of the one that was split.

  Attributes:
    rows: of the layers that take part; None where nothing is parked.
    layers: those that take no part, whole; None: all do.
    tables: what was set aside of the parameters beside the blocks; or None.
  """

  rows: PyTree
  layers: PyTree = None
  tables: PyTree = None

  def each(self, fn: Callable[[PyTree], PyTree]) -> 'Parked':
    """`fn` of each state that is there."""
    return Parked(*(x if x is None else fn(x) for x in self))


Place = Callable[[str, jax.Array], jax.Array]


def run(program: Callable[..., PyTree], *args: Any) -> PyTree:
  """The plain `call` for `split` and `merge`."""
  return program(*args)


def ahead(program: Any, *args: Any) -> PyTree:
  """A `call` for `split` and `merge` that compiles, and gives shapes.

  With it they take ShapeDtypeStructs; calls with arrays of the same shapes and
  shardings then find their programs ready.
  """
  program.lower(*args).compile()
  return shape_of(program, *args)


def shape_of(program: Any, *args: Any) -> PyTree:
  """A `call` for `split` and `merge` that gives shapes alone."""
  return program.eval_shape(*args)


@functools.partial(jax.jit, static_argnames='shards')
def orders(kept: selection.Kept, shards: int = 1) -> dict[str, jax.Array]:
  """Rows by axis: those that take part first, ascending; int32 [L, S, R / S].

  Each of the `shards` equal runs keeps as many rows and has an order and
  numbers of its own, so that no row leaves the device of its run. Of 'layers',
  if some are left out: int32 [L].
  """

  def order(axis, mask):
    if axis != 'layers':
      mask = mask.reshape(len(mask), shards, -1)
    return jnp.argsort(~mask, axis=-1, stable=True).astype(jnp.int32)

  return {axis: order(axis, mask) for axis, mask in kept.items()}


def split(
  full: PyTree,
  order: Mapping[str, jax.Array],
  stacks: Stacks,
  *,
  aside: Sequence[str] = (),
  place: Place = lambda path, leaf: leaf,
  park: Place = lambda path, leaf: leaf,
  park_layers: Place | None = None,
  consume: bool = False,
  call: Callable[..., Any] = run,
) -> tuple[PyTree, Parked]:
  """The sub-network, and what is parked.

  Args:
    full: parameters, or any state that holds trees like them.
    order: of `orders`.
    stacks: all layers that take part, in turn. One leaves `blocks` a single
      stack; several make it a tuple.
    aside: parameters beside the blocks that are parked too.
    place: puts the rows that take part, by path, where they will live.
    park: the same for parked rows.
    park_layers: the same for parked layers; None: `park`.
    consume: frees each leaf as soon as it has been parted.
    call: `run`, or `ahead`.

  Returns:
    Trees of the same form. What is parked has the scalars (step counts) too,
    each part a copy.
  """
  options = {'place': place, 'park': park, 'consume': consume, 'call': call}
  sub, tables, layers = full, None, None
  if aside:
    sub, tables = _set_aside(sub, aside, park, call)
  if 'layers' in order:
    count = stacks[-1].stop
    cut = functools.partial(_cut_layers, order['layers'], count)
    own = options | {'park': park_layers or park}
    sub, layers = _part(sub, sub, _take_layers, cut, **own)
    order = call(_of_layers, dict(order), count)
  form = sub
  if len(stacks) > 1:
    form = _map_blocks(lambda blocks: (blocks,) * len(stacks), sub)
  cut = functools.partial(_cut_rows, order, stacks)
  sub, rows = _part(sub, form, _split_leaf, cut, **options)
  return sub, Parked(rows, layers, tables)


def merge(
  sub: PyTree,
  parked: Parked,
  order: Mapping[str, jax.Array],
  stacks: Stacks,
  *,
  place: Place = lambda path, leaf: leaf,
  home: Place = lambda path, leaf: leaf,
  consume: bool = False,
  call: Callable[..., Any] = run,
) -> PyTree:
  """Inverse of `split`; `place` brings rows back, `home` takes full leaves."""
  options = {'place': place, 'home': home, 'consume': consume, 'call': call}
  of_layers, count = order, stacks[-1].stop
  if 'layers' in order:
    of_layers = call(_of_layers, dict(order), count)
  inverse = call(_inverse, dict(of_layers))
  inverse = {name: place('', rows) for name, rows in inverse.items()}
  form = sub
  if len(stacks) > 1:
    form = _map_blocks(lambda blocks: blocks[0], sub)
  cut = functools.partial(_cut_rows, inverse, stacks)
  own = options | {'home': home if parked.layers is None else place}
  full = _join(sub, parked.rows, form, _merge_leaf, cut, **own)
  if parked.layers is not None:
    cut = functools.partial(_cut_layers, order['layers'], count)
    full = _join(full, parked.layers, full, _join_layers, cut, **options)
  if parked.tables is not None:
    full = _put_back(full, parked.tables)
  return full


@functools.partial(jax.jit, static_argnums=1)
def _of_layers(order, count):
  """Rows of the layers that take part."""
  order = dict(order)
  taken = order.pop('layers')[:count]
  return {axis: rows[taken] for axis, rows in order.items()}


def _set_aside(state, names, park, call):
  """A state without the parameters of these names, and they alone."""

  def pick(node, own):
    if not tree.is_params(node):
      return node if own else call(_copy, node)
    return {n: x for n, x in node.items() if (n in names) != own}

  sub, tables = (
    jax.tree.map(functools.partial(pick, own=x), state, is_leaf=tree.is_params)
    for x in (True, False)
  )
  return sub, tree.map_with_path(park, tables)


def _put_back(state, tables):
  """Inverse of `_set_aside`."""
  return jax.tree.map(
    lambda node, other: node | other if tree.is_params(node) else node,
    state,
    tables,
    is_leaf=tree.is_params,
  )


def _part(full, form, program, cut, *, place, park, consume, call):
  """What takes part and what does not, in trees like `form`.

  `cut` goes from path and shape of a leaf to where its parts are and what
  `program` takes besides it; None: it stays whole.
  """
  sub, parked = {}, {}
  for path, leaf in tree.flatten(full).items():
    whole, found = place(path, leaf), cut(path, leaf.ndim)
    if found is None:
      is_state = tree.param_of(path) is None
      sub[path] = whole
      parked[path] = call(_copy, leaf) if is_state else None
      continue
    names, how = found
    for name, (active, others) in zip(names, call(program, whole, *how)):
      sub[name] = place(path, active)
      parked[name] = others if others is None else park(path, others)
    if consume:
      _free(leaf, whole)
  return tuple(
    tree.map_with_path(lambda path, _, part=part: part[path], form)
    for part in (sub, parked)
  )


def _join(sub, parked, form, program, cut, *, place, home, consume, call):
  """Inverse of `_part`."""
  active, parked = tree.flatten(sub), tree.flatten(parked)

  def join(path, leaf):
    if (found := cut(path, leaf.ndim)) is None:
      return leaf
    names, how = found
    leaves = [active[name] for name in names]
    others = [parked.get(name) for name in names]
    others = [x if x is None else place(path, x) for x in others]
    full = home(path, call(program, leaves, others, *how))
    if consume:
      _free(*leaves, *others)
    return full

  return tree.map_with_path(join, form)


def _free(*leaves):
  for leaf in leaves:
    if leaf is not None:
      leaf.delete()


def _cut_layers(order_L, count, path, ndim):
  """Whole layers of what axis 0 has layers of."""
  is_stacked = 'layers' in (tree.axes_of(path, ndim) or ())
  return ([path], (order_L, count)) if is_stacked else None


@functools.partial(jax.jit, static_argnums=2)
def _take_layers(leaf, order_L, count):
  """[(active, parked)], of one stack.

  A layer at a time: a gather would need room for two more leaves on a TPU.
  """

  def take(numbers):
    one = functools.partial(jax.lax.dynamic_index_in_dim, leaf, keepdims=False)
    return jax.lax.map(one, numbers)

  return [(take(order_L[:count]), take(order_L[count:]))]


@functools.partial(jax.jit, static_argnums=3)
def _join_layers(active, others, order_L, count):
  """Inverse of `_take_layers`; a scatter needs no room but its result."""
  (active,), (others,), options = active, others, {'unique_indices': True}
  layers = jnp.zeros((len(order_L), *active.shape[1:]), active.dtype)
  layers = layers.at[order_L[:count]].set(active, **options)
  return layers.at[order_L[count:]].set(others, **options)


def _map_blocks(fn, values):
  """`fn` of the blocks of every tree of parameters in a state."""
  return jax.tree.map(
    lambda x: {**x, 'blocks': fn(x['blocks'])} if tree.is_params(x) else x,
    values,
    is_leaf=tree.is_params,
  )


@jax.jit
def _copy(x):
  """So that a scalar outlives the sub-network that is donated to a step."""
  return jnp.copy(x)


def _stack_paths(path, stacks):
  """Where the leaf of each stack is, in a tree that has several."""
  if len(stacks) == 1:
    return [path]
  head, tail = path.split('blocks/')
  return [f'{head}blocks/{number}/{tail}' for number in range(len(stacks))]


def _cut_rows(order, stacks, path, ndim):
  """Rows of the axis that a leaf is cut along, and where each stack cuts it.

  (First layer, one past the last, rows kept or None: all) by stack.
  """
  if not (tree.param_of(path) or '').startswith('blocks/'):
    return None
  axes = tree.axes_of(path, ndim) or ()
  axis = next((axis for axis in axes if axis in order), None)
  cuts = tuple((s.start, s.stop, dict(s.kept).get(axis)) for s in stacks)
  if len(cuts) == 1 and cuts[0][2] is None:
    return None
  return _stack_paths(path, stacks), (order.get(axis), cuts)


@functools.partial(jax.jit, static_argnums=2)
def _split_leaf(leaf, order_LSR, cuts):
  """[(active, parked or None)] of each stack."""
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
def _merge_leaf(active, parked, inverse_LSR, cuts):
  layers = []
  for (start, stop, count), kept, others in zip(cuts, active, parked):
    if count is not None:
      rows = inverse_LSR[start:stop]
      runs = [_in_runs(x, rows) for x in (kept, others)]
      kept = _take(jnp.concatenate(runs, axis=2), rows)
    layers.append(kept)
  return layers[0] if len(layers) == 1 else jnp.concatenate(layers)


@jax.jit
def _inverse(order):
  return jax.tree.map(lambda x: jnp.argsort(x, axis=-1).astype('int32'), order)


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
