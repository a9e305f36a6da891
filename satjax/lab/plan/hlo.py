"""The text of a compiled program, `jax.stages.Compiled.as_text()`, in parts."""

import dataclasses
import re

_HEADER = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(
  r'^\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$'
)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str  # which others refer to it by
  types: str  # arrays that it gives, as XLA writes them
  opcode: str  # what it does, such as 'dot'
  rest: str  # of the line: operands and attributes
  is_root: bool  # whether the computation gives what it gives

  @property
  def operands(self) -> list[str]:
    """Names of the instructions that it reads."""
    return re.findall(r'%([\w.-]+)', self.rest.partition(')')[0])


Computation = dict[str, Instruction]


def computations(text: str) -> tuple[dict[str, Computation], str]:
  """Instructions by name by computation, and the name of the outermost one."""
  found, entry, own = {}, '', {}
  for line in text.splitlines():
    if header := _HEADER.match(line):
      own = found[header[2]] = {}
      entry = header[2] if header[1] else entry
    elif match := _INSTRUCTION.match(line):
      root, name, types, opcode, rest = match.groups()
      own[name] = Instruction(name, types, opcode, rest, bool(root))
  return found, entry
