"""From scores to the neurons that take part.

A selection is a mask by axis, `{'heads': bool [L, N], 'kv_heads': bool [L, K],
'mlp': bool [L, F]}`; an axis that is kept whole in all layers does not appear.
How many neurons each layer keeps may be traced, so that one program selects for
every rung of a ladder.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.sparsity import counts

Kept = dict[str, jax.Array]


def preference(
  score: jax.Array,
  key: jax.Array,
  *,
  method: str,
  temperature: float,
  groups: int = 1,
) -> jax.Array:
  """Neurons of each group in the order in which they are kept.

  Args:
    score: `[..., R]`, non-negative. A value that is not finite counts as
      important: the neuron is kept.
    key: randomness of the sampling, and of ties.
    method: 'top_k', or 'sample': without replacement, with odds in proportion
      to `score ** (1 / temperature)` (Gumbel top-k: Vieira, 2014; Kool et al.,
      2019).
    temperature: of the sampling; towards 0 it is top_k, large is uniform.
    groups: neurons are split into this many equal runs, each with its own
      order.

  Returns:
    int32 `[..., groups, R / groups]`, numbered within the group.
  """
  score = score.reshape(*score.shape[:-1], groups, -1)
  score = jnp.where(jnp.isfinite(score), score, jnp.inf)
  if method == 'sample':
    finite = jnp.where(jnp.isinf(score), 0.0, score)
    floor = jnp.mean(1e-6 * finite, axis=-1, keepdims=True)
    odds = jnp.log(jnp.maximum(score, jnp.maximum(floor, 1e-30))) / temperature
    rank_by = odds + jax.random.gumbel(key, score.shape, odds.dtype)
  else:
    rank_by = score
  ties = jax.random.uniform(jax.random.fold_in(key, 1), score.shape)
  return jnp.lexsort((ties, -rank_by), axis=-1).astype(jnp.int32)


def keep(
  score: jax.Array, count: jax.Array | int, key: jax.Array, **options
) -> jax.Array:
  """The `count` neurons that come first in each layer's preference, as a mask.

  Args:
    score: `[L, R]`.
    count: int, or int [L]; shared out evenly over the groups, rounded down.
    key: see `preference`.
    **options: of `preference`.
  """
  order_LGR = preference(score, key, **options)
  count = jnp.asarray(count).reshape(-1, 1, 1) // order_LGR.shape[-2]
  first_LGR = jnp.arange(order_LGR.shape[-1]) < count
  none_LGR = jnp.zeros(order_LGR.shape, bool)
  kept_LGR = jnp.put_along_axis(
    none_LGR,
    order_LGR,
    jnp.broadcast_to(first_LGR, order_LGR.shape),
    axis=-1,
    inplace=False,
  )
  return kept_LGR.reshape(score.shape)


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
    scores: `{'heads': [L, N], 'mlp': [L, F]}`.
    kept_counts: how many neurons of each unit to keep, alike or by layer;
      possibly traced.
    key: randomness of this selection.
    method: see `preference`.
    temperature: see `preference`.
    kv_heads: number of key/value heads K. Where every head has its own, they
      go together.
    granularity: with grouped queries, 'per_group' keeps the same number of
      query heads in each group, and keys and values whole; 'group' keeps whole
      groups, with their keys and values; 'free' keeps any query heads (masked
      execution only).
    shards: every unit keeps the same number in each of this many equal runs,
      so that a device of a tensor-parallel mesh keeps rows of its own.
  """
  kept = {}
  for unit, score in scores.items():
    options = {'method': method, 'temperature': temperature}
    unit_key = tree.key_of(key, unit)
    if unit != 'heads':
      kept[unit] = keep(
        score, kept_counts[unit], unit_key, groups=shards, **options
      )
      continue
    heads = score.shape[-1]
    if granularity == 'group' and kv_heads < heads:
      size = heads // kv_heads
      group_LK = jnp.linalg.norm(
        score.reshape(score.shape[0], kv_heads, size), axis=-1
      )
      count = jnp.asarray(kept_counts[unit]) // size
      kept['kv_heads'] = keep(
        group_LK, count, unit_key, groups=shards, **options
      )
      kept[unit] = jnp.repeat(kept['kv_heads'], size, axis=-1)
    else:
      groups = counts.head_groups(heads, kv_heads, granularity, shards)
      kept[unit] = keep(
        score, kept_counts[unit], unit_key, groups=groups, **options
      )
      if kv_heads == heads:
        kept['kv_heads'] = kept[unit]
  return kept


def overlap(one: jax.Array, two: jax.Array) -> jax.Array:
  """Jaccard similarity of two masks `[L, R]`, the mean over layers."""
  both = jnp.sum(one & two, axis=-1)
  either = jnp.sum(one | two, axis=-1)
  return jnp.mean(both / jnp.maximum(either, 1))
