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
import importlib.util
import json
import os
import pathlib
import re
import sysconfig
from typing import NamedTuple
import warnings

from satjax import errors
from satjax.data import docstrings

FORMS = (
  'stdlib:docs (docstrings and language reference of Python)',
  'stdlib:code (the standard library of Python)',
  'stdlib:docstrings (pairs: a signature of Python, answered by its docstring)',
  'text:GLOB (text files, such as text:books/**/*.txt)',
  'jsonl:GLOB (one JSON object a line: a text in the field "text", or a pair'
  ' in the fields "prompt" and "answer")',
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
_TOPICS = 'pydoc_data/topics.py'
_UNCUT_CHARS = 65536  # a longer file becomes several documents, so that a
_PIECE_CHARS = 8192  # share of a single book can be held out


class Document(NamedTuple):
  """One text, or a pair: a prompt, and the text that answers it.

  Attributes:
    id: path inside the source.
    text: what is learned; never empty.
    prompt: what stands before the text and is read only; empty: no pair.
    group: documents of one group fall into the same split; empty: `id`
      decides alone.
  """

  id: str
  text: str
  prompt: str = ''
  group: str = ''


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
  if source == 'stdlib:docstrings':
    return iter(_stdlib_docstrings(tuple(_stdlib_files(source))))
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
  for file, _, module in _parsed(files):
    sections = docstrings.sections(module, _dotted(file))
    text = '\n\n'.join(f'# {title}\n\n{doc}' for title, doc in sections)
    if text:
      found.append(Document(file.name, text + '\n'))
    if file.name == _TOPICS:
      topics = sorted(_topics(module).items())
      found += [Document(f'{_TOPICS}#{topic}', text) for topic, text in topics]
  return tuple(found)


@functools.cache
def _stdlib_docstrings(files: tuple[_File, ...]) -> tuple[Document, ...]:
  """One pair per function and class that has a docstring.

  The methods of a module resemble each other, so that it is held out whole:
  the same modules as in stdlib:docs and stdlib:code.
  """
  found = []
  for file, source, module in _parsed(files):
    pairs = docstrings.pairs(source, module, _dotted(file))
    for name, (prompt, answer) in sorted(pairs.items()):
      found.append(Document(f'{file.name}#{name}', answer, prompt, file.name))
  return tuple(found)


def _dotted(file: _File) -> str:
  name = file.name.removesuffix('.py').removesuffix('/__init__')
  return name.replace('/', '.')


def _parsed(
  files: tuple[_File, ...],
) -> Iterator[tuple[_File, str, ast.Module]]:
  """Yields files with source and syntax tree, one tree in memory at a time."""
  with warnings.catch_warnings(), _without_garbage_collection():
    warnings.simplefilter('ignore')  # about invalid escapes in the sources
    for file in files:
      try:
        source = importlib.util.decode_source(_read(file.path))
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
        *prompt, value = _fields(text, f'{file.path}, line {number}')
        if value:
          yield Document(f'{file.name}#{number}', value, *prompt)


def _fields(line: str, place: str) -> list[str]:
  """The text of a line, or its prompt and its answer."""
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise errors.DataError(
      f'{place}: not JSON ({error}); write one object a line, or use text:GLOB'
    ) from error
  found = f'it is a {type(record).__name__}'
  if isinstance(record, dict):
    # A text is a text, whatever other fields say about it.
    names = ('text',) if 'text' in record else ('prompt', 'answer')
    wrong = [n for n in names if not isinstance(record.get(n), str)]
    if not wrong:
      return [record[name] for name in names]
    found = f'its keys are {sorted(record)}'
    if record.keys() >= set(names):
      kind = type(record[wrong[0]]).__name__
      found = f'its "{wrong[0]}" is a {kind}, not a string'
  raise errors.DataError(
    f'{place}: an object with a string field "text", or with string fields'
    f' "prompt" and "answer", is needed; {found}'
  )


def _read(path: str) -> bytes:
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise errors.DataError(
      f'{path} can not be read ({error.strerror}); fix its permissions, or'
      ' leave it out of the glob'
    ) from error
