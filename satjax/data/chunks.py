"""How a source is read: chunk after chunk, the same ones every time.

A chunk is cheap to read and to send to another process. Its documents are made
where they are tokenised, so that chunks that are done already cost little.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

from satjax import errors
from satjax.data import documents
from satjax.data.documents import Document

CHUNK_BYTES = 2**19  # about this much is read at a time
# Tokenizers take up to 150 bytes of memory for a character of a single text.
MAX_CHARS = 2**20
_MARKS = ('\n\n', '\n \n', '\n', ' ', '')  # '' is found at the end


class Chunk(NamedTuple):
  """A stretch of a source."""

  # Makes the documents; counts what is 'empty', or was 'cut'. It goes to other
  # processes: a function of a module, with its arguments.
  documents: Callable[[Counter[str]], Iterator[Document]]
  volume: int  # about how many bytes of text it holds
  done: int  # of the size of the source, what lies before its end


class Source(NamedTuple):
  """A source that has been found."""

  identity: str  # of its files, by their names and sizes
  size: int  # of the whole, in bytes where that is known
  chunks: Callable[[int], Iterator[Chunk]]  # of about so many bytes each


def of_documents(found: Sequence[Document], done: int) -> Chunk:
  """A chunk of documents that are there already; none is an empty one."""
  volume = sum(map(num_chars, found))
  return Chunk(functools.partial(_counted, found), volume, done)


def _counted(
  found: Sequence[Document], counts: Counter[str]
) -> Iterator[Document]:
  if not found:
    counts['empty'] += 1
  return iter(found)


def of_record(
  record: Any, columns: Sequence[str], id: str, place: str, counts: Counter[str]
) -> Iterator[Document]:
  """The document of a record; several, where its text is very long.

  The arguments are those of `documents.from_record`, and what is counted.

  Raises:
    DataError: the record is none, or a very long pair or conversation.
  """
  document = documents.from_record(record, columns, id, place, counts)
  if document is None:
    return
  size = num_chars(document)
  if size <= MAX_CHARS:
    yield document
    return
  if document.messages:
    raise errors.DataError(
      f'{place}: a conversation of {size:,} characters; the most is'
      f' {MAX_CHARS:,}; leave it out, or split it'
    )
  counts['cut'] += 1
  for number, piece in enumerate(cut([document.text], MAX_CHARS, MAX_CHARS)):
    yield Document(f'{id}/{number}', piece, group=id)


def cut(blocks: Iterable[str], uncut: int, piece: int) -> Iterator[str]:
  """Cuts a long text where it hurts least; nothing is lost or added.

  Args:
    blocks: the text, in parts of any length.
    uncut: characters of a text that stays whole.
    piece: characters of a piece of a longer one, at most; not above `uncut`.
  """
  text, is_long = '', False
  for block in blocks:
    text += block
    is_long = is_long or len(text) > uncut
    start = 0
    while is_long and len(text) - start > piece:
      window = text[start : start + piece]
      mark = next(mark for mark in _MARKS if mark in window)
      size = window.rfind(mark) + len(mark)
      yield window[:size]
      start += size
    text = text[start:]
  if text:
    yield text


def grouped(
  items: Iterable[Any], volume: Callable[[Any], int], enough: int
) -> Iterator[list[Any]]:
  """Yields items together, until what they have together is enough."""
  group, total = [], 0
  for item in items:
    group.append(item)
    total += volume(item)
    if total >= enough:
      yield group
      group, total = [], 0
  if group:
    yield group


def num_chars(document: Document) -> int:
  """Characters of a document, whatever it consists of."""
  return sum(map(len, document.texts))


def text_of(value: Any) -> Any:
  """The same with str for bytes, however deep they lie."""
  if isinstance(value, bytes):
    return value.decode('utf-8', errors='replace')
  if isinstance(value, dict):
    return {key: text_of(inner) for key, inner in value.items()}
  if isinstance(value, list):
    return [text_of(inner) for inner in value]
  return value
