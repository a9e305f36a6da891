"""How many neurons an omission rate keeps: whole numbers, without JAX.

One rule for the compact model, the mask and the optax transform: neurons go in
*tiles*, `step` at a time, so that shapes suit the hardware and every group (of
queries, of a device) keeps as many as the others. Rates are rounded to tiles;
one that leaves out no tile, or all of them, is refused.
"""

from collections.abc import Sequence
import itertools
import math

from satjax import errors


def kept_count(total: int, rate: float, step: int = 1) -> int:
  """How many of `total` neurons an omission rate keeps; a rate of 0 keeps all.

  The nearest multiple of `step`, at least one and at most `total`.

  Raises:
    ConfigError: the unit has no whole tile.
  """
  if rate == 0:
    return total
  if step > total:
    raise errors.ConfigError(
      f'neurons are kept in multiples of {step}, and there are {total}; use'
      f' multiples of {total} or less'
    )
  # Rounded first: (1 - 0.9) x 15 is 1.5, whatever the floats say.
  tiles = math.floor(round((1 - rate) * total / step, 9) + 0.5)
  return min(total, step * max(1, tiles))


def common_step(total: int, multiple: int = 1, groups: int = 1) -> int:
  """Kept neurons come in multiples of this: whole tiles, in every group alike.

  Raises:
    ConfigError: the groups cannot be equal, or together outgrow the unit.
  """
  step = math.lcm(multiple, groups)
  if total % groups or step > total:
    raise errors.ConfigError(
      f'{total} neurons cannot be kept in multiples of {multiple} and in'
      f' {groups} equal groups; use groups that divide {total}, and a common'
      f' multiple of at most {total}'
    )
  return step


def not_realised(
  rate: float, total: int, step: int, what: str, *, all_but_one: bool = False
) -> str:
  """Why an omission rate is refused; '' if it is not.

  It is if the nearest that whole tiles can realise leaves out nothing, or all;
  with `all_but_one` a tile stays instead.
  """
  kept, wanted = kept_count(total, rate, step), (1 - rate) * total
  # A last tile that is not whole: what is asked may be nearer to everything.
  to_total = 2 * wanted > kept + total and not all_but_one
  none = rate > 0 and (kept == total or to_total)
  everything = round(wanted / step, 9) < 0.5 and not all_but_one
  if not none and not everything:
    return ''
  most = (total - 1) // step * step  # kept, if any are left out
  near = 1 - (most if none else step) / total if most else 0
  return (
    f'{rate} leaves out {"nothing" if none else "all"}: {total} {what} are left'
    f' out in multiples of {step}; use {near:.6g}'
  )


def omitted_layers(
  rate: float, scales: Sequence[float], sizes: Sequence[int]
) -> tuple[int, ...]:
  """How many layers each run of equal layers leaves out, at an omission rate.

  Together the nearest whole number of `rate` times the sum of `scales`, shared
  out by largest remainder; a layer of scale 0 is never left out, nor are all.

  Args:
    rate: of omission.
    scales: a factor on it for each layer.
    sizes: of the runs, from the first layer on.
  """
  starts = [0, *itertools.accumulate(sizes)]
  runs = [scales[a:b] for a, b in itertools.pairwise(starts)]
  wanted = [rate * sum(run) for run in runs]
  room = [sum(scale > 0 for scale in run) for run in runs]
  total = math.floor(round(sum(wanted), 9) + 0.5)
  total = min(total, sum(room), len(scales) - 1)
  found = [min(math.floor(x), most) for x, most in zip(wanted, room)]
  by_remainder = sorted(range(len(runs)), key=lambda i: found[i] - wanted[i])
  while sum(found) < total:
    for i in by_remainder:
      if found[i] < room[i] and sum(found) < total:
        found[i] += 1
  return tuple(found)


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
  if kv_heads == num_heads or granularity == 'group':
    return heads * kv_heads // num_heads
  return kv_heads
