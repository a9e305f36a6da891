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
  """A document: tokens, of which the loss counts those that are trained."""

  tokens: np.ndarray  # uint16 or uint32 [n], begin of text first
  is_trained: np.ndarray | None  # bool [n]; None: all but the first


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Encodes documents: begin, text, end; or a conversation in a template."""

  tokenizer: Tokenizer
  template: str = 'plain'  # of `chat.TEMPLATES`, for pairs and conversations

  @property
  def dtype(self) -> np.dtype:
    is_small = self.tokenizer.vocab_size <= 2**16
    return np.dtype(np.uint16 if is_small else np.uint32)

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
    found = self._encode([(d.id, self._pieces(d)) for d in documents])
    return [
      encoded if document.turns else Encoded(encoded.tokens, None)
      for document, encoded in zip(documents, found)
    ]

  def each(
    self, documents: Iterable[Document]
  ) -> Iterator[tuple[Document, Encoded]]:
    """Yields documents with their tokens; raises as a call does.

    As many are encoded together as memory allows, which lets a tokenizer use
    all cores.
    """
    for group in chunks.grouped(
      documents, chunks.num_chars, chunks.CHUNK_BYTES
    ):
      yield from zip(group, self(group))

  def prompt(self, messages: Iterable[Message]) -> np.ndarray:
    """Tokens up to where the assistant goes on, begin of text first."""
    pieces = [_BEGIN, *chat.opening(self.template, tuple(messages))]
    (found,) = self._encode([('prompt', pieces)])
    return found.tokens

  def _pieces(self, document: Document) -> list[Piece]:
    if document.turns:
      return [_BEGIN, *chat.pieces(self.template, document.turns)]
    return [_BEGIN, Piece(document.text, True), Piece('', True, kind='end')]

  def _token(self, piece: Piece) -> int | None:
    """The token that a piece is; None: it is text, or spelled as text."""
    if piece.kind == 'marker':
      return self.tokenizer.special_id(piece.text)
    ends = {'begin': self.tokenizer.bos_id, 'end': self.tokenizer.eos_id}
    return self.stop_id if piece.kind == 'stop' else ends.get(piece.kind)

  def _encode(
    self, written: Sequence[tuple[str, Sequence[Piece]]]
  ) -> Iterator[Encoded]:
    """Yields the tokens of pieces, which have the id of a document."""
    # A piece is encoded for itself: no token is half prompt and half answer.
    texts = [
      piece.text
      for _, pieces in written
      for piece in pieces
      if self._token(piece) is None
    ]
    ids = iter(self.tokenizer.encode_batch(texts))
    for id, pieces in written:
      parts = [
        self._checked(next(ids), id) if token is None else [token]
        for token in map(self._token, pieces)
      ]
      sizes = list(map(len, parts))
      yield Encoded(
        np.concatenate(parts, dtype=self.dtype, casting='unsafe'),
        np.repeat([piece.is_trained for piece in pieces], sizes),
      )

  def _checked(self, ids: np.ndarray, id: str) -> np.ndarray:
    # Before the cast, which would wrap a wrong id into a valid one.
    size = self.tokenizer.vocab_size
    if len(ids) and not 0 <= ids.min() <= ids.max() < size:
      raise errors.DataError(
        f'document {id!r}: tokenizer {self.tokenizer.name!r} gives ids from'
        f' {ids.min()} to {ids.max()}, but its vocabulary has {size}; repair'
        ' the tokenizer files'
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
