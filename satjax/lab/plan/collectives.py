"""What a compiled program sends between devices, read from its text.

The text names a collective once, however often its loop runs. One that the TPU
compiler writes several times, in the fusions of a chain that overlaps it with
compute, counts as the one that it is.

Compare ratios: XLA's CPU compiler sends bfloat16 as float32, and writes a
reduce-scatter as an all-reduce.
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import math
import re

from satjax.lab.plan import hlo

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all')
KINDS += ('ragged-all-to-all', 'collective-permute', 'collective-broadcast')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One array that devices exchange."""

  kind: str  # one of `KINDS`
  # On one device, of the larger side: what an all-gather gives, what a
  # reduce-scatter gets.
  shape: tuple[int, ...]
  dtype: str  # as XLA writes it, such as 'bf16'
  bytes: int  # of that array, once
  # How often it runs in one run of the program; a mean where that is data.
  times: float
  group: int  # how many devices take part together


def total(found: Sequence[Collective]) -> dict[str, dict[str, int]]:
  """The 'count' of arrays and their 'bytes', by kind, loops counted."""
  counts, sizes = collections.Counter(), collections.Counter()
  for one in found:
    counts[one.kind] += one.times
    sizes[one.kind] += one.times * one.bytes
  return {
    kind: {'count': round(count), 'bytes': round(sizes[kind])}
    for kind, count in counts.items()
  }


def largest(found: Sequence[Collective], most: int = 5) -> list[Collective]:
  """The arrays with the most bytes, one of each kind, shape and dtype."""
  alike = {(one.kind, one.shape, one.dtype): one for one in found}
  return sorted(alike.values(), key=lambda one: -one.bytes)[:most]


def sent(one: Collective) -> float:
  """Bytes that leave a device, loops counted, by a ring over its group."""
  share = (one.group - 1) / one.group
  if one.kind in ('collective-permute', 'collective-broadcast'):
    share = 1.0
  elif one.kind == 'all-reduce':
    share *= 2
  return one.times * one.bytes * share


_CALLED = re.compile(
  r'(?:calls|to_apply|branch_computations|true_computation|false_computation'
  r'|called_computations)=(?:\{([^}]*)\}|%?([\w.-]+))'
)
_WHILE = re.compile(r'condition=%?([\w.-]+), body=%?([\w.-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="(\d+)"')
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')


def read(hlo_text: str, rounds: float | None = None) -> list[Collective]:
  """The collectives of a compiled program; groups of one device are none.

  Args:
    hlo_text: of the program.
    rounds: of a loop whose length is data, in the mean; None: there is none.

  Raises:
    ValueError: a loop with a collective does not say how often it runs.
  """
  return list(_Program(hlo_text, rounds).collectives())


class _Program:
  """Computations by name, and how often each of them runs."""

  def __init__(self, text: str, rounds: float | None):
    self._rounds = rounds
    self._bodies, self._entry = hlo.computations(text)
    self._times = functools.cache(self._count)
    self._callers: dict[str, list[tuple[str, hlo.Instruction]]] = {}
    for name, body in self._bodies.items():
      for one in body.values():
        for called in _calls(one):
          self._callers.setdefault(called, []).append((name, one))

  def collectives(self) -> Iterator[Collective]:
    """One for each array; those of a chain as one."""
    seen = set()
    for name, body in self._bodies.items():
      for one in body.values():
        if one.opcode.removesuffix('-start') not in KINDS:
          continue
        times, group = self._times(name), _group(one.rest)
        chain = _CHAIN.search(one.rest)
        if not times or group == 1 or (chain and chain.groups() in seen):
          continue
        if chain:
          seen.add(chain.groups())
        for kind, dtype, dims in self._arrays(name, one):
          shape = tuple(int(d) for d in dims.split(',') if d)
          bits = re.search(r'\d+', dtype)
          size = math.prod(shape) * (int(bits[0]) if bits else 8) // 8
          yield Collective(kind, shape, dtype, size, times, group)

  def _arrays(self, name, one):
    """(kind, dtype, dimensions) of each array of a collective."""
    kind, arrays = one.opcode.removesuffix('-start'), _ARRAY.findall(one.types)
    if kind == 'reduce-scatter':
      # Its larger side are the operands, whose types stand where they are made.
      values = [self._bodies[name][operand] for operand in one.operands]
      arrays = [array for x in values for array in _ARRAY.findall(x.types)]
    elif one.opcode != kind and kind != 'all-reduce':
      # (what goes in, what comes out), and counters of a permute.
      arrays = [a for a in arrays if kind == 'all-gather' or a[1]]
      arrays = arrays[len(arrays) // 2 :]
    # The TPU compiler's reduce-scatter is an all-reduce and a slice in one.
    if name.startswith('all-reduce-scatter'):
      kind = 'reduce-scatter'
    return [(kind, *array) for array in arrays]

  def _count(self, name):
    if name == self._entry:
      return 1
    return sum(
      self._times(caller)
      * (self._trips(caller, one) if one.opcode == 'while' else 1)
      for caller, one in self._callers.get(name, ())
    )

  def _trips(self, caller, loop):
    """How often a loop runs: said, or by its counter."""
    if known := _TRIPS.search(loop.rest):
      return int(known[1])
    condition, body = (
      self._bodies[name] for name in _WHILE.search(loop.rest).groups()
    )
    test, state = _root(condition), _root(body)
    counter = bound = step = None
    if test.opcode == 'compare':
      counter, bound = (condition[name] for name in test.operands)
      counter, bound = _element(counter), _constant(bound)
    if counter is not None and state.opcode == 'tuple':
      step = _added(body, state.operands[counter], counter)
    start = self._start(caller, loop, counter) if bound and step else None
    if start is not None:
      return -(-(bound - start) // step)
    if self._rounds is not None:
      return self._rounds
    raise ValueError(
      'a loop with a collective has no known length:'
      f' {loop.name} = {loop.types} while({loop.rest}'[:250]
    )

  def _start(self, caller, loop, counter):
    """Where the counter of a loop begins; None: that is data.

    Where no length is data it begins at 0, whatever makes it so.
    """
    if self._rounds is None:
      return 0
    body = self._bodies[caller]
    state = body[loop.operands[0]]
    one = body[state.operands[counter]] if state.opcode == 'tuple' else state
    while one.opcode == 'copy':
      one = body[one.operands[0]]
    return _constant(one)


def _calls(one):
  """Computations that an instruction runs."""
  if one.opcode == 'while':
    return [_WHILE.search(one.rest)[2]]
  if one.opcode in ('async-done', 'async-update'):
    return []  # the end of what async-start runs
  return [
    name.strip().lstrip('%')
    for several, single in _CALLED.findall(one.rest)
    for name in (several or single).split(',')
  ]


def _root(body):
  return next(one for one in body.values() if one.is_root)


def _element(one):
  """Which element of the loop's state a value is; None: none of them."""
  if one.opcode != 'get-tuple-element':
    return None
  return int(re.search(r'index=(\d+)', one.rest)[1])


def _constant(one):
  whole = re.match(r'(\d+)\)', one.rest)
  return int(whole[1]) if one.opcode == 'constant' and whole else None


def _added(body, name, counter):
  """What a value adds to the counter; None: something else."""
  one = body[name]
  if one.opcode == 'copy':
    return _added(body, one.operands[0], counter)
  if one.opcode == 'add':
    before, more = one.operands
    sums = _added(body, before, counter), _constant(body[more])
    return None if None in sums else sum(sums)
  return 0 if _element(one) == counter else None


def _group(attributes):
  """Devices of a replica group, in any of the ways that XLA writes them."""
  if listed := re.search(r'replica_groups=\{\{([\d,]*)\}', attributes):
    return len(listed[1].split(','))
  if grid := re.search(r'replica_groups=\[(\d+),(\d+)\]', attributes):
    return int(grid[2])
  axes = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes)
  if axes:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
    names = re.findall(r"'(\w+)'", axes[2])
    return math.prod(int(sizes[name]) for name in names)
  return 2  # a permute: pairs
