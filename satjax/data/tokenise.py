"""Chunks to tokens, in whichever process."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from satjax.data import chunks, duplicates, table, tokenizers
from satjax.data.chunks import Chunk
from satjax.data.documents import Document
from satjax.data.encode import Encoded, Encoder


@dataclasses.dataclass(frozen=True)
class Settings:
  """What tokens depend on, beside their source.

  Attributes:
    tokenizer: of `tokenizers.get_tokenizer`.
    template: of `chat.TEMPLATES`.
    held_out, test: shares of the documents, as `table.split_of` has them.
    duplicates: of `duplicates.RULES`.
    min_tokens, max_tokens: of a document that is taken, with begin and end of
      text; None: any.
  """

  tokenizer: str
  template: str
  held_out: float
  test: float
  duplicates: str
  min_tokens: int
  max_tokens: int | None


class Tokenised(NamedTuple):
  """Documents end to end, but for those whose length leaves them out.

  Attributes:
    tokens: uint16 or uint32 [num_tokens].
    lengths: int64 [num_documents], in tokens.
    is_trained: bool [num_tokens]; None: no document has turns.
    splits: uint8 [num_documents], numbers in `table.SPLITS`.
    keys: of each document, see `duplicates`; None: all are kept.
    counts: of the documents that there were.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  is_trained: np.ndarray | None
  splits: np.ndarray
  keys: list[list[bytes]] | None
  counts: Counter[str]


class Tokeniser:
  """Turns chunks into tokens."""

  def __init__(self, settings: Settings):
    self._settings = settings
    tokenizer = tokenizers.get_tokenizer(settings.tokenizer)
    self.encoder = Encoder(tokenizer, settings.template)
    self._keys = duplicates.finder(settings.duplicates)

  def __call__(self, batch: Sequence[Chunk]) -> Tokenised:
    """The tokens of some chunks, one after the other.

    Raises:
      DataError: a document cannot be used.
    """
    counts, taken, found = Counter(), [], []
    documents = (d for chunk in batch for d in chunk.documents(counts))
    for some in _groups(documents):
      for document, encoded in zip(some, self.encoder(some)):
        _count(document, counts)
        if self._is_taken(encoded, counts):
          taken.append(self._described(document))
          found.append(encoded)
    counts['documents'] += counts['empty']
    splits, keys = zip(*taken) if taken else ((), ())
    return Tokenised(
      np.concatenate(
        [np.empty(0, self.encoder.dtype), *(e.tokens for e in found)]
      ),
      np.array([len(e.tokens) for e in found], np.int64),
      _is_trained(found),
      np.array(splits, np.uint8),
      list(keys) if self._keys else None,
      counts,
    )

  def _is_taken(self, encoded: Encoded, counts: Counter[str]) -> bool:
    size, most = len(encoded.tokens), self._settings.max_tokens
    is_short = size < self._settings.min_tokens
    is_long = most is not None and size > most
    counts['too_short'] += is_short
    counts['too_long'] += is_long
    return not (is_short or is_long)

  def _described(self, document: Document) -> tuple[int, list[bytes]]:
    name, settings = document.group or document.id, self._settings
    split = table.split_of(name, settings.held_out, settings.test)
    keys = self._keys(document) if self._keys else []
    return table.SPLITS.index(split), keys


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
  """As many documents at a time as memory allows to encode together."""
  group, size = [], 0
  for document in documents:
    group.append(document)
    size += chunks.num_chars(document)
    if size >= chunks.CHUNK_BYTES:
      yield group
      group, size = [], 0
  if group:
    yield group


def _count(document: Document, counts: Counter[str]) -> None:
  counts['documents'] += 1
  texts = [turn.content for turn in document.turns] or [document.text]
  counts['replaced'] += sum(text.count('\ufffd') for text in texts)


def _is_trained(found: Sequence[Encoded]) -> np.ndarray | None:
  if all(encoded.is_trained is None for encoded in found):
    return None
  masks = []
  for tokens, is_trained in found:
    if is_trained is None:
      is_trained = np.arange(len(tokens)) > 0
    masks.append(is_trained)
  return np.concatenate(masks)
