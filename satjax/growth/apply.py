"""Growth carried out, on a tree of parameters or on a whole state.

Every operator makes a parameter of the new model from layers of the same
parameter of the old one, and draws random numbers by operator, parameter and
layer. So a tree may grow leaf by leaf and a model directory tensor by tensor,
with the same numbers, and neither model is ever needed as a whole.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.growth import depth, fresh, width
from satjax.growth.operators import Depth, Learn, Length, Operator, Width
from satjax.tree import PyTree


def grow_tree(
  state: PyTree,
  operators: Sequence[Operator],
  key: jax.Array,
  resets: bool = False,
) -> PyTree:
  """A state, of parameters and moments that mirror them, after some operators.

  `resets`: the moments of new layers are 0, and not those of their sources.

  Raises:
    ValueError: an operator that has to be learned, or a factored moment that
      cannot follow.
  """
  for number, operator in enumerate(operators):
    own = jax.random.fold_in(key, number)
    state = _grow_once(state, operator, own, resets)
  return state


def grow_depth(
  params: PyTree,
  layer_map: Sequence[int],
  zero_out: Sequence[bool] | None = None,
  noise: float = 0.0,
  *,
  key: jax.Array | None = None,
) -> PyTree:
  """Target layer i becomes a copy of layer `layer_map[i]`.

  Args:
    params: or any state that mirrors them.
    layer_map: source layer of each target layer.
    zero_out: target layers whose attention output and MLP down projections are
      0: they add nothing at first. Not the gate, nor the norm: zeroing only the
      last matrix of a branch leaves it a gradient.
    noise: a of `W <- (1 - a) W + a eps` on every matrix of parameters.
    key: of the noise.

  Raises:
    ValueError: a source that is not a layer of the tree, no layer at all, or
      noise without a key.
  """
  rows, most = np.asarray(layer_map), _depth_of(params) - 1
  zeros = () if zero_out is None else tuple(map(bool, zero_out))
  is_list = rows.ndim == 1 and rows.size and rows.dtype.kind in 'iu'
  if not is_list or rows.min() < 0 or rows.max() > most:
    raise ValueError(
      f'layer_map {rows.tolist()} must be the numbers of one or more layers,'
      f' none of them outside 0..{most}'
    )
  if zeros and len(zeros) != rows.size:
    raise ValueError(
      f'zero_out has {len(zeros)} entries for {rows.size} layers; give one each'
    )
  if noise and key is None:
    raise ValueError(f'noise {noise} needs a key; pass jax.random.key(seed)')
  operator = Depth(tuple(rows.tolist()), zeros, noise=noise)
  return _grow_once(params, operator, key)


def _grow_once(state, operator, key, resets=False):
  if isinstance(operator, Length):
    return state
  num_layers = _depth_of(state)
  maps = inputs(operator, num_layers)

  def grow(path, leaf):
    kind, name = fresh.kind_of(path), tree.param_of(path)
    if kind is None or leaf.ndim == 0:
      return leaf
    stacked = depth.is_stacked(path, leaf.ndim)
    parts = [leaf]
    if stacked:
      parts = [jnp.take(leaf, jnp.array(rows), axis=0) for rows in maps]
    layers = tuple(range(len(parts[0]))) if stacked else None
    if kind == 'param':
      return transform(operator, name, parts, layers, key, num_layers)
    if isinstance(operator, Depth):
      return depth.transform_moment(operator, parts[0], layers, resets)
    return width.transform_moment(operator, name, kind, parts[0])

  return tree.map_with_path(grow, state)


def _depth_of(state) -> int:
  """How many layers the leaves of a tree have."""
  return next(
    leaf.shape[0]
    for path, leaf in tree.flatten(state).items()
    if depth.is_stacked(path, jnp.ndim(leaf))
  )


def inputs(operator: Operator, num_layers: int) -> list[tuple[int, ...]]:
  """The old layers that each new one is made of: map by map, target by target.

  The first map has the layer itself, as growth copies it.

  Raises:
    ValueError: a learned operator, which makes a layer of them all.
  """
  if isinstance(operator, Learn):
    raise ValueError("'learn' trains its maps; see growth.learned")
  if isinstance(operator, Depth):
    return [operator.layer_map]
  layers = tuple(range(num_layers))
  if isinstance(operator, Width) and operator.method == 'aki':
    return [layers, (*layers[1:], layers[-1])]
  return [layers]


def transform(
  operator: Depth | Width | Length,
  name: str,
  parts: Sequence[jax.Array],
  layers: tuple[int, ...] | None,
  key: jax.Array,
  num_layers: int,
) -> jax.Array:
  """A parameter of the grown model from `parts`, those that `inputs` names.

  `layers`: their numbers in the target; None: the parameter has none.
  `num_layers`: of the model before.
  """
  if isinstance(operator, Length):
    return parts[0]
  if isinstance(operator, Depth):
    draws = fresh.Draws(key, name, layers, len(operator.layer_map))
    return depth.transform(operator, parts[0], draws)
  return width.transform(
    operator, *parts, draws=fresh.Draws(key, name, layers, num_layers)
  )


def ramp(
  operators: Sequence[Operator], params: PyTree, share: jax.Array
) -> PyTree:
  """Parameters as a forward pass sees them while new ones are let in.

  `share` rises from 0, the old function, to 1, no mask; the mask is that of the
  last operator.
  """
  last = operators[-1]
  mask = depth.ramp if isinstance(last, Depth) else width.ramp
  return tree.map_with_path(
    lambda path, x: mask(last, tree.param_of(path), x, share), params
  )
