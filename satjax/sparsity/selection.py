"""From scores to the neurons that take part, with static sizes.

`Active` holds sorted row numbers, `{'heads': int32 [L, n], 'kv_heads': ...,
'mlp': int32 [L, f]}`, by the axis they select on. A unit that is kept whole
does not appear.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Active = dict[str, jax.Array]


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


def select(
  scores: Mapping[str, jax.Array],
  kept: Mapping[str, int],
  key: jax.Array,
  *,
  method: str,
  temperature: float,
  kv_heads: int,
) -> Active:
  """The rows that take part in the next steps, sorted.

  With grouped queries the same number of query heads is kept in each group,
  and keys and values stay whole; otherwise a head takes its key and value
  along.

  Args:
    scores: `{'heads': [L, N], 'mlp': [L, F]}`.
    kept: how many neurons of each unit to keep (static).
    key: randomness of this selection.
    method: see `preference`.
    temperature: see `preference`.
    kv_heads: number of key/value heads K.
  """
  active = {}
  for unit, score_LR in scores.items():
    total = score_LR.shape[-1]
    if kept[unit] == total:
      continue
    groups = head_groups(total, kv_heads) if unit == 'heads' else 1
    order = preference(
      score_LR,
      unit_key(key, unit),
      method=method,
      temperature=temperature,
      groups=groups,
    )
    order = order[..., : kept[unit] // groups]
    order += (jnp.arange(groups) * (total // groups))[:, None]
    rows_LR = jnp.sort(order.reshape(order.shape[0], -1), axis=-1)
    active[unit] = rows_LR.astype(jnp.int32)
    if unit == 'heads' and groups == 1:
      active['kv_heads'] = active['heads']
  return active


def head_groups(num_heads: int, kv_heads: int) -> int:
  """How many runs of heads are balanced: one for each shared key/value head."""
  return 1 if kv_heads == num_heads else kv_heads


def unit_key(key: jax.Array, unit: str) -> jax.Array:
  """Independent randomness for each unit."""
  return jax.random.fold_in(key, sum(unit.encode()))
