"""The standard library of Python as documents: real text on every disk.

Modules are read and parsed, never imported.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import gc
import importlib.util
import os
import pathlib
import sysconfig
import warnings

from satjax import errors
from satjax.data import chunks, docstrings, files
from satjax.data.chunks import Position, Source
from satjax.data.documents import Document
from satjax.data.files import File

# Tests differ between distributions; the rest is not the standard library.
_NOT_LIBRARY = {
  'site-packages',
  'dist-packages',
  '__pycache__',
  'test',
  'tests',
  'idle_test',
}
_TOPICS = 'pydoc_data/topics.py'


_Read = Callable[[tuple[File, ...]], tuple[Document, ...]]


@dataclasses.dataclass(frozen=True)
class _Some:
  """Some documents: all of them are in memory."""

  found: tuple[Document, ...]
  next: Position
  done: int

  @property
  def volume(self) -> int:
    return _size(self.found)

  def documents(self, counts: Counter[str]) -> Iterator[Document]:
    del counts
    return iter(self.found)


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
  return _listed(reads[name](modules), files.identity(modules))


def _listed(found: tuple[Document, ...], identity: str) -> Source:
  def read(start: Position, size: int) -> Iterator[_Some]:
    (first,) = start or (0,)
    done = _size(found[:first])
    while first < len(found):
      last, volume = first, 0
      while last < len(found) and volume < size:
        volume += _size(found[last : last + 1])
        last += 1
      done += volume
      yield _Some(found[first:last], (last,), done)
      first = last

  return Source(identity, _size(found), read)


def _size(found: tuple[Document, ...]) -> int:
  return sum(map(chunks.num_chars, found))


def _files(source: str) -> list[File]:
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  found = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
    paths = [pathlib.Path(folder, name) for name in names if name[-3:] == '.py']
    found += [files.below(str(root), str(path)) for path in paths]
  if not found:
    raise errors.DataError(
      f'{source!r}: this Python has no library sources in {root}; use a Python'
      ' that is not zipped, or text:GLOB'
    )
  return sorted(found)


def _code(modules: tuple[File, ...]) -> tuple[Document, ...]:
  """One document per module."""
  texts = (files.read(m.path).decode('utf-8', 'replace') for m in modules)
  return tuple(
    Document(m.name, text) for m, text in zip(modules, texts) if text
  )


@functools.cache  # training and evaluation both read it, and parsing takes 1 s
def _docs(modules: tuple[File, ...]) -> tuple[Document, ...]:
  """One document per module, named as in `_code`, and one per topic of help."""
  found = []
  for file, _, module in _parsed(modules):
    sections = docstrings.sections(module, _dotted(file))
    text = '\n\n'.join(f'# {title}\n\n{doc}' for title, doc in sections)
    if text:
      found.append(Document(file.name, text + '\n'))
    if file.name == _TOPICS:
      topics = sorted(_topics(module).items())
      found += [Document(f'{_TOPICS}#{topic}', text) for topic, text in topics]
  return tuple(found)


@functools.cache
def _pairs(modules: tuple[File, ...]) -> tuple[Document, ...]:
  """One pair per function and class that has a docstring.

  The methods of a module resemble each other, so that it is held out whole:
  the same modules as in `_docs` and `_code`.
  """
  found = []
  for file, source, module in _parsed(modules):
    pairs = docstrings.pairs(source, module, _dotted(file))
    for name, (prompt, answer) in sorted(pairs.items()):
      found.append(Document(f'{file.name}#{name}', answer, prompt, file.name))
  return tuple(found)


def _dotted(file: File) -> str:
  name = file.name.removesuffix('.py').removesuffix('/__init__')
  return name.replace('/', '.')


def _parsed(
  modules: tuple[File, ...],
) -> Iterator[tuple[File, str, ast.Module]]:
  """Yields files with source and syntax tree, one tree in memory at a time."""
  with warnings.catch_warnings(), _without_garbage_collection():
    warnings.simplefilter('ignore')  # about invalid escapes in the sources
    for file in modules:
      try:
        source = importlib.util.decode_source(files.read(file.path))
        module = ast.parse(source)
      except (SyntaxError, ValueError):
        continue  # Python itself could not import that file either
      yield file, source, module


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
  """Syntax trees have no cycles; looking for them doubles the time.

  JAX hooks into every collection, which makes it worse.
  """
  was_enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_enabled:
      gc.enable()


def _topics(module: ast.Module) -> dict[str, str]:
  for node in module.body:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
      return ast.literal_eval(node.value)
  return {}
