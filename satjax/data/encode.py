"""Documents to tokens, and to which of them the loss counts."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from satjax import errors
from satjax.data import chat, chunks
from satjax.data.chat import Piece
from satjax.data.documents import Document, Message
from satjax.data.tokenizers import Tokenizer


class Encoded(NamedTuple):
  """A document: tokens [n], of which the loss counts those that are trained.

  Attributes:
    tokens: uint16 or uint32 [n], begin of text first.
    is_trained: bool [n]; None: all but the first.
  """

  tokens: np.ndarray
  is_trained: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Encodes documents: begin, text, end; or a conversation in a template.

  Attributes:
    tokenizer: its vocabulary decides between uint16 and uint32.
    template: of `chat.TEMPLATES`, for pairs and conversations.
  """

  tokenizer: Tokenizer
  template: str = 'plain'

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(
      np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.uint32
    )

  @property
  def stop_id(self) -> int:
    """The token that ends what the assistant says."""
    stop = self.tokenizer.special_id(chat.TEMPLATES[self.template][1])
    return self.tokenizer.eos_id if stop is None else stop

  def __call__(self, documents: Sequence[Document]) -> list[Encoded]:
    """The tokens of some documents.

    Raises:
      DataError: the tokenizer gives an id outside of its vocabulary.
    """
    written = [self._pieces(document) for document in documents]
    # A piece is encoded for itself: no token is half prompt and half answer.
    texts = [p.text for pieces in written for p in pieces if self._is_text(p)]
    ids = iter(self.tokenizer.encode_batch(texts))
    return [
      self._join(document, pieces, ids)
      for document, pieces in zip(documents, written)
    ]

  def each(
    self, documents: Iterable[Document]
  ) -> Iterator[tuple[Document, Encoded]]:
    """Yields documents with their tokens; raises as a call does.

    As many are encoded together as memory allows, which lets a tokenizer use
    all cores.
    """
    group, size = [], 0
    for document in documents:
      group.append(document)
      size += chunks.num_chars(document)
      if size >= chunks.CHUNK_BYTES:
        yield from zip(group, self(group))
        group, size = [], 0
    if group:
      yield from zip(group, self(group))

  def prompt(self, messages: Iterable[Message]) -> np.ndarray:
    """Tokens up to where the assistant goes on, begin of text first."""
    pieces = [_BEGIN, *chat.opening(self.template, tuple(messages))]
    texts = [p.text for p in pieces if self._is_text(p)]
    ids = iter(self.tokenizer.encode_batch(texts))
    return self._join(Document('prompt', ''), pieces, ids).tokens

  def _pieces(self, document: Document) -> list[Piece]:
    if document.turns:
      return [_BEGIN, *chat.pieces(self.template, document.turns)]
    return [_BEGIN, Piece(document.text, True), Piece('', True, kind='end')]

  def _is_text(self, piece: Piece) -> bool:
    return piece.kind == 'text' or (
      piece.kind == 'marker' and self.tokenizer.special_id(piece.text) is None
    )

  def _join(self, document, pieces, ids) -> Encoded:
    parts = [
      self._checked(next(ids), document)
      if self._is_text(piece)
      else np.array([self._marker(piece)])
      for piece in pieces
    ]
    tokens = np.concatenate(parts, dtype=self.dtype, casting='unsafe')
    if not document.turns:
      return Encoded(tokens, None)
    is_trained = [piece.is_trained for piece in pieces]
    return Encoded(tokens, np.repeat(is_trained, list(map(len, parts))))

  def _marker(self, piece: Piece) -> int:
    if piece.kind == 'marker':
      return self.tokenizer.special_id(piece.text)
    return {
      'begin': self.tokenizer.bos_id,
      'end': self.tokenizer.eos_id,
      'stop': self.stop_id,
    }[piece.kind]

  def _checked(self, ids: np.ndarray, document: Document) -> np.ndarray:
    # Before the cast, which would wrap a wrong id into a valid one.
    size = self.tokenizer.vocab_size
    if len(ids) and not 0 <= ids.min() <= ids.max() < size:
      raise errors.DataError(
        f'document {document.id!r}: tokenizer {self.tokenizer.name!r} gives ids'
        f' from {ids.min()} to {ids.max()}, but its vocabulary has {size};'
        ' repair the tokenizer files'
      )
    return ids


_BEGIN = Piece('', kind='begin')


def trained(found: Sequence[Encoded]) -> np.ndarray | None:
  """What is trained of documents end to end; None: all but their first."""
  if all(encoded.is_trained is None for encoded in found):
    return None
  return np.concatenate(
    [
      np.arange(len(tokens)) > 0 if is_trained is None else is_trained
      for tokens, is_trained in found
    ]
  )
