"""What a profiler trace says: which operation ran when, and of what kind.

A trace has a plane for each device, with a line for each stream of a GPU, and
one plane for a CPU, with a line for each thread. Both become the same list of
operations, whose names the text of the compiled program explains.
"""

import collections
from collections.abc import Iterable, Mapping
import dataclasses
import pathlib
import re

import jax

from satjax import errors
from satjax.lab.plan import hlo

GROUPS = (
  'matmul',
  'attention',
  'optimizer',
  'elementwise',
  'copy/transpose',
  'gather/scatter',
  'collective',
  'other',
)
GAPS = 'host gaps'
SCOPE = 'optimizer'  # named scope of what belongs to the optimizer

_COLLECTIVE = re.compile(
  r'(nccl|all-reduce|all-gather|reduce-scatter|all-to-all|collective)'
)
# These wait for what they contain, which has events of its own.
_CONTAINER = re.compile(r'(while|call|conditional)(\.\d+)?$')
_MOVES = {
  *('copy', 'copy-start', 'copy-done', 'transpose', 'reshape', 'bitcast'),
  *('slice', 'dynamic-slice', 'dynamic-update-slice', 'concatenate', 'pad'),
  *('reverse', 'broadcast', 'iota'),
  *('select', 'compare'),  # of the bounds of a slice
}
_SILENT = {'parameter', 'constant', 'tuple', 'get-tuple-element'}
_NAMELESS = re.compile(r'(ynn_fusion|fusion|custom-call)(\.\d+)?$')
# For kernels that no program explains, by a part of their name.
_KERNELS = (
  ('attention', re.compile(r'fmha|flash|sdpa|cudnn_generated', re.I)),
  ('collective', re.compile(r'nccl|all_?reduce|all_?gather', re.I)),
  ('matmul', re.compile(r'gemm|nvjet|cutlass|xmma|cublas|matmul|dot', re.I)),
  ('gather/scatter', re.compile(r'gather|scatter|sort', re.I)),
  ('copy/transpose', re.compile(r'mem(cpy|set)|copy|transpose|slice', re.I)),
)
_CALLS = re.compile(r'\bcalls=%?([\w.\-]+)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_BATCHED = re.compile(r'lhs_batch_dim(s=\{\d|ensions":\["\d)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
  """One operation of one line of a trace, from start to stop in nanoseconds."""

  name: str  # of the instruction, or of the kernel where that is not known
  module: str  # program that it belongs to; '' where that is not known
  start: float
  stop: float
  kernel: str = ''  # of a GPU, that ran for the instruction


def kinds(text: str) -> dict[str, str]:
  """The group of every instruction of a compiled program, from its text."""
  bodies, _ = hlo.computations(text)
  return {
    name: _kind(one, bodies)
    for body in bodies.values()
    for name, one in body.items()
  }


def _kind(one, bodies):
  calls = _CALLS.search(one.rest)
  inner = bodies.get(calls[1], {}) if calls else {}
  parts = [x for x in inner.values() if x.opcode not in _SILENT] or [one]
  if _COLLECTIVE.match(one.opcode):
    return 'collective'
  for part in parts:
    target = _TARGET.search(part.rest)
    known = _by_name(target[1]) if target else None
    if known == 'attention':
      return known
    if part.opcode in ('dot', 'convolution') or known == 'matmul':
      within = 'attention' in ''.join(_OP_NAME.findall(part.rest))
      batched = within and _BATCHED.search(part.rest)
      return 'attention' if batched else 'matmul'
  names = (_OP_NAME.search(part.rest) for part in parts)
  if 2 * sum(SCOPE in x[1].split('/') for x in names if x) > len(parts):
    return 'optimizer'
  opcodes = {part.opcode for part in parts}
  if opcodes & {'gather', 'scatter', 'sort'}:
    return 'gather/scatter'
  return 'copy/transpose' if opcodes <= _MOVES else 'elementwise'


def _by_name(name):
  for group, pattern in _KERNELS:
    if pattern.search(name):
      return group
  return None


def group_of(op: Op, module: str, known: Mapping[str, str]) -> str:
  """The group of an operation; `known`: `kinds` of the program `module`."""
  if op.module.startswith(module) and op.name in known:
    return known[op.name]
  if _COLLECTIVE.match(op.name):
    return 'collective'
  silent = 'other' if _NAMELESS.match(op.name) else 'elementwise'
  return _by_name(op.name) or _by_name(op.kernel) or silent


def read(directory: str | pathlib.Path) -> list[list[Op]]:
  """The operations of the first device in the newest trace, by line.

  Raises:
    SatjaxError: there is no trace, or no operation in it.
  """
  found = pathlib.Path(directory).rglob('*.xplane.pb')
  newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
  lines = []
  if newest:
    data = jax.profiler.ProfileData.from_file(str(newest))
    lines = _first_device({p.name: list(p.lines) for p in data.planes})
  if not lines:
    raise errors.SatjaxError(
      f'{newest or directory} has no operation of a device; is another profiler'
      ' attached?'
    )
  return lines


def _first_device(planes):
  """Operations by line, from the lines of all planes by name."""
  device = [n for n in planes if re.match(r'/device:(GPU|TPU):0( |$)', n)]
  lines = planes.get(device[0] if device else '/host:CPU', [])
  if device:
    # A GPU has streams; lines such as 'XLA Ops' are made from them.
    streams = [line for line in lines if line.name.startswith('Stream')]
    lines = streams or [line for line in lines if line.name == 'XLA Ops']
  ops = ([_op(event, not device) for event in line.events] for line in lines)
  return [found for line in ops if (found := [op for op in line if op])]


def _op(event, is_host):
  """The operation of an event; None if it is none of the first device."""
  stats = dict(event.stats)
  name = str(stats.get('hlo_op') or '')
  if is_host and (not name or int(stats.get('device_ordinal', 0))):
    return None
  # Kernels of a command buffer know its name, but not their instructions'.
  if not name or name.startswith('command_buffer'):
    name = event.name
  if _CONTAINER.match(name) or event.duration_ns <= 0:
    return None
  module = str(stats.get('hlo_module', ''))
  start = event.start_ns
  return Op(name, module, start, start + event.duration_ns, event.name)


def shares(lines: Iterable[Iterable[Op]]) -> tuple[dict[Op, float], float]:
  """How much of the time is each operation's, and how much is nobody's.

  What runs at the same time shares it equally; on one line the innermost
  operation has it alone. So everything adds up to the time between the first
  start and the last stop.

  Args:
    lines: operations in one or several streams or threads.

  Returns:
    Nanoseconds of each operation, and of the gaps between them.
  """
  changes, stacks = [], {}
  for number, line in enumerate(lines):
    for op in line:
      # Stops before starts, and what is around others starts before them.
      changes.append((op.start, True, -op.stop, number, op))
      changes.append((op.stop, False, 0, number, op))
  changes.sort(key=lambda change: change[:3])
  spent, gaps = collections.Counter(), 0.0
  before = changes[0][0] if changes else 0.0
  for now, starts, _, number, op in changes:
    innermost = [stack[-1] for stack in stacks.values() if stack]
    for other in innermost:
      spent[other] += (now - before) / len(innermost)
    if not innermost:
      gaps += now - before
    before = now
    stack = stacks.setdefault(number, [])
    if starts:
      stack.append(op)
    else:
      stack.remove(op)
  return spent, gaps
