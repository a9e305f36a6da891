"""Sources: a name such as 'stdlib:docs' or 'text:books/*.txt' to documents.

The order of the documents depends on their paths alone, never on the file
system. Standard library modules are read and parsed, never imported.
"""

import ast
from collections.abc import Iterator
import contextlib
import functools
import gc
import glob
import json
import os
import pathlib
import re
import sysconfig
from typing import NamedTuple
import warnings

from satjax import errors

FORMS = (
  'stdlib:docs (docstrings and language reference of Python)',
  'stdlib:code (the standard library of Python)',
  'text:GLOB (text files, such as text:books/**/*.txt)',
  'jsonl:GLOB (one JSON object a line, its text in the field "text")',
)

# Tests differ between distributions; the rest is not the standard library.
_NOT_LIBRARY = {
  'site-packages',
  'dist-packages',
  '__pycache__',
  'test',
  'tests',
  'idle_test',
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_TOPICS = 'pydoc_data/topics.py'
_UNCUT_CHARS = 65536  # a longer file becomes several documents, so that a
_PIECE_CHARS = 8192  # share of a single book can be held out


class Document(NamedTuple):
  """One text; `id` is its path inside the source, and decides its split."""

  id: str
  text: str


def documents(source: str) -> Iterator[Document]:
  """Yields the documents of a source, in the order of their paths.

  Args:
    source: one of `FORMS`. Globs understand `**` and `~`.

  Raises:
    ConfigError: `source` has none of the known forms.
    DataError: nothing matches, or, while iterating, a file can not be used.
  """
  if source == 'stdlib:code':
    return _stdlib_code(_stdlib_files(source))
  if source == 'stdlib:docs':
    return iter(_stdlib_docs(tuple(_stdlib_files(source))))
  kind, _, pattern = source.partition(':')
  if kind in ('text', 'jsonl') and pattern:
    read = {'text': _text, 'jsonl': _jsonl}[kind]
    return read(_matching_files(source, pattern))
  allowed = '\n  '.join(FORMS)
  raise errors.ConfigError(
    f'{source!r} is not a known source; allowed:\n  {allowed}'
  )


class _File(NamedTuple):
  name: str  # relative to the source, with forward slashes
  path: str


def _stdlib_files(source: str) -> list[_File]:
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  files = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
    paths = [pathlib.Path(folder, name) for name in names if name[-3:] == '.py']
    files += [_File(p.relative_to(root).as_posix(), str(p)) for p in paths]
  if not files:
    raise errors.DataError(
      f'{source!r}: this Python has no library sources in {root}; use a Python'
      ' that is not zipped, or text:GLOB'
    )
  return sorted(files)


def _stdlib_code(files: list[_File]) -> Iterator[Document]:
  for file in files:
    if text := _read(file.path).decode('utf-8', errors='replace'):
      yield Document(file.name, text)


@functools.cache  # training and evaluation both read it, and parsing takes 1 s
def _stdlib_docs(files: tuple[_File, ...]) -> tuple[Document, ...]:
  """One document per module, named as in stdlib:code, and one per topic."""
  found = []
  with warnings.catch_warnings(), _without_garbage_collection():
    warnings.simplefilter('ignore')  # about invalid escapes in the sources
    for file in files:
      try:
        module = ast.parse(_read(file.path))
      except (SyntaxError, ValueError):
        continue  # Python itself could not import that file either
      name = file.name.removesuffix('.py').removesuffix('/__init__')
      sections = _docstrings(module, name.replace('/', '.'))
      text = '\n\n'.join(f'# {title}\n\n{doc}' for title, doc in sections)
      if text:
        found.append(Document(file.name, text + '\n'))
      if file.name == _TOPICS:
        topics = sorted(_topics(module).items())
        found += [
          Document(f'{_TOPICS}#{topic}', text) for topic, text in topics
        ]
  return tuple(found)


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


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
  """Yields the name and docstring of a module or class and of its members."""
  doc = ast.get_docstring(node)
  if doc:
    yield name, doc
  if not isinstance(node, _FUNCTIONS):
    for member in _members(node):
      yield from _docstrings(member, f'{name}.{member.name}')


def _members(node: ast.AST) -> Iterator[ast.AST]:
  """Yields classes and functions, also those inside `if` and `try`."""
  for block in ('body', 'handlers', 'orelse', 'finalbody'):
    for child in getattr(node, block, ()):
      if isinstance(
        child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
      ):
        yield child
      elif isinstance(child, (ast.If, ast.Try, ast.ExceptHandler)):
        yield from _members(child)


def _topics(module: ast.Module) -> dict[str, str]:
  for node in module.body:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
      return ast.literal_eval(node.value)
  return {}


def _matching_files(source: str, pattern: str) -> list[_File]:
  pattern = os.path.expanduser(pattern)
  paths = [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
  if not paths:
    hint = 'check the path; ** stands for any folders'
    if os.path.isdir(pattern):
      hint = f'it is a folder; name its files: {source.rstrip("/")}/**/*'
    raise errors.DataError(
      f'{source!r} matches no file, seen from {os.getcwd()}; {hint}'
    )
  # Names, which decide the split, must not depend on where the data lies.
  root = os.path.dirname(re.split(r'[*?[]', pattern, maxsplit=1)[0]) or '.'
  files = []
  for path in paths:
    name = pathlib.Path(os.path.relpath(path, root)).as_posix()
    files.append(_File(name, path))
  return sorted(files)


def _text(files: list[_File]) -> Iterator[Document]:
  for file in files:
    text = _read(file.path).decode('utf-8-sig', errors='replace')
    for number, piece in enumerate(_pieces(text.replace('\r\n', '\n'))):
      yield Document(f'{file.name}#{number}', piece)


def _pieces(text: str) -> Iterator[str]:
  """Cuts a long text where it hurts least; nothing is lost or added."""
  start = 0
  while len(text) > _UNCUT_CHARS and len(text) - start > _PIECE_CHARS:
    window = text[start : start + _PIECE_CHARS]
    marks = ('\n\n', '\n \n', '\n', ' ', '')  # '' is found at the end
    mark = next(mark for mark in marks if mark in window)
    piece = window[: window.rfind(mark) + len(mark)]
    yield piece
    start += len(piece)
  if start < len(text):
    yield text[start:]


def _jsonl(files: list[_File]) -> Iterator[Document]:
  for file in files:
    # Not splitlines: JSON strings may hold U+2028 and its like.
    for number, line in enumerate(_read(file.path).split(b'\n'), 1):
      text = line.decode('utf-8-sig', errors='replace')
      if text.strip():
        value = _text_field(text, f'{file.path}, line {number}')
        if value:
          yield Document(f'{file.name}#{number}', value)


def _text_field(line: str, place: str) -> str:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise errors.DataError(
      f'{place}: not JSON ({error}); write one object a line, or use text:GLOB'
    ) from error
  is_object = isinstance(record, dict)
  if is_object and isinstance(record.get('text'), str):
    return record['text']
  if is_object and 'text' in record:
    found = f'its "text" is a {type(record["text"]).__name__}, not a string'
  elif is_object:
    found = f'its keys are {sorted(record)}'
  else:
    found = f'it is a {type(record).__name__}'
  raise errors.DataError(
    f'{place}: an object with a string field "text" is needed; {found}'
  )


def _read(path: str) -> bytes:
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise errors.DataError(
      f'{path} can not be read ({error.strerror}); fix its permissions, or'
      ' leave it out of the glob'
    ) from error
