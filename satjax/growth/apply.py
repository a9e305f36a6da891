"""Growth carried out: on a tree, on a whole state, or tensor by tensor."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.growth import depth, fresh, released, width
from satjax.growth.operators import Depth, Learn, Length, Operator, Width
from satjax.tree import PyTree

Read = Callable[[str, int | None], Any]


def grow_tree(
  state: PyTree, operators: Sequence[Operator], key: jax.Array
) -> PyTree:
  """Parameters, and moments that mirror them, after some operators.

  Args:
    state: parameters, or any state that holds trees like them.
    operators: in the order in which they are carried out.
    key: of what is random.

  Raises:
    ValueError: an operator that has to be learned, or a factored moment that
      cannot follow.
  """
  for number, operator in enumerate(operators):
    state = _grow_once(state, operator, jax.random.fold_in(key, number))
  return state


def grow_depth(
  params: PyTree,
  layer_map: Sequence[int],
  zero_out: Sequence[bool] | None = None,
  noise: float = 0.0,
  branch_scale: float = 1.0,
  *,
  noise_on: str = 'all',
  key: jax.Array | None = None,
) -> PyTree:
  """Target layer i becomes a copy of layer `layer_map[i]`.

  Args:
    params: tree with layers on axis 0 of the leaves under `blocks`, or any
      state that mirrors it (moments are found by their path).
    layer_map: source layer of each target layer.
    zero_out: target layers whose attention output and MLP down projections are
      0: they add nothing at first. Not the gate, nor the norm: zeroing only the
      last matrix of a branch leaves it a gradient.
    noise: a of `W <- (1 - a) W + a eps` on every matrix of parameters.
    branch_scale: factor on what new layers (later copies) write.
    noise_on: 'all' matrices, or those of 'new' layers only.
    key: of the noise.

  Raises:
    ValueError: a source that is not a layer of the tree, no layer at all, or
      noise without a key.
  """
  rows = np.asarray(layer_map)
  zeros = () if zero_out is None else tuple(map(bool, zero_out))
  _check_depth(rows, zeros, noise, noise_on, key, _depth_of(params))
  operator = Depth(
    tuple(rows.tolist()),
    zero_out=zeros,
    noise=noise,
    noise_on=noise_on,
    branch_scale=branch_scale,
  )
  return _grow_once(params, operator, key)


def _check_depth(rows, zeros, noise, noise_on, key, num_layers) -> None:
  if rows.ndim != 1 or not rows.size or rows.dtype.kind not in 'iu':
    raise ValueError(
      f'layer_map {rows.tolist()} must be the numbers of one or more layers'
    )
  if rows.min() < 0 or rows.max() >= num_layers:
    raise ValueError(
      f'layer_map {rows.tolist()} names layers outside 0..{num_layers - 1}'
    )
  if zeros and len(zeros) != rows.size:
    raise ValueError(
      f'zero_out has {len(zeros)} entries for {rows.size} layers; give one each'
    )
  if noise_on not in ('all', 'new'):
    raise ValueError(f"noise_on {noise_on!r}; allowed: 'all' | 'new'")
  if noise and key is None:
    raise ValueError(f'noise {noise} needs a key; pass jax.random.key(seed)')


def _grow_once(state, operator, key):
  if isinstance(operator, Length):
    return state
  if isinstance(operator, Learn):
    raise ValueError("'learn' trains its maps; see growth.learned")
  num_layers, leaves = _depth_of(state), tree.flatten(state)

  def grow(path, leaf):
    kind, name = fresh.kind_of(path), tree.param_of(path)
    if kind is None or leaf.ndim == 0:
      return leaf
    stacked = depth.is_stacked(path, leaf.ndim)
    prefix = path.removesuffix(name)
    parts = [
      jnp.take(leaves[prefix + other], jnp.array(rows), axis=0)
      if stacked
      else leaf
      for other, rows in inputs(operator, name, num_layers)
    ]
    layers = tuple(range(len(parts[0]))) if stacked else None
    if kind == 'param':
      return transform(operator, name, parts, layers, key, num_layers)
    return _moment(operator, name, kind, parts[0], layers)

  return tree.map_with_path(grow, state)


def _depth_of(state) -> int:
  """How many layers the leaves of a tree have."""
  leaves = tree.flatten(state)
  return next(
    leaf.shape[0]
    for path, leaf in leaves.items()
    if depth.is_stacked(path, jnp.ndim(leaf))
  )


def inputs(
  operator: Depth | Width, name: str, num_layers: int
) -> list[tuple[str, tuple[int, ...]]]:
  """What a parameter of the grown model is made of.

  Returns:
    Names of old parameters, each with the old layer for each new one. The
    first is the parameter itself, as growth copies it.
  """
  if isinstance(operator, Depth):
    return [(name, operator.layer_map)]
  layers = tuple(range(num_layers))
  if operator.method == 'aki':
    return [(name, layers), (name, (*layers[1:], layers[-1]))]
  if operator.is_released_direct and name in released.FUSED:
    return [(other, layers) for other in released.FUSED]
  return [(name, layers)]


def transform(
  operator: Depth | Width,
  name: str,
  parts: Sequence[jax.Array],
  layers: tuple[int, ...] | None,
  key: jax.Array,
  num_layers: int,
) -> jax.Array:
  """One parameter of the grown model.

  Args:
    operator: in depth or width.
    name: of the parameter.
    parts: the old layers, as `inputs` names them.
    layers: their numbers in the target; None: the parameter has none.
    key: of what is random.
    num_layers: of the model before.
  """
  if isinstance(operator, Depth):
    return depth.transform(operator, name, parts[0], layers, key)
  if operator.is_released_direct:
    return released.direct(operator, name, parts)
  above = parts[1] if len(parts) > 1 and layers is not None else None
  return width.transform(
    operator, name, parts[0], layers, key, num_layers, above
  )


def _moment(operator, name, kind, x, layers):
  if isinstance(operator, Depth):
    return depth.transform_moment(operator, x, layers)
  if x.ndim != len(tree.AXES[name]):
    raise ValueError(
      f'a moment of {name} is factored and cannot grow in width; reset it'
    )
  return width.transform_moment(operator, name, kind, x)


def grown_tensor(
  operators: Sequence[Operator],
  depths: Sequence[int],
  name: str,
  layer: int | None,
  key: jax.Array,
  read: Read,
) -> Any:
  """One layer of one parameter of the grown model, and no more than it takes.

  Equal to what `grow_tree` makes of the whole tree.

  Args:
    operators: in order.
    depths: number of layers before each.
    name: of the parameter, as in `tree.AXES`.
    layer: its number in the grown model; None: the parameter has no layers.
    key: as for `grow_tree`.
    read: from a name and an old layer (or None) to that array; called only for
      what is needed.
  """
  if not operators:
    return read(name, layer)
  *before, last = operators
  if isinstance(last, Learn):
    raise ValueError("'learn' trains its maps; see growth.learned")

  def below(other, source):
    return grown_tensor(before, depths[:-1], other, source, key, read)

  if isinstance(last, Length):
    return below(name, layer)
  uses = inputs(last, name, depths[-1])
  rows = [(other, layer if layer is None else r[layer]) for other, r in uses]
  if is_copy(last, name, layer):
    return below(*rows[0])
  number = jax.random.fold_in(key, len(before))
  parts = [jnp.asarray(below(*row)) for row in rows]
  if layer is None:
    return transform(last, name, parts, None, number, depths[-1])
  parts = [part[None] for part in parts]
  return transform(last, name, parts, (layer,), number, depths[-1])[0]


def is_copy(operator: Operator, name: str, layer: int | None) -> bool:
  """Whether a tensor of the grown model is, bit for bit, an old one."""
  if isinstance(operator, Length):
    return True
  if isinstance(operator, Width):
    return width.keeps(operator, name)
  if not isinstance(operator, Depth):
    return False
  if operator.noise and operator.noise_on == 'all':
    return fresh.is_gain(name)
  if layer is None or not operator.is_new[layer]:
    return not (
      operator.zero_out
      and layer is not None
      and operator.zero_out[layer]
      and name in tree.WRITES.values()
    )
  untouched = not operator.noise and not operator.fresh
  writes = name in tree.WRITES.values() and (
    operator.branch_scale != 1 or bool(operator.zero_out)
  )
  return untouched and not writes


def ramp(
  operators: Sequence[Operator], params: PyTree, share: jax.Array
) -> PyTree:
  """Parameters as a forward pass sees them while new ones are let in.

  Args:
    operators: of the hop; masks are those of the last one.
    params: of the grown model.
    share: from 0, the old function, to 1, no mask.
  """
  last = operators[-1]
  mask = depth.ramp if isinstance(last, Depth) else width.ramp
  return tree.map_with_path(
    lambda path, x: mask(last, tree.param_of(path), x, share), params
  )
