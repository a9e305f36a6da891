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


def read(hlo_text: str, rounds: float = math.nan) -> list[Collective]:
  """The collectives of a compiled program; groups of one device are none.

  Args:
    hlo_text: of the program.
    rounds: of a loop whose length is data, in the mean.

  Raises:
    ValueError: a collective is in such a loop, and no `rounds` are given.
  """
  bodies, entry = hlo.computations(hlo_text)
  return list(_within(bodies, entry, 1, rounds, {}))


def _within(bodies, name, times, rounds, chains) -> Iterator[Collective]:
  """One for each array of a computation that runs so often, and what it calls.

  `chains`: where each was seen first; elsewhere it is the same collective.
  """
  body = bodies.get(name, {})
  for one in body.values():
    runs = times
    if one.opcode == 'while':
      runs *= _trips(bodies, body, one, rounds)
    for called in _calls(one):
      yield from _within(bodies, called, runs, rounds, chains)
    if one.opcode.removesuffix('-start') not in KINDS:
      continue
    group, chain = _group(one.rest), _CHAIN.search(one.rest)
    if chain and chains.setdefault(chain.groups(), name) != name:
      continue
    if not times or group == 1:
      continue
    if math.isnan(times):
      raise ValueError(f'{one.name} is in a loop of no known length')
    for kind, dtype, dims in _arrays(name, body, one):
      shape = tuple(int(d) for d in dims.split(',') if d)
      bits = re.search(r'\d+', dtype)
      size = math.prod(shape) * (int(bits[0]) if bits else 8) // 8
      yield Collective(kind, shape, dtype, size, times, group)


def _arrays(name, body, one):
  """(kind, dtype, dimensions) of each array of a collective."""
  kind, arrays = one.opcode.removesuffix('-start'), _ARRAY.findall(one.types)
  if kind == 'reduce-scatter':
    # Its larger side are the operands, whose types stand where they are made.
    values = [body[operand] for operand in one.operands]
    arrays = [array for x in values for array in _ARRAY.findall(x.types)]
  elif one.opcode != kind and kind != 'all-reduce':
    # (what goes in, what comes out), and counters of a permute.
    arrays = [a for a in arrays if kind == 'all-gather' or a[1]]
    arrays = arrays[len(arrays) // 2 :]
  # The TPU compiler's reduce-scatter is an all-reduce and a slice in one.
  if name.startswith('all-reduce-scatter'):
    kind = 'reduce-scatter'
  return [(kind, *array) for array in arrays]


def _trips(bodies, body, loop, rounds):
  """How often a loop runs, as said or by its counter; else `rounds`."""
  if known := _TRIPS.search(loop.rest):
    return int(known[1])
  condition, inner = (
    bodies[name] for name in _WHILE.search(loop.rest).groups()
  )
  test, state = _root(condition), _root(inner)
  if test.opcode != 'compare' or state.opcode != 'tuple':
    return rounds
  counter, bound = (condition[name] for name in test.operands)
  counter, bound = _element(counter), _constant(bound)
  if counter is None or bound is None:
    return rounds
  step = _added(inner, state.operands[counter], counter)
  start = _start(body, loop, counter)
  return -(-(bound - start) // step) if step and start is not None else rounds


def _start(body, loop, counter):
  """Where the counter of a loop begins; None: that is data."""
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
