"""Text files: one document each, or several, if it is long."""

import codecs
from collections import Counter
from collections.abc import Iterator
import dataclasses
import itertools
from typing import BinaryIO

from satjax.data import cutting, files
from satjax.data.chunks import Position
from satjax.data.documents import Document
from satjax.data.files import File

_UNCUT_CHARS = 65536  # a longer file becomes several documents, so that a
_PIECE_CHARS = 8192  # share of a single book can be held out
_BLOCK_BYTES = 2**16  # that are decoded at a time


@dataclasses.dataclass(frozen=True)
class _Pieces:
  """Some documents of a file, or an empty one."""

  name: str
  first: int  # number of the first of them
  texts: list[str]
  next: Position
  done: int

  @property
  def volume(self) -> int:
    return sum(map(len, self.texts))

  def documents(self, counts: Counter[str]) -> Iterator[Document]:
    if not self.texts:
      counts['empty'] += 1
    for number, text in enumerate(self.texts, self.first):
      yield Document(f'{self.name}#{number}', text)


def read(file: File, start: Position, size: int) -> Iterator[_Pieces]:
  """A `files.Reader`; positions are numbers of documents."""
  (first,) = start or (0,)
  texts, volume = [], 0

  def taken(done: int) -> _Pieces:
    nonlocal first, texts, volume
    begin, found = first, texts
    first, texts, volume = begin + max(1, len(found)), [], 0
    return _Pieces(file.name, begin, found, (first,), done)

  with files.opened(file.path) as data:
    pieces = cutting.cut(_decoded(data), _UNCUT_CHARS, _PIECE_CHARS)
    for text in itertools.islice(pieces, first, None):
      texts.append(text)
      volume += len(text)
      if volume >= size:
        yield taken(data.tell())
  if texts or not first:
    yield taken(file.size)


def _decoded(data: BinaryIO) -> Iterator[str]:
  """UTF-8, its lines ended by newlines alone; other bytes become U+FFFD."""
  decoder = codecs.getincrementaldecoder('utf-8-sig')('replace')
  held = ''  # may be the first half of a line end
  while block := data.read(_BLOCK_BYTES):
    text = held + decoder.decode(block)
    held = '\r' if text.endswith('\r') else ''
    yield text[: len(text) - len(held)].replace('\r\n', '\n')
  yield held + decoder.decode(b'', final=True)
