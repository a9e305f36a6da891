"""Parquet files: one document per row."""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

from satjax import errors
from satjax.data import chunks, files
from satjax.data.chunks import Position
from satjax.data.documents import Document
from satjax.data.files import File

_MAX_ROWS = 1024  # in memory; what a row holds is not known before


@dataclasses.dataclass(frozen=True)
class _Rows:
  """Some rows of a file."""

  file: File
  first: int  # number of the first of them, from 0
  rows: Any  # a pyarrow.RecordBatch
  columns: Sequence[str]
  next: Position
  done: int

  @property
  def volume(self) -> int:
    return self.rows.nbytes

  def documents(self, counts: Counter[str]) -> Iterator[Document]:
    for number, record in enumerate(_records(self.rows), self.first):
      place = f'{self.file.path}, row {number}'
      id = f'{self.file.name}#{number}'
      yield from chunks.of_record(record, self.columns, id, place, counts)


def reader(columns: Sequence[str]) -> files.Reader:
  """Reads these columns; positions are numbers of rows."""
  return functools.partial(_read, tuple(columns))


def _read(
  columns: Sequence[str], file: File, start: Position, size: int
) -> Iterator[_Rows]:
  import pyarrow
  from pyarrow import parquet

  (first,) = start or (0,)
  try:
    # A buffer of its own keeps it from reading whole groups of rows.
    with (
      files.opened(file.path) as opened,
      parquet.ParquetFile(opened, buffer_size=2**20) as found,
    ):
      names = _names(found, columns, file)
      for end, rows in _batches(found, names, first, size):
        done = file.size * end // found.metadata.num_rows
        begin = end - rows.num_rows
        yield _Rows(file, begin, rows, columns, (end,), done)
  except pyarrow.ArrowException as error:
    raise errors.DataError(
      f'{file.path} is no Parquet file that can be read ({error}); write it'
      ' again, or leave it out of the glob'
    ) from error


def _batches(found, names, first, size) -> Iterator[tuple[int, Any]]:
  """Rows from a number on, and the number after them."""
  end = 0
  for group in range(found.num_row_groups):
    described = found.metadata.row_group(group)
    if end + described.num_rows <= first:
      end += described.num_rows
      continue
    in_columns = (described.column(i) for i in range(described.num_columns))
    volume = sum(
      column.total_uncompressed_size
      for column in in_columns
      if column.path_in_schema.split('.')[0] in names
    )
    count = size * described.num_rows // max(1, volume)
    for rows in found.iter_batches(
      max(1, min(_MAX_ROWS, count)), row_groups=[group], columns=names
    ):
      end += rows.num_rows
      if end > first:
        yield end, rows


def _names(found: Any, columns: Sequence[str], file: File) -> list[str]:
  """The columns to read: those asked for, or all that may hold text."""
  from pyarrow import types

  schema = found.schema_arrow
  if missing := set(columns) - set(schema.names):
    raise errors.DataError(
      f'{file.path} has no column {" and ".join(sorted(missing))}; data.columns'
      f' may name {", ".join(schema.names)}'
    )
  names = columns or [
    field.name
    for field in schema
    if types.is_nested(field.type)
    or types.is_dictionary(field.type)
    or _is_string(field.type)
  ]
  if not names:
    raise errors.DataError(
      f'{file.path} has no column of text; data.columns may name'
      f' {", ".join(schema.names)}'
    )
  return list(names)


def _is_string(kind: Any) -> bool:
  from pyarrow import types

  return any(
    check(kind)
    for check in (types.is_string, types.is_large_string, types.is_string_view)
  )


def _records(rows: Any) -> list[dict[str, Any]]:
  """The rows; what is not UTF-8 in a string becomes U+FFFD."""
  import pyarrow

  columns = [
    column.cast(pyarrow.large_binary()) if _is_string(column.type) else column
    for column in rows.columns
  ]
  values = (chunks.text_of(column.to_pylist()) for column in columns)
  return [dict(zip(rows.schema.names, row)) for row in zip(*values)]
