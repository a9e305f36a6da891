"""How many neurons an omission rate keeps: whole numbers, without JAX."""

import math


def kept_count(total: int, rate: float, multiple: int = 1) -> int:
  """How many of `total` neurons an omission rate keeps.

  Args:
    total: neurons of the unit.
    rate: omission rate; exactly 0 keeps all.
    multiple: the count is the nearest multiple of this, at least one and at
      most `total`.
  """
  if rate == 0:
    return total
  # Rounded first: (1 - 0.9) x 15 is 1.5, whatever the floats say.
  tiles = math.floor(round((1 - rate) * total / multiple, 9) + 0.5)
  return min(total, multiple * max(1, tiles))


def nearest_rates(total: int, multiple: int, rate: float) -> tuple[float, ...]:
  """Omission rates next to `rate` that leave out a whole number of tiles.

  Args:
    total: neurons of the unit.
    multiple: neurons in a tile.
    rate: the rate asked for.
  """
  tiles = total // multiple
  exact = rate * total / multiple
  around = {max(1, math.floor(exact)), max(1, math.ceil(exact))}
  return tuple(sorted({min(n, tiles - 1) / tiles for n in around} - {0.0}))


def head_groups(
  num_heads: int, kv_heads: int, granularity: str = 'per_group', shards: int = 1
) -> int:
  """How many runs of query heads keep the same number of heads each."""
  if kv_heads == num_heads or granularity != 'per_group':
    return shards
  return math.lcm(kv_heads, shards)


def head_step(
  num_heads: int, kv_heads: int, granularity: str = 'per_group', shards: int = 1
) -> int:
  """Kept query heads come in multiples of this."""
  if granularity == 'group' and kv_heads < num_heads:
    return num_heads // kv_heads * shards
  return head_groups(num_heads, kv_heads, granularity, shards)


def kept_kv_heads(
  heads: int, num_heads: int, kv_heads: int, granularity: str = 'per_group'
) -> int:
  """How many key/value heads serve the query heads that are kept."""
  if kv_heads == num_heads:
    return heads
  if granularity == 'group':
    return heads * kv_heads // num_heads
  return kv_heads
