"""LORS as an optax transform: training that leaves neurons out, in any loop.

`lors(inner, ladder)` wraps any optax transformation. Its state holds a mask
over the parameters for the *coming* step; a loop that also runs the forward
pass on `apply_mask(params, state.mask)` trains exactly the sub-network, and
one that does not still updates the active neurons only.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from satjax import tree
from satjax.sparsity import importance as importance_lib
from satjax.sparsity import selection as selection_lib
from satjax.sparsity import subnetwork
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

  Everything runs inside jit: the omission rate follows the transform's own
  step count, and the mask is chosen again every `refresh_every` steps and at
  each rung. Ma et al. (2024) describe the method; the forms are ours.

  Args:
    inner: the transformation that does the optimizing.
    ladder: omission rate over the steps, for all units or by unit.
    units: `{unit: {path of a parameter: its axes that number the neurons}}`,
      such as `{'hidden': {'Dense_0/kernel': (1,), 'Dense_1/kernel': (0,)}}`.
      None: the heads and channels of satjax's own parameter tree.
    importance: 'magnitude' or 'uniform', computed from the new parameters;
      `update(..., scores={unit: array})` takes precedence.
    selection: 'top_k' or 'sample'; see `selection.preference`.
    temperature: of the sampling.
    refresh_every: steps with the same mask; 0: the caller replaces
      `state.mask` itself.
    omitted: 'frozen', the moments and the decay of omitted neurons rest; or
      'decayed', they run on as for a zero gradient.
    multiple: kept counts are a multiple of this in every unit but 'heads'.
    groups: runs of neurons of a unit that keep the same number each.
    seed: of the sampling.

  Returns:
    A transformation whose `update` needs `params`.

  Raises:
    ValueError: an option that is not known, or `update` without params.
  """
  if omitted not in ('frozen', 'decayed'):
    raise ValueError(f"omitted {omitted!r}; allowed: 'frozen' | 'decayed'")
  if importance not in ('magnitude', 'uniform'):
    raise ValueError(
      f"importance {importance!r}; allowed: 'magnitude' | 'uniform', or pass"
      ' scores to update()'
    )
  inner = optax.with_extra_args_support(inner)
  groups = groups or {}

  def choose(params, count, scores):
    found = units or tree.neuron_units(params)
    scores = scores or importance_lib.scores(importance, params, found)
    ladders = (
      ladder if isinstance(ladder, Mapping) else dict.fromkeys(found, ladder)
    )
    key = jax.random.fold_in(jax.random.key(seed), count)
    kept = {}
    for unit, score in scores.items():
      kept[unit] = _taking_part(
        score,
        ladders[unit],
        count,
        selection_lib.unit_key(key, unit),
        method=selection,
        temperature=temperature,
        groups=groups.get(unit, 1),
        multiple=1 if unit == 'heads' else multiple,
      )
    return subnetwork.masks(params, found, kept)

  def init(params):
    count = jnp.zeros((), jnp.int32)
    if refresh_every:
      mask = choose(params, count, None)
    else:
      mask = subnetwork.masks(params, units or tree.neuron_units(params), {})
    return LorsState(count, mask, inner.init(params))

  def update(updates, state, params=None, *, scores=None, **extra):
    if params is None:
      raise ValueError('lors: update() needs the parameters')
    updates = apply_mask(updates, state.mask)
    updates, new_inner = inner.update(updates, state.inner, params, **extra)
    if omitted == 'frozen':
      updates = apply_mask(updates, state.mask)
      new_inner = _keep_omitted(inner, state.inner, new_inner, state.mask)
    count = state.count + 1
    mask = state.mask
    if refresh_every:
      due = (count % refresh_every == 0) | _is_rung(ladder, count)
      new_params = optax.apply_updates(params, updates)
      mask = jax.lax.cond(
        due, lambda: choose(new_params, count, scores), lambda: state.mask
      )
    return updates, LorsState(count, mask, new_inner)

  return optax.GradientTransformationExtraArgs(init, update)


def apply_mask(values: PyTree, mask: PyTree) -> PyTree:
  """Zeros where the mask is False; the mask broadcasts against the leaf."""
  return jax.tree.map(lambda x, m: jnp.where(m, x, 0), values, mask)


def _is_rung(ladder, count):
  """Whether a rung begins at this step."""
  ladders = ladder.values() if isinstance(ladder, Mapping) else [ladder]
  starts = sorted({b for one in ladders for b in one.boundaries})
  return jnp.any(count == jnp.array(starts))


def _taking_part(
  score, ladder, count, key, *, method, temperature, groups, multiple
):
  """True for the neurons that the rung of this step keeps, like `score`."""
  order = selection_lib.preference(
    score, key, method=method, temperature=temperature, groups=groups
  )
  place = jnp.argsort(order, axis=-1)
  total = score.shape[-1]
  kept = ladder.kept_by_rung(total, max(multiple, groups))
  in_group = jnp.array(kept)[ladder.rung(count)] // groups
  return (place < in_group).reshape(score.shape)


def _keep_omitted(inner, old, new, mask):
  """The new optimizer state, with the old moments of omitted neurons."""
  masks = optax.tree_map_params(
    inner,
    lambda _, m: m,
    new,
    mask,
    transform_non_params=lambda _: jnp.ones((), bool),
  )
  return jax.tree.map(lambda m, a, b: jnp.where(m, b, a), masks, old, new)
