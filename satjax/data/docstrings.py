"""Docstrings of a module, from its syntax tree: as one text, or as pairs."""

import ast
from collections.abc import Iterator
import textwrap

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sections(module: ast.Module, name: str) -> Iterator[tuple[str, str]]:
  """Yields qualified name and docstring of the module and what it defines."""
  for qualified, node in [(name, module), *_definitions(module, name)]:
    if doc := ast.get_docstring(node):
      yield qualified, doc


def pairs(
  source: str, module: ast.Module, name: str
) -> dict[str, tuple[str, str]]:
  """Returns (prompt, answer) by the qualified name of a function or class.

  The prompt asks for the docstring and shows the source from `def` or `class`
  up to it; the answer is the docstring without its indentation. A name that is
  defined several times counts once, as at first.

  Args:
    source: what `module` was parsed from, its lines ended by newlines alone.
    module: syntax tree of `source`.
    name: dotted name of the module.
  """
  lines = source.split('\n')  # not splitlines, which knows more line ends
  found = {}
  for qualified, node in _definitions(module, name):
    if doc := ast.get_docstring(node):
      prompt = f'Write the docstring of {qualified}.\n\n'
      prompt += _signature(lines, node) + '\n'
      found.setdefault(qualified, (prompt, doc))
  return found


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
  """Yields what a module or class defines, but nothing inside of functions."""
  for member in _members(node):
    qualified = f'{name}.{member.name}'
    yield qualified, member
    if not isinstance(member, _FUNCTIONS):
      yield from _definitions(member, qualified)


def _members(node: ast.AST) -> Iterator[ast.AST]:
  """Yields classes and functions, also those inside `if` and `try`."""
  for block in ('body', 'handlers', 'orelse', 'finalbody'):
    for child in getattr(node, block, ()):
      if isinstance(child, (ast.ClassDef, *_FUNCTIONS)):
        yield child
      elif isinstance(child, (ast.If, ast.Try, ast.ExceptHandler)):
        yield from _members(child)


def _signature(lines: list[str], node: ast.AST) -> str:
  """The source of a definition before its docstring, to the left margin."""
  doc = node.body[0]
  # Syntax trees count columns in bytes of UTF-8.
  before = lines[doc.lineno - 1].encode()[: doc.col_offset].decode()
  header = [*lines[node.lineno - 1 : doc.lineno - 1], before]
  return textwrap.dedent('\n'.join(header)).rstrip()
