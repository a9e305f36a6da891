"""Arms that fit in memory together, and how they take turns.

Where not all fit, they are timed in groups; the dense arm is in every one, so
that every ratio is of two arms that took turns.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

from satjax import console

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Unit:
  """Arms that belong in one group."""

  names: tuple[str, ...]  # of the arms
  rests: float = 0.0  # bytes on a device between steps
  works: float = 0.0  # bytes on top of that while one of them steps
  # Whether the memory of other arms is to be free, since nobody knows what
  # these need.
  alone: bool = False


def pack(
  units: Sequence[Unit], dense: tuple[float, float], limit: float
) -> tuple[list[list[Unit]], dict[str, str]]:
  """Units in groups that take at most `limit` bytes with the dense arm.

  Those that follow each other share a group while there is room.

  Args:
    units: all but the dense arm.
    dense: what that `rests` and `works`.
    limit: bytes.

  Returns:
    The groups, and why arms are in none of them. Units that are alone come
    first, before others leave holes in the memory.
  """

  def needed(*members):
    rests, works = zip(dense, *((unit.rests, unit.works) for unit in members))
    return sum(rests) + max(works)

  groups, reasons = [], {}
  for unit in sorted(units, key=lambda unit: not unit.alone):
    if needed(unit) > limit:
      reason = (
        f'with the dense arm {needed(unit) / _GIB:.3g} GiB, of'
        f' {limit / _GIB:.3g}; lower config.train.microbatch_size'
      )
      reasons |= dict.fromkeys(unit.names, reason)
    elif (
      groups and not groups[-1][0].alone and needed(*groups[-1], unit) <= limit
    ):
      groups[-1].append(unit)
    else:
      groups.append([unit])
  return groups, reasons


def take_turns(
  label: str, tasks: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
  """Seconds of every task in every round; odd rounds go backwards.

  All begin a round as often, for what comes first may be slower.
  """
  seconds, names = {name: [] for name in tasks}, list(tasks)
  with console.Progress(label, rounds, counts=True) as bar:
    for number in range(rounds):
      at = number // 2 % max(1, len(names))
      order = [*names[at:], *names[:at]]
      for name in order[:: -1 if number % 2 else 1]:
        begin = time.perf_counter()
        tasks[name]()
        seconds[name].append(time.perf_counter() - begin)
      bar.advance(1)
  return seconds
