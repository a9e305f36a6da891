"""Sources that are text, JSONL or Parquet files, named with a glob."""

import codecs
from collections import Counter
from collections.abc import Iterator, Sequence
import contextlib
import functools
import glob
import hashlib
import json
import os
import pathlib
import re
from typing import Any, BinaryIO, NamedTuple

from satjax import errors
from satjax.data import chunks
from satjax.data.chunks import Chunk, Source
from satjax.data.documents import Document

# A longer text becomes several documents, so that a share of a single book can
# be held out.
_UNCUT_CHARS = 65536
_PIECE_CHARS = 8192
_BLOCK_BYTES = 2**16  # of text that are decoded at a time
_MAX_LINE_BYTES = 2**25
_MAX_ROWS = 1024  # in memory; what a row holds is not known before


class SourceFile(NamedTuple):
  """A file of a source."""

  name: str  # relative to the source, with forward slashes
  path: str
  size: int  # bytes


def source(name: str, columns: Sequence[str]) -> Source:
  """The source that a kind of `READERS` and a glob name.

  Raises:
    DataError: there is no such file.
  """
  kind = name.partition(':')[0]
  files = matching(name)

  def read(size: int) -> Iterator[Chunk]:
    before = 0
    for file in files:
      for chunk in READERS[kind](tuple(columns), file, size):
        yield chunk._replace(done=before + chunk.done)
      before += file.size

  return Source(identity(files), sum(file.size for file in files), read)


def matching(source: str) -> list[SourceFile]:
  """The files of a source, in order.

  Raises:
    DataError: there is none.
  """
  pattern = os.path.expanduser(source.partition(':')[2])
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
  return sorted(map(functools.partial(below, root), paths))


def below(root: str, path: str) -> SourceFile:
  """A file, named as seen from a folder above it."""
  name = pathlib.Path(os.path.relpath(path, root)).as_posix()
  with opened(path) as file:
    return SourceFile(name, path, os.fstat(file.fileno()).st_size)


def identity(files: Sequence[SourceFile]) -> str:
  """Changes with the names and sizes of files."""
  digest = hashlib.blake2b(digest_size=16)
  for name, _, size in files:
    digest.update(f'{name}\0{size}\n'.encode('utf-8', 'surrogateescape'))
  return digest.hexdigest()


def fingerprint(files: Sequence[SourceFile]) -> str:
  """Changes with names, sizes and beginnings of files, wherever they lie."""
  digest = hashlib.blake2b(identity(files).encode(), digest_size=16)
  for file in files:
    with opened(file.path) as handle:
      digest.update(handle.read(4096))
  return digest.hexdigest()


def read(path: str) -> bytes:
  with opened(path) as file:
    return file.read()


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
  """A file to read; explains why it cannot be."""
  try:
    with open(path, 'rb') as file:
      yield file
  except OSError as error:
    raise errors.DataError(
      f'{path} cannot be read ({error.strerror}); fix its permissions, or'
      ' leave it out of the glob'
    ) from error


def texts(
  columns: Sequence[str], file: SourceFile, size: int
) -> Iterator[Chunk]:
  """One document a file, or several."""
  del columns
  first = 0
  with opened(file.path) as handle:
    pieces = chunks.cut(_decoded(handle), _UNCUT_CHARS, _PIECE_CHARS)
    for some in chunks.grouped(pieces, len, size):
      numbered = enumerate(some, first)
      found = [Document(f'{file.name}#{n}', text) for n, text in numbered]
      first += len(some)
      yield chunks.of_documents(found, handle.tell())
  if not first:
    yield chunks.of_documents([], file.size)


def _decoded(data: BinaryIO) -> Iterator[str]:
  """UTF-8, its lines ended by newlines alone; other bytes become U+FFFD."""
  decoder = codecs.getincrementaldecoder('utf-8-sig')('replace')
  held = ''  # may be the first half of a line end
  while block := data.read(_BLOCK_BYTES):
    text = held + decoder.decode(block)
    held = '\r' if text.endswith('\r') else ''
    yield text[: len(text) - len(held)].replace('\r\n', '\n')
  yield held + decoder.decode(b'', final=True)


def jsonl(
  columns: Sequence[str], file: SourceFile, size: int
) -> Iterator[Chunk]:
  """One document a line that is not empty."""
  first = 1
  with opened(file.path) as handle:
    for lines in chunks.grouped(_lines(handle, file), len, size):
      made = functools.partial(_of_lines, file, first, lines, columns)
      first += len(lines)
      yield Chunk(made, sum(map(len, lines)), handle.tell())


def _of_lines(
  file: SourceFile,
  first: int,
  lines: list[bytes],
  columns: Sequence[str],
  counts: Counter[str],
) -> Iterator[Document]:
  for number, line in enumerate(lines, first):
    text = line.decode('utf-8-sig', errors='replace')
    if not text.strip():
      continue
    place = f'{file.path}, line {number}'
    try:
      record = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise errors.DataError(
        f'{place}: not JSON ({error}); write one object a line, or use'
        ' text:GLOB'
      ) from error
    id = f'{file.name}#{number}'
    yield from chunks.of_record(record, columns, id, place, counts)


def _lines(handle: BinaryIO, file: SourceFile) -> Iterator[bytes]:
  """Lines as bytes have them: JSON strings may hold U+2028 and its like."""
  number = 1
  while line := handle.readline(_MAX_LINE_BYTES + 1):
    if len(line) > _MAX_LINE_BYTES:
      raise errors.DataError(
        f'{file.path}, line {number}: longer than {_MAX_LINE_BYTES:,} bytes;'
        ' write one object a line, or use text:GLOB'
      )
    yield line
    number += 1


def parquet(
  columns: Sequence[str], file: SourceFile, size: int
) -> Iterator[Chunk]:
  """One document a row."""
  import pyarrow
  from pyarrow.parquet import ParquetFile

  try:
    # A buffer of its own keeps it from reading whole groups of rows.
    with (
      opened(file.path) as handle,
      ParquetFile(handle, buffer_size=2**20) as found,
    ):
      first = 0
      for rows in _batches(found, _names(found, columns, file), size):
        made = functools.partial(_of_rows, file, first, rows, columns)
        first += rows.num_rows
        done = file.size * first // found.metadata.num_rows
        yield Chunk(made, rows.nbytes, done)
  except pyarrow.ArrowException as error:
    raise errors.DataError(
      f'{file.path} is no Parquet file that can be read ({error}); write it'
      ' again, or leave it out of the glob'
    ) from error


def _of_rows(
  file: SourceFile,
  first: int,
  rows: Any,
  columns: Sequence[str],
  counts: Counter[str],
) -> Iterator[Document]:
  """Documents of a pyarrow.RecordBatch."""
  import pyarrow

  # A string that is not UTF-8 stops pyarrow; as bytes it becomes U+FFFD.
  values = [
    column.cast(pyarrow.large_binary()) if _is_string(column.type) else column
    for column in rows.columns
  ]
  values = [chunks.text_of(column.to_pylist()) for column in values]
  for number, row in enumerate(zip(*values), first):
    record = dict(zip(rows.schema.names, row))
    place, id = f'{file.path}, row {number}', f'{file.name}#{number}'
    yield from chunks.of_record(record, columns, id, place, counts)


def _batches(found: Any, names: list[str], size: int) -> Iterator[Any]:
  """The rows of a file, about so many bytes at a time."""
  for group in range(found.num_row_groups):
    described = found.metadata.row_group(group)
    in_columns = (described.column(i) for i in range(described.num_columns))
    volume = sum(
      column.total_uncompressed_size
      for column in in_columns
      if column.path_in_schema.split('.')[0] in names
    )
    count = size * described.num_rows // max(1, volume)
    yield from found.iter_batches(
      max(1, min(_MAX_ROWS, count)), row_groups=[group], columns=names
    )


def _names(found: Any, columns: Sequence[str], file: SourceFile) -> list[str]:
  """The columns to read: those asked for, or all that may hold text."""
  from pyarrow import types

  schema = found.schema_arrow
  names = columns or [
    field.name
    for field in schema
    if types.is_nested(field.type)
    or types.is_dictionary(field.type)
    or _is_string(field.type)
  ]
  missing = set(names) - set(schema.names)
  if missing or not names:
    raise errors.DataError(
      f'{file.path} has no column {" and ".join(sorted(missing)) or "of text"};'
      f' data.columns may name {", ".join(schema.names)}'
    )
  return list(names)


def _is_string(kind: Any) -> bool:
  from pyarrow import types

  checks = (types.is_string, types.is_large_string, types.is_string_view)
  return any(check(kind) for check in checks)


# By the form of a source.
READERS = {'text': texts, 'jsonl': jsonl, 'parquet': parquet}
