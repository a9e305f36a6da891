"""The standard library of Python as documents: real text on every disk.

Modules are read and parsed, never imported.
"""

import ast
from collections.abc import Iterator
import functools
import importlib.util
import os
import pathlib
import sysconfig
import textwrap
import warnings

from satjax import errors
from satjax.data import chunks, readers
from satjax.data.chunks import Chunk, Source
from satjax.data.documents import Document, Message
from satjax.data.readers import SourceFile

# Tests differ between distributions; the rest is not the standard library.
_NOT_LIBRARY = {'site-packages', 'dist-packages', '__pycache__'}
_NOT_LIBRARY |= {'test', 'tests', 'idle_test'}
_TOPICS = 'pydoc_data/topics.py'
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def source(name: str) -> Source | None:
  """The source 'stdlib:...' of that name; None: there is none."""
  reads = {
    'stdlib:code': _code,
    'stdlib:docs': _docs,
    'stdlib:docstrings': _pairs,
  }
  if name not in reads:
    return None
  modules = tuple(_files(name))
  found = reads[name](modules)

  def read(size: int) -> Iterator[Chunk]:
    done = 0
    for some in chunks.grouped(found, chunks.num_chars, size):
      chunk = chunks.of_documents(some, done)
      done += chunk.volume
      yield chunk._replace(done=done)

  size = sum(map(chunks.num_chars, found))
  return Source(readers.identity(modules), size, read)


def _files(source: str) -> list[SourceFile]:
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  found = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
    paths = [pathlib.Path(folder, name) for name in names if name[-3:] == '.py']
    found += [readers.below(str(root), str(path)) for path in paths]
  if not found:
    raise errors.DataError(
      f'{source!r}: this Python has no library sources in {root}; use a Python'
      ' that is not zipped, or text:GLOB'
    )
  return sorted(found)


def _code(modules: tuple[SourceFile, ...]) -> tuple[Document, ...]:
  """One document per module."""
  texts = (readers.read(m.path).decode('utf-8', 'replace') for m in modules)
  return tuple(
    Document(m.name, text) for m, text in zip(modules, texts) if text
  )


@functools.cache  # training and evaluation both read it, and parsing takes 1 s
def _docs(modules: tuple[SourceFile, ...]) -> tuple[Document, ...]:
  """One document per module, named as in `_code`, and one per topic of help."""
  found = []
  for file, _, module in _parsed(modules):
    text = '\n\n'.join(
      f'# {title}\n\n{doc}' for title, doc in sections(module, _dotted(file))
    )
    if text:
      found.append(Document(file.name, text + '\n'))
    if file.name == _TOPICS:
      topics = sorted(_topics(module).items())
      found += [Document(f'{_TOPICS}#{topic}', text) for topic, text in topics]
  return tuple(found)


@functools.cache
def _pairs(modules: tuple[SourceFile, ...]) -> tuple[Document, ...]:
  """One pair per function and class that has a docstring.

  The methods of a module resemble each other, so that it is held out whole:
  the same modules as in `_docs` and `_code`.
  """
  return tuple(
    Document(
      f'{file.name}#{name}',
      messages=(Message('user', prompt), Message('assistant', answer)),
      group=file.name,
    )
    for file, source, module in _parsed(modules)
    for name, (prompt, answer) in sorted(
      pairs(source, module, _dotted(file)).items()
    )
  )


def _dotted(file: SourceFile) -> str:
  name = file.name.removesuffix('.py').removesuffix('/__init__')
  return name.replace('/', '.')


def _parsed(
  modules: tuple[SourceFile, ...],
) -> Iterator[tuple[SourceFile, str, ast.Module]]:
  """Yields files with source and syntax tree, one tree in memory at a time."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # about invalid escapes in the sources
    for file in modules:
      try:
        source = importlib.util.decode_source(readers.read(file.path))
        module = ast.parse(source)
      except (SyntaxError, ValueError):
        continue  # Python itself could not import that file either
      yield file, source, module


def _topics(module: ast.Module) -> dict[str, str]:
  """The texts of `help`, in the one dict of a module."""
  for node in module.body:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
      return ast.literal_eval(node.value)
  return {}


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
  defined several times counts once, as at first. The lines of the source, which
  the module was parsed from, are ended by newlines alone.
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
  """Yields what a module or class defines, also inside of `if` and `try`.

  But nothing inside of functions.
  """
  for block in ('body', 'handlers', 'orelse', 'finalbody'):
    for child in getattr(node, block, ()):
      if isinstance(child, (ast.ClassDef, *_FUNCTIONS)):
        yield f'{name}.{child.name}', child
      if isinstance(child, ast.ClassDef):
        yield from _definitions(child, f'{name}.{child.name}')
      elif isinstance(child, (ast.If, ast.Try, ast.ExceptHandler)):
        yield from _definitions(child, name)


def _signature(lines: list[str], node: ast.AST) -> str:
  """The source of a definition before its docstring, to the left margin."""
  doc = node.body[0]
  # Syntax trees count columns in bytes of UTF-8.
  before = lines[doc.lineno - 1].encode()[: doc.col_offset].decode()
  header = [*lines[node.lineno - 1 : doc.lineno - 1], before]
  return textwrap.dedent('\n'.join(header)).rstrip()
