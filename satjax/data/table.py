"""A tokenised table: documents end to end, and what the loss counts of them.

table   [bos] a b [eos] [bos] c [eos]      two documents

A text is trained but for its begin. Of a pair or a conversation only what the
assistant says is, with the token that ends it.

table   [bos] p q a b [eos] [bos] c [eos]  prompt p q, answer a b
trained   0   0 0 1 1   1     0   1   1
"""

from collections import Counter
from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
from typing import Any

from absl import logging
import numpy as np

from satjax import errors
from satjax.data import encode, sources
from satjax.data.documents import Document
from satjax.data.encode import Encoded, Encoder

SPLITS = ('train', 'held_out', 'test')
_shared: dict[tuple, 'TokenTable'] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
  """The documents of one split, end to end.

  `tokens` and `is_trained` are read by slices alone: they need not be in
  memory.
  """

  tokens: Any  # uint16 or uint32 [num_tokens]
  starts: np.ndarray  # int64 [num_documents], where each begins in `tokens`
  fingerprint: str  # of all arrays; equal tables give equal batches
  name: str  # source and split, for messages
  # bool [num_tokens], whether the loss counts a token as a target; None: every
  # one that begins no document.
  is_trained: Any = None
  ids: tuple[str, ...] = ()  # of the documents; (): they are not kept
  num_found: int = 0  # documents of the source, in whatever split
  unlearned: int | None = None  # those that teach nothing; None: not counted

  def weights(self, first: int, last: int) -> np.ndarray:
    """float32 [last - first]: 1 where a token counts as a target."""
    if self.is_trained is not None:
      return self.is_trained[first:last].astype(np.float32)
    weights = np.ones(last - first, np.float32)
    begin, end = np.searchsorted(self.starts, (first, last))
    weights[self.starts[begin:end] - first] = 0
    return weights

  def num_unlearned(self, most: int) -> int:
    """How many documents teach nothing, if so many tokens are read of each.

    Of a table on disk only those are looked at that are longer, since `satjax
    prepare` has counted the others.
    """
    if self.is_trained is None:
      return 0
    lasts = np.append(self.starts[1:], len(self.tokens))
    ends = np.minimum(self.starts + most, lasts)
    is_read = (ends < lasts) | (self.unlearned is None)
    places = zip(self.starts[is_read], ends[is_read], lasts[is_read])
    if self.unlearned is None:
      return sum(not self.is_trained[a:b].any() for a, b, _ in places)
    return self.unlearned + sum(
      not self.is_trained[a:b].any() and self.is_trained[b:c].any()
      for a, b, c in places
    )


def split_of(document_id: str, held_out: float, test: float = 0.0) -> str:
  """Returns one of `SPLITS` from the id alone.

  A document stays where it is whatever is added to the source, and on every
  machine. A larger `held_out` or `test` takes documents only from 'train', as
  long as they are below 1 together.
  """
  data = document_id.encode('utf-8', errors='surrogatepass')
  number = hashlib.blake2b(data, digest_size=8).digest()
  share = int.from_bytes(number, 'big') / 2**64
  if share < held_out:
    return 'held_out'
  return 'test' if test and share >= 1 - test else 'train'


def share() -> None:
  """From now on this process builds each table once; texts must not change."""
  global _shared  # noqa: PLW0603
  _shared = {} if _shared is None else _shared


def build_table(
  source: str,
  encoder: Encoder,
  *,
  split: str,
  held_out: float,
  test: float = 0.0,
  columns: tuple[str, ...] = (),
  trained: Mapping[str, str] | None = None,
) -> TokenTable:
  """Tokenises the documents of one split.

  Args:
    source, columns: as `sources.find` has them.
    held_out, test: shares of the documents (of their groups, where they have
      some), not of the tokens.
    trained: of `sources.trained_names`: documents of other files are taken
      whole, whatever the split. None: there are no other files.

  Raises:
    ConfigError: `source` is unknown.
    DataError: a file cannot be used, or the split has no document.
  """
  if _shared is None:
    return _build(source, encoder, split, held_out, test, columns, trained)
  own = encoder.tokenizer.fingerprint, encoder.template, encoder.reasoning
  whole = None if trained is None else tuple(trained.items())
  key = (source, own, split, held_out, test, columns, whole)
  if key not in _shared:
    _shared[key] = _build(
      source, encoder, split, held_out, test, columns, trained
    )
  return _shared[key]


def _build(source, encoder, split, held_out, test, columns, trained):
  num_documents, ids, encoded, counts = 0, [], [], Counter()

  def mine() -> Iterator[Document]:
    nonlocal num_documents
    for document in sources.documents(source, columns, counts):
      num_documents += 1
      name = _name_in_split(document, trained)
      if name is None or split_of(name, held_out, test) == split:
        yield document

  try:
    for document, tokens in encoder.each(mine(), counts):
      encoded.append(tokens)
      if split != 'train':
        ids.append(document.id)
  except errors.DataError as error:
    raise errors.DataError(f'{source!r}, {error}') from error
  found = ((n, encode.in_words(name)) for name, n in counts.items() if n)
  words = '; '.join(f'{n:,} {what}' for n, what in found)
  if not num_documents:
    more = f' ({words})' if words else ''
    raise errors.DataError(f'{source!r} has no document{more}; add some')
  if not encoded:
    key, share = ('test', test) if split == 'test' else ('held_out', held_out)
    raise errors.DataError(
      f'{source!r}: none of its {num_documents} documents falls into {split!r}'
      f' (data.{key} {share}); add documents, or change data.{key}'
    )
  name = f'{source} ({split})'
  if words:
    logging.warning(f'{name}: {words}')
  has_turns = any(one.is_trained is not None for one in encoded)
  made = join(encoded, name, encoder.stop_id if has_turns else None)
  return dataclasses.replace(made, ids=tuple(ids), num_found=num_documents)


def _name_in_split(
  document: Document, trained: Mapping[str, str] | None
) -> str | None:
  """What its split is drawn by; None: it is of a file that is taken whole."""
  name = document.group or document.id
  if trained is None:
    return name
  file, mark, place = name.rpartition('#')
  return f'{trained[file]}{mark}{place}' if file in trained else None


def join(encoded: list[Encoded], name: str, stop_id: int | None) -> TokenTable:
  """The table of some documents, which are no longer needed."""
  lengths = [len(one.tokens) for one in encoded]
  starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
  tokens = np.concatenate([one.tokens for one in encoded])
  is_trained, learned = None, tokens[:0]
  if any(one.is_trained is not None for one in encoded):
    is_trained = np.concatenate(
      [np.arange(len(t)) > 0 if x is None else x for t, x in encoded]
    )
    learned = tokens[is_trained]
  if len(learned) and stop_id not in learned:
    raise errors.DataError(
      f'{name}: the loss counts no token that ends an answer (id {stop_id}),'
      ' and the model would never learn to stop; the template must fit the'
      ' tokenizer, and every answer end'
    )
  return TokenTable(
    tokens, starts, fingerprint(tokens, starts, is_trained), name, is_trained
  )


def fingerprint(*arrays: np.ndarray | None) -> str:
  """Hashes contents and types of the arrays; 32 hexadecimal digits."""
  digest = hashlib.blake2b(digest_size=16)
  for array in arrays:
    if array is not None:
      digest.update(f'{array.dtype.str}{array.shape}'.encode())
      digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()
