"""JSONL files: one document per line that is not empty."""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import json
from typing import Any, BinaryIO

from satjax import errors
from satjax.data import chunks, files
from satjax.data.chunks import Position
from satjax.data.documents import Document
from satjax.data.files import File

_MAX_LINE_BYTES = 2**25


@dataclasses.dataclass(frozen=True)
class _Lines:
  """Some lines of a file."""

  file: File
  first: int  # number of the first of them, from 1
  data: bytes
  columns: Sequence[str]
  next: Position
  done: int

  @property
  def volume(self) -> int:
    return len(self.data)

  def documents(self, counts: Counter[str]) -> Iterator[Document]:
    # Not splitlines: JSON strings may hold U+2028 and its like.
    for number, line in enumerate(self.data.split(b'\n'), self.first):
      text = line.decode('utf-8-sig', errors='replace')
      if text.strip():
        place = f'{self.file.path}, line {number}'
        id = f'{self.file.name}#{number}'
        record = _parse(text, place)
        yield from chunks.of_record(record, self.columns, id, place, counts)


def reader(columns: Sequence[str]) -> files.Reader:
  """Reads these fields; positions are a byte and the number of its line."""
  return functools.partial(_read, tuple(columns))


def _read(
  columns: Sequence[str], file: File, start: Position, size: int
) -> Iterator[_Lines]:
  offset, line = start or (0, 1)
  with files.opened(file.path) as opened:
    while data := _whole_lines(opened, offset, size, file, line):
      first, offset = line, offset + len(data)
      line += data.count(b'\n')
      yield _Lines(file, first, data, columns, (offset, line), offset)


def _whole_lines(
  opened: BinaryIO, offset: int, size: int, file: File, line: int
) -> bytes:
  """Reads about `size` bytes, up to the end of a line."""
  opened.seek(offset)
  data = opened.read(size)
  if len(data) < size:
    return data
  if end := data.rfind(b'\n') + 1:
    return data[:end]
  data += opened.readline(_MAX_LINE_BYTES)
  if len(data) > _MAX_LINE_BYTES:
    raise errors.DataError(
      f'{file.path}, line {line}: longer than {_MAX_LINE_BYTES:,} bytes; write'
      ' one object a line, or use text:GLOB'
    )
  return data


def _parse(line: str, place: str) -> Any:
  try:
    return json.loads(line)
  except (ValueError, RecursionError) as error:
    raise errors.DataError(
      f'{place}: not JSON ({error}); write one object a line, or use text:GLOB'
    ) from error
