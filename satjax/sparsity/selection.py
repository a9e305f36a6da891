"""From scores to the neurons that take part.

A selection is a mask by axis, `{'heads': bool [L, N], 'kv_heads': bool [L, K],
'mlp': bool [L, F], 'layers': bool [L]}`; an axis that no rung of the ladder
cuts does not appear. How many neurons each layer keeps may be traced, so that
one program selects for every rung.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from satjax import errors, tree
from satjax.sparsity import counts

Kept = dict[str, jax.Array]


def keep(
  score: jax.Array,
  count: jax.Array | int,
  key: jax.Array,
  *,
  method: str,
  temperature: float,
  groups: int = 1,
) -> jax.Array:
  """A mask of the `count` neurons of each layer that matter most.

  Args:
    score: `[..., R]`, non-negative. A value that is not finite counts as
      important: the neuron is kept.
    count: an int or int [...]; may be traced. Groups share it evenly: whoever
      counts makes it a multiple of them (`counts.common_step`).
    key: randomness of the sampling, and of ties.
    method: 'top_k', or 'sample': without replacement, with odds in proportion
      to `score ** (1 / temperature)` (Gumbel top-k: Vieira, 2014; Kool et al.,
      2019). Towards a temperature of 0 that is top_k; a high one is uniform.
    groups: equal runs of neurons, each with its own order.

  Raises:
    ConfigError: the groups cannot be equal.
  """
  shape = score.shape
  if shape[-1] % groups:
    raise errors.ConfigError(
      f'{shape[-1]} neurons cannot be split into {groups} equal groups; use a'
      ' divisor'
    )
  score = score.reshape(*shape[:-1], groups, -1)
  order = _order(score, key, method, temperature)
  count = jnp.asarray(count)[..., None, None] // groups
  return (jnp.argsort(order, axis=-1) < count).reshape(shape)


def _order(score, key, method, temperature):
  """Numbers of the last axis, the ones that matter most first."""
  score = jnp.where(jnp.isfinite(score), score, jnp.inf)
  rank_by = score
  if method == 'sample':
    # A score of 0 keeps a chance: its logarithm has to be finite.
    finite = jnp.where(jnp.isinf(score), 0.0, score)
    floor = jnp.mean(1e-6 * finite, axis=-1, keepdims=True)
    odds = jnp.log(jnp.maximum(score, jnp.maximum(floor, 1e-30))) / temperature
    rank_by = odds + jax.random.gumbel(key, score.shape, odds.dtype)
  # Else equal scores would favour the first neurons, refresh after refresh.
  ties = jax.random.uniform(jax.random.fold_in(key, 1), score.shape)
  return jnp.lexsort((ties, -rank_by), axis=-1)


def keep_layers(
  score_L: jax.Array,
  count_L: jax.Array,
  key: jax.Array,
  *,
  method: str,
  temperature: float,
) -> jax.Array:
  """A mask of the layers that matter most, as many of each run of layers.

  Runs follow each other, and together leave one layer at least.

  Args:
    score_L: as of `keep`.
    count_L: how many take part of the run that each layer belongs to, and the
      number of the run: int32 [2, L].
    key: as of `keep`; so are the two options.
  """
  kept_L, run_L = count_L
  place_L = jnp.argsort(_order(score_L, key, method, temperature))
  is_above = place_L[:, None] > place_L[None]
  within_L = jnp.sum(is_above & (run_L[:, None] == run_L[None]), axis=-1)
  return within_L < kept_L


def select(
  scores: Mapping[str, jax.Array],
  kept_counts: Mapping[str, jax.Array | int],
  key: jax.Array,
  *,
  method: str,
  temperature: float,
  kv_heads: int,
  granularity: str = 'per_group',
  shards: int = 1,
) -> Kept:
  """The neurons that take part in the next steps.

  Args:
    scores: `{'heads': [L, N], 'mlp': [L, F], 'layers': [L]}`, any of them.
    kept_counts: as `keep` and `keep_layers` take them, by unit.
    key: as of `keep`; so are the two options.
    kv_heads: number of key/value heads K. Where every head has its own, they
      go together.
    granularity: with grouped queries, 'per_group' keeps the same number of
      query heads in each group, and keys and values whole; 'group' keeps whole
      groups, with their keys and values; 'free' keeps any query heads (masked
      execution only).
    shards: every unit keeps the same number in each of this many equal runs,
      so that a device of a tensor-parallel mesh keeps rows of its own.
  """
  kept, ranked = {}, {'method': method, 'temperature': temperature}
  for unit, score_LR in scores.items():
    groups, size, count = shards, 1, jnp.asarray(kept_counts[unit])
    if unit == 'layers':
      own = tree.key_of(key, unit)
      kept[unit] = keep_layers(score_LR, count, own, **ranked)
      continue
    if unit == 'heads':
      heads = score_LR.shape[-1]
      groups = counts.head_groups(heads, kv_heads, granularity, shards)
      size = heads // kv_heads if granularity == 'group' else 1
    if size > 1:  # a group of heads is one neuron
      score_LR = score_LR.reshape(len(score_LR), -1, size)
      score_LR = jnp.linalg.norm(score_LR, axis=-1)
    mask_LR = keep(
      score_LR,
      count // size,
      tree.key_of(key, unit),
      groups=groups,
      **ranked,
    )
    kept[unit] = jnp.repeat(mask_LR, size, axis=-1)
    if unit == 'heads' and (size > 1 or kv_heads == heads):
      kept['kv_heads'] = mask_LR
  return kept


def overlap(one: jax.Array, two: jax.Array) -> jax.Array:
  """Jaccard similarity of two masks `[..., R]`, the mean over layers."""
  both = jnp.sum(one & two, axis=-1)
  either = jnp.sum(one | two, axis=-1)
  return jnp.mean(both / jnp.maximum(either, 1))
