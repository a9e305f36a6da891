"""LORS as an optax transform: training that leaves neurons out, in any loop.

`lors(inner, ladder)` wraps any optax transformation. Its state holds a mask
over the parameters for the *coming* step; a loop that also runs the forward
pass on `apply_mask(params, state.mask)` trains exactly the sub-network, and
one that does not still updates the active neurons only.

One program serves the whole ladder: the rate is a traced value, so that a mask
changes what a step does and never its shapes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from satjax import errors, tree
from satjax.sparsity import importance as importance_lib
from satjax.sparsity import selection as selection_lib
from satjax.sparsity.ladder import Ladder
from satjax.tree import PyTree


class LorsState(NamedTuple):
  """Step count, mask of the coming step (like the parameters), inner state."""

  count: jax.Array
  mask: PyTree
  inner: optax.OptState


def lors(
  inner: optax.GradientTransformation,
  ladder: Ladder | Mapping[str, Ladder],
  *,
  units: importance_lib.Units | None = None,
  importance: str = 'magnitude',
  selection: str = 'top_k',
  temperature: float = 1.0,
  refresh_every: int = 1,
  omitted: str = 'frozen',
  multiple: int = 1,
  groups: Mapping[str, int] | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Leaves unimportant neurons out of the updates of `inner`, on a ladder.

  Everything runs inside jit: the rate follows the transform's own step count,
  and the mask is chosen again every `refresh_every` steps and at each rung. Ma
  et al. (2024) describe the method; the forms are ours.

  Args:
    ladder: omission rate over the steps, for all units or by unit; its
      `realised_rates` tells what whole neurons make of them.
    units: `{unit: {path of a parameter: its axes that number the neurons}}`,
      such as `{'hidden': {'Dense_0/kernel': (1,), 'Dense_1/kernel': (0,)}}`.
      None: the heads and channels of satjax's own parameter tree.
    importance: 'magnitude' or 'uniform', computed from the new parameters;
      `update(..., scores={unit: array})` takes precedence.
    selection: 'top_k' or 'sample', with a `temperature` (`selection.keep`).
    refresh_every: steps with the same mask; 0: the caller sets `state.mask`.
    omitted: 'frozen', the moments and the decay of omitted neurons rest; or
      'decayed', they run on as for a zero gradient.
    multiple: kept counts are a multiple of this in every unit but 'heads'.
    groups: by unit, equal runs of neurons that keep as many each.
    seed: of the sampling.

  Raises:
    ValueError: an option that is not known; in `init`, a rate or groups that
      the neurons of a unit cannot realise; an `update` without `params`.
  """
  _check('omitted', omitted, 'frozen', 'decayed')
  _check('importance', importance, 'magnitude', 'uniform')
  _check('selection', selection, 'top_k', 'sample')
  ranked = {'method': selection, 'temperature': temperature}

  def choose(params, count, scores=None):
    own = units or tree.neuron_units(params)
    scores = scores or importance_lib.scores(importance, params, own)
    key = jax.random.fold_in(jax.random.key(seed), count)
    kept = {}
    for unit, score in scores.items():
      one = ladder[unit] if isinstance(ladder, Mapping) else ladder
      tile = 1 if unit == 'heads' else multiple
      runs = (groups or {}).get(unit, 1)
      kept[unit] = _keep(one, count, unit, score, key, tile, runs, ranked)
    return masks(params, own, kept)

  inner = optax.with_extra_args_support(inner)
  both = _transform(inner, choose, _boundaries(ladder), refresh_every, omitted)
  return optax.GradientTransformationExtraArgs(*both)


def _boundaries(ladder):
  ladders = ladder.values() if isinstance(ladder, Mapping) else [ladder]
  return np.array(sorted({b for one in ladders for b in one.boundaries}))


def _check(name, value, *allowed):
  if value not in allowed:
    known = ' | '.join(map(repr, allowed))
    raise ValueError(f'lors: {name} {value!r}; allowed: {known}')


def _transform(inner, choose, rungs, refresh_every, omitted):
  """The two functions of the transformation."""

  def init(params):
    count = jnp.zeros((), jnp.int32)
    if refresh_every:
      mask = choose(params, count)
    else:
      mask = jax.tree.map(lambda _: jnp.ones((), bool), params)
    return LorsState(count, mask, inner.init(params))

  def update(updates, state, params=None, *, scores=None, **extra):
    if params is None:
      raise ValueError('lors: update() needs the parameters')
    old, taking_part = state.inner, _state_mask(inner, state)
    if omitted == 'frozen':
      # Zeros, for inner transformations that mix rows (Muon).
      old = apply_mask(old, taking_part)
    updates = apply_mask(updates, state.mask)
    updates, new = inner.update(updates, old, params, **extra)
    if omitted == 'frozen':
      updates = apply_mask(updates, state.mask)
      new = jax.tree.map(jnp.where, taking_part, new, state.inner)
    count, mask = state.count + 1, state.mask
    if refresh_every:
      new_params = optax.apply_updates(params, updates)
      mask = jax.lax.cond(
        (count % refresh_every == 0) | jnp.any(count == rungs),
        lambda: choose(new_params, count, scores),
        lambda: state.mask,
      )
    return updates, LorsState(count, mask, new)

  return init, update


def apply_mask(values: PyTree, mask: PyTree) -> PyTree:
  """Zeros where the mask is False; the mask broadcasts against the leaf."""
  return jax.tree.map(lambda x, m: jnp.where(m, x, 0), values, mask)


def _keep(ladder, count, unit, score, key, multiple, groups, ranked):
  """Which neurons of a unit take part in the step after `count` of them."""
  try:
    by_rung = ladder.kept_by_rung(score.shape[-1], multiple, groups)
  except errors.ConfigError as error:
    raise errors.ConfigError(f'lors: {unit!r}: {error}') from error
  kept = jnp.array(by_rung)[ladder.rung(count)]
  key = tree.key_of(key, unit)
  return selection_lib.keep(score, kept, key, groups=groups, **ranked)


def _state_mask(inner, state: LorsState) -> PyTree:
  """Like the inner state: the mask on moments, True on everything else."""

  def is_absent(leaf):
    return isinstance(leaf, optax.MaskedNode)

  return optax.tree_map_params(
    inner,
    lambda leaf, mask: leaf if is_absent(leaf) else mask,
    state.inner,
    state.mask,
    transform_non_params=lambda _: jnp.ones((), bool),
    is_leaf=is_absent,
  )


def masks(
  params: PyTree, units: importance_lib.Units, kept: Mapping[str, jax.Array]
) -> PyTree:
  """For each leaf, True where it takes part; broadcasts against the leaf.

  A leaf of several units takes part where all of them do; one that `kept` does
  not have is kept whole.
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
