"""What a profiler trace says: which operation ran when, and of what kind.

A trace has a plane for each device, with a line for each stream of a GPU, and
one plane for a CPU, with a line for each thread. Both become the same list of
operations, whose names the text of the compiled program explains.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import pathlib
import re

from satjax import errors

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
  'copy',
  'copy-start',
  'copy-done',
  'transpose',
  'reshape',
  'bitcast',
  'slice',
  'dynamic-slice',
  'dynamic-update-slice',
  'concatenate',
  'pad',
  'reverse',
  'broadcast',
  'iota',
  'select',  # of the bounds of a slice
  'compare',
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
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\(')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')
_CALLS = re.compile(r'\bcalls=%?([\w.\-]+)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_BATCHED = re.compile(r'lhs_batch_dim(s=\{\d|ensions":\["\d)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
  """One operation of one line of a trace.

  Attributes:
    name: of the instruction, or of the kernel where that is not known.
    module: program that it belongs to; '' where that is not known.
    start: nanoseconds.
    stop: nanoseconds.
    kernel: of a GPU, that ran for the instruction.
  """

  name: str
  module: str
  start: float
  stop: float
  kernel: str = ''


def kinds(hlo: str) -> dict[str, str]:
  """The group of every instruction of a compiled program, from its text."""
  computations, own = {}, []
  for line in hlo.splitlines():
    if line.endswith('{') and (found := _COMPUTATION.match(line)):
      own = computations[found[1]] = []
    elif found := _INSTRUCTION.match(line):
      own.append((found[1], found[2], line))
  return {
    name: _kind(opcode, line, computations)
    for instructions in computations.values()
    for name, opcode, line in instructions
  }


def _kind(opcode, line, computations):
  calls = _CALLS.search(line)
  inner = computations.get(calls[1], []) if calls else []
  parts = [(o, text) for _, o, text in inner if o not in _SILENT]
  parts = parts or [(opcode, line)]
  if _COLLECTIVE.match(opcode):
    return 'collective'
  for part, text in parts:
    target = _TARGET.search(text)
    known = _by_name(target[1]) if target else None
    if known == 'attention':
      return known
    if part in ('dot', 'convolution') or known == 'matmul':
      within = 'attention' in ''.join(_OP_NAME.findall(text))
      return 'attention' if within and _BATCHED.search(text) else 'matmul'
  scoped = [SCOPE in _scopes(text) for _, text in parts]
  if 2 * sum(scoped) > len(scoped):
    return 'optimizer'
  opcodes = {part for part, _ in parts}
  if opcodes & {'gather', 'scatter', 'sort'}:
    return 'gather/scatter'
  return 'copy/transpose' if opcodes <= _MOVES else 'elementwise'


def _scopes(text):
  names = _OP_NAME.findall(text)
  return names[0].split('/') if names else []


def _by_name(name):
  for group, pattern in _KERNELS:
    if pattern.search(name):
      return group
  return None


def group_of(op: Op, module: str, known: Mapping[str, str]) -> str:
  """The group of an operation.

  Args:
    op: of a trace.
    module: that `known` is of.
    known: groups of its instructions (`kinds`); others go by their names.
  """
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
  from jax import profiler

  found = pathlib.Path(directory).rglob('*.xplane.pb')
  newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
  lines = []
  if newest:
    data = profiler.ProfileData.from_file(str(newest))
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
  if device:
    lines = planes[device[0]]
    # A GPU has streams; lines such as 'XLA Ops' are made from them.
    streams = [line for line in lines if line.name.startswith('Stream')]
    chosen = streams or [line for line in lines if line.name == 'XLA Ops']
    ops = ([_device_op(e) for e in line.events] for line in chosen)
  else:
    chosen = planes.get('/host:CPU', [])
    ops = ([_host_op(e) for e in line.events] for line in chosen)
  ops = ([op for op in line if op] for line in ops)
  return [line for line in ops if line]


def _device_op(event):
  stats = dict(event.stats)
  # Kernels of a command buffer know its name, but not their instructions'.
  name = str(stats.get('hlo_op') or '')
  if not name or name.startswith('command_buffer'):
    name = event.name
  return _op(name, stats, event)


def _host_op(event):
  stats = dict(event.stats)
  if 'hlo_op' not in stats or int(stats.get('device_ordinal', 0)):
    return None
  return _op(str(stats['hlo_op']), stats, event)


def _op(name, stats, event):
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
  changes = []
  for line in lines:
    for start, stop, op in _innermost(sorted(line, key=_outer_first)):
      changes += [(start, True, op), (stop, False, op)]
  changes.sort(key=lambda change: change[:2])  # stops before starts
  spent, running, gaps = {}, {}, 0.0
  before = changes[0][0] if changes else 0.0
  for now, starts, op in changes:
    if running:
      for other in running:
        part = (now - before) / len(running)
        spent[other] = spent.get(other, 0.0) + part
    else:
      gaps += now - before
    before = now
    if starts:
      running[op] = None
    else:
      running.pop(op, None)
  return spent, gaps


def _outer_first(op):
  return op.start, -op.stop


def _innermost(ops):
  """(start, stop, op) of when each is the innermost of its line."""
  stack, now = [], 0.0

  def until(time):
    nonlocal now
    while stack and stack[-1].stop <= time:
      op = stack.pop()
      if op.stop > now:
        yield now, op.stop, op
        now = op.stop
    if stack and time > now:
      yield now, time, stack[-1]
    now = max(now, time)

  for op in ops:
    yield from until(op.start)
    stack.append(op)
  yield from until(float('inf'))
