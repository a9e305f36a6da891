"""What a compiled program sends between devices, read from its text.

`jax.stages.Compiled.as_text()` names every collective once, however often it
runs. A collective in a loop runs as often as the loop does; one that the TPU
compiler writes several times, in the fusions of a chain that overlaps it with
compute, counts as the one that it is.

Compare ratios: XLA's CPU compiler sends bfloat16 as float32, and writes a
reduce-scatter as an all-reduce.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import math
import re

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One array that devices exchange.

  Attributes:
    kind: one of `KINDS`.
    shape: on one device, of the larger side: what an all-gather gives, what a
      reduce-scatter gets.
    dtype: XLA's name of it, such as 'bf16'.
    bytes: of that array, once.
    times: how often it runs in one run of the program.
    group: how many devices take part together.
  """

  kind: str
  shape: tuple[int, ...]
  dtype: str
  bytes: int
  times: int
  group: int


def total(found: Sequence[Collective]) -> dict[str, tuple[int, int]]:
  """How often arrays are exchanged, and their bytes, by kind, loops counted."""
  sums = {}
  for one in found:
    count, size = sums.get(one.kind, (0, 0))
    sums[one.kind] = count + one.times, size + one.times * one.bytes
  return sums


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


_HEADER = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{\s*$')
_NAMED = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) [\w-]+\(')
_COLLECTIVE = re.compile(
  rf'^\s*(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ({"|".join(KINDS)})(-start)?'
  r'\(([^)]*)\)(.*)$'
)
_WHILE = re.compile(r' while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)')
_CALLED = re.compile(
  r'(?:calls|to_apply|branch_computations|true_computation|false_computation'
  r'|called_computations)=(?:\{([^}]*)\}|%?([\w.-]+))'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')


def read(hlo_text: str) -> list[Collective]:
  """The collectives of a compiled program; groups of one device are none.

  Args:
    hlo_text: of `jax.stages.Compiled.as_text`.

  Raises:
    ValueError: a loop with a collective does not say how often it runs.
  """
  return list(_Program(hlo_text).collectives())


class _Program:
  """Computations by name, and how often each of them runs."""

  def __init__(self, text: str):
    self._lines: dict[str, list[str]] = {}
    self._entry = lines = None
    for line in text.splitlines():
      header = _HEADER.match(line)
      if header:
        lines = self._lines.setdefault(header[2], [])
        self._entry = header[2] if header[1] else self._entry
      elif lines is not None:
        lines.append(line)
    self._times = functools.cache(self._count)
    self._callers: dict[str, list[tuple[str, str | None]]] = {}
    for name, body in self._lines.items():
      for line in body:
        for called, loop in self._calls(line):
          self._callers.setdefault(called, []).append((name, loop))

  def collectives(self) -> Iterator[Collective]:
    """One for each array; those of a chain as one."""
    seen = set()
    for name, lines in self._lines.items():
      for line in lines:
        match = _COLLECTIVE.match(line)
        if not match:
          continue
        times, group = self._times(name), _group(match[5])
        chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', match[5])
        if not times or group == 1 or (chain and chain.groups() in seen):
          continue
        if chain:
          seen.add(chain.groups())
        yield from self._arrays(name, match, times, group)

  def _arrays(self, name, match, times, group):
    types, kind, start, operands, _ = match.groups()
    arrays = _ARRAY.findall(types)
    if start and kind != 'all-reduce':
      # (what goes in, what comes out), and counters of a permute.
      arrays = [a for a in arrays if kind == 'all-gather' or a[1]]
      arrays = arrays[len(arrays) // 2 :]
    if kind == 'reduce-scatter':
      arrays = self._operands(name, operands)
    # The TPU compiler's reduce-scatter is an all-reduce and a slice in one.
    if name.startswith('all-reduce-scatter'):
      kind = 'reduce-scatter'
    for dtype, dims in arrays:
      shape = tuple(int(d) for d in dims.split(',') if d)
      size = math.prod(shape) * _bits(dtype) // 8
      yield Collective(kind, shape, dtype, size, times, group)

  def _operands(self, name, operands):
    """Arrays of the operands, whose types stand where they are computed."""
    types = {}
    for line in self._lines[name]:
      if named := _NAMED.match(line):
        types[named[1]] = named[2]
    names = re.findall(r'%([\w.-]+)', operands)
    return [a for n in names for a in _ARRAY.findall(types[n])]

  def _calls(self, line):
    """(computation, loop or None) that a line runs."""
    loop = _WHILE.search(line)
    if loop:
      yield loop[2], line
      return
    if ' async-done(' in line or ' async-update(' in line:
      return  # the end of what async-start runs
    for several, one in _CALLED.findall(line):
      for name in (several or one).split(','):
        yield name.strip().lstrip('%'), None

  def _count(self, name):
    if name == self._entry:
      return 1
    return sum(
      self._times(caller) * (self._trips(loop) if loop else 1)
      for caller, loop in self._callers.get(name, ())
    )

  def _trips(self, line):
    """How often a loop runs: said, or by its counter, which begins at 0."""
    if known := _TRIPS.search(line):
      return int(known[1])
    condition, body = _WHILE.search(line).groups()
    counter = bound = step = None
    compare = self._find(condition, r'ROOT .* compare\((%\S+), (%\S+)\)')
    if compare:
      counter = self._element(condition, compare[1])
      bound = self._constant(condition, compare[2])
    values = self._find(body, r'ROOT .* tuple\((.*?)\)(?:,|$)')
    if counter is not None and values:
      following = re.findall(r'%[\w.-]+', values[1])[counter]
      step = self._added(body, following, counter)
    if not bound or not step:
      raise ValueError(
        f'a loop with a collective has no known length: {line.strip()[:200]}'
      )
    return -(-bound // step)

  def _find(self, computation, pattern):
    matches = (re.search(pattern, x) for x in self._lines[computation])
    return next((match for match in matches if match), None)

  def _value(self, computation, name, pattern):
    named = rf'^\s*(?:ROOT )?{re.escape(name)} = '
    return self._find(computation, named + pattern)

  def _element(self, computation, name):
    """Which element of the loop's state a value is."""
    pattern = r'.*get-tuple-element\(.*\), index=(\d+)'
    found = self._value(computation, name, pattern)
    return found and int(found[1])

  def _constant(self, computation, name):
    found = self._value(computation, name, r'\S+ constant\((\d+)\)')
    return found and int(found[1])

  def _added(self, computation, name, counter):
    """What a value adds to the counter; None: something else."""
    if self._element(computation, name) == counter:
      return 0
    copied = self._value(computation, name, r'\S+ copy\((%\S+)\)')
    if copied:
      return self._added(computation, copied[1], counter)
    found = self._value(computation, name, r'\S+ add\((%\S+), (%\S+)\)')
    if not found:
      return None
    more = self._constant(computation, found[2])
    before = self._added(computation, found[1], counter)
    return None if more is None or before is None else before + more


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


def _bits(dtype):
  if dtype == 'pred':
    return 8
  return int(re.search(r'\d+', dtype)[0])
