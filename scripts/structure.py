"""How large the source is and how deep: `python scripts/structure.py [ROOT]`.

Prints folders with their files and lines, the longest chain of imports between
files and between rooms (folders, and files beside them), and how long functions
are. Nothing of the package is imported; imports inside of functions count.
"""

import ast
import functools
import pathlib
import statistics
import sys

PACKAGE = 'satjax'


def read(root: pathlib.Path) -> dict[str, ast.Module]:
  """The syntax tree of every module, by dotted name."""
  found = {}
  for path in sorted((root / PACKAGE).rglob('*.py')):
    parts = path.relative_to(root).with_suffix('').parts
    name = '.'.join(parts).removesuffix('.__init__')
    found[name] = ast.parse(path.read_text(), str(path))
  return found


def imports(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
  """Modules of the package that each module imports."""
  graph = {}
  for name, tree in modules.items():
    named = set()
    for node in ast.walk(tree):
      if isinstance(node, ast.Import):
        named |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
          full = f'{node.module}.{alias.name}'
          named.add(full if full in modules else str(node.module))
    graph[name] = (named & modules.keys()) - {name, PACKAGE}
  return graph


def room_of(name: str) -> str:
  """The folder that a module is in, or itself beside the folders."""
  parts = name.split('.')
  deep = 3 if parts[1:2] == ['lab'] else 2
  return '.'.join(parts[:deep])


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
  """The same graph between rooms."""
  found = {}
  for name, others in graph.items():
    own = room_of(name)
    found.setdefault(own, set()).update(map(room_of, others))
  return {own: others - {own, PACKAGE} for own, others in found.items()}


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
  """The longest way down the imports; raises RecursionError on a circle."""

  @functools.cache
  def below(name):
    ways = [below(other) for other in graph.get(name, ())]
    return [name, *max(ways, key=len, default=[])]

  return max(map(below, graph), key=len)


def function_lengths(modules: dict[str, ast.Module]) -> list[int]:
  """Lines of every function, docstrings not counted."""
  lengths = []
  for tree in modules.values():
    for node in ast.walk(tree):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        first = node.body[0]
        docs = 0
        if ast.get_docstring(node):
          docs = first.end_lineno - first.lineno + 1
        lengths.append(node.end_lineno - node.lineno + 1 - docs)
  return lengths


def main() -> None:
  root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else '.')
  modules = read(root)
  counts = {}
  for path in sorted((root / PACKAGE).rglob('*.py')):
    folder = str(path.parent.relative_to(root))
    lines = len(path.read_text().splitlines())
    files, total = counts.get(folder, (0, 0))
    counts[folder] = files + 1, total + lines
  for folder, (files, total) in counts.items():
    print(f'{folder:28} {files:4} files {total:7,} lines')
  files, total = map(sum, zip(*counts.values()))
  print(f'{"in all":28} {files:4} files {total:7,} lines')
  graph = imports(modules)
  for what, chain in (
    ('files', longest_chain(graph)),
    ('rooms', longest_chain(rooms(graph))),
  ):
    print(f'longest chain of {what}: {len(chain)}: {" > ".join(chain)}')
  lengths = sorted(function_lengths(modules))
  print(
    f'{len(lengths):,} functions: median {statistics.median(lengths):g} lines,'
    f' 90 % at most {lengths[len(lengths) * 9 // 10]}, longest {lengths[-1]}'
  )


if __name__ == '__main__':
  main()
