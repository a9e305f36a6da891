"""A tokenised table, cut into rows that know where their documents begin.

table   [bos] a b [eos] [bos] c [eos]      two documents
row 0   [bos] a b [eos] [bos]              seq_len 4: four tokens, and the
row 1                   [bos] c [eos] ...  target of the last one
"""

import dataclasses
import hashlib

import numpy as np

from satjax import errors
from satjax.data import sources, tokenizers

SPLITS = ('train', 'held_out')


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """The documents of one split, end to end.

  Attributes:
    tokens: uint16 or uint32 [num_tokens], every document with begin and end.
    starts: int64 [num_documents], where each document begins in `tokens`.
    fingerprint: hash of both; equal tables give equal batches.
    name: source and split, for messages.
  """

  tokens: np.ndarray
  starts: np.ndarray
  fingerprint: str
  name: str


def split_of(document_id: str, held_out: float) -> str:
  """Returns 'train' or 'held_out' from the id alone.

  A document stays on its side whatever is added to the source, and on every
  machine. A larger `held_out` takes documents only from 'train'.
  """
  data = document_id.encode('utf-8', errors='surrogatepass')
  number = hashlib.blake2b(data, digest_size=8).digest()
  share = int.from_bytes(number, 'big') / 2**64
  return 'held_out' if share < held_out else 'train'


def build_table(
  source: str, tokenizer: tokenizers.Tokenizer, *, split: str, held_out: float
) -> Table:
  """Tokenises the documents of one split: begin, text, end of each.

  Args:
    source: one of the forms of `sources.documents`.
    tokenizer: its vocabulary decides between uint16 and uint32.
    split: 'train' or 'held_out'.
    held_out: share of the documents, not of the tokens, that is held out.

  Raises:
    ConfigError: `source` or `split` is unknown.
    DataError: a file can not be used, or the split has no document.
  """
  if split not in SPLITS:
    raise errors.ConfigError(f'split {split!r}; allowed: {SPLITS}')
  texts, starts = [], []
  num_tokens = num_documents = 0
  for document in sources.documents(source):
    num_documents += 1
    if split_of(document.id, held_out) == split:
      texts.append(_encode(document, tokenizer, source))
      starts.append(num_tokens)
      num_tokens += len(texts[-1])
  if not starts:
    raise errors.DataError(
      f'{source!r}: none of its {num_documents} documents falls into {split!r}'
      f' (data.held_out {held_out}); add documents, or change data.held_out'
    )
  tokens = np.concatenate(texts)
  offsets = np.array(starts, np.int64)
  return Table(
    tokens, offsets, fingerprint(tokens, offsets), f'{source} ({split})'
  )


def _encode(
  document: sources.Document, tokenizer: tokenizers.Tokenizer, source: str
) -> np.ndarray:
  ids = np.asarray(tokenizer.encode(document.text))
  # Before the cast, which would wrap a wrong id into a valid one.
  if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
    raise errors.DataError(
      f'{source!r}, document {document.id!r}: tokenizer {tokenizer.name!r}'
      f' gives ids from {ids.min()} to {ids.max()}, but its vocabulary has'
      f' {tokenizer.vocab_size}; repair the tokenizer files'
    )
  dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
  row = np.empty(len(ids) + 2, dtype)
  row[0], row[1:-1], row[-1] = tokenizer.bos_id, ids, tokenizer.eos_id
  return row


def fingerprint(tokens: np.ndarray, starts: np.ndarray) -> str:
  """Hashes contents and types of both arrays; 32 hexadecimal digits."""
  digest = hashlib.blake2b(digest_size=16)
  for array in (tokens, starts):
    digest.update(f'{array.dtype.str}{array.shape}'.encode())
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()


class Rows:
  """Random access to the rows of a table; see `rows`."""

  def __init__(self, table: Table, seq_len: int):
    self.table = table
    self.seq_len = seq_len

  def __len__(self) -> int:
    return (len(self.table.tokens) - 1) // self.seq_len

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of a table with {len(self)} rows')
    first, last = row * self.seq_len, (row + 1) * self.seq_len
    ids = self.table.tokens[first : last + 1].astype(np.int32)
    # Documents that begin after the first token, up to the last target.
    begin, end = np.searchsorted(self.table.starts, (first, last), side='right')
    inner = self.table.starts[begin:end] - first

    weights = np.ones(self.seq_len, np.float32)
    weights[inner - 1] = 0
    begins = np.zeros(self.seq_len + 1, np.int32)
    begins[inner] = 1
    segments = np.cumsum(begins[:-1], dtype=np.int32) + 1
    origins = np.concatenate(([0], inner)).astype(np.int32)
    positions = np.arange(self.seq_len, dtype=np.int32) - origins[segments - 1]
    return {
      'tokens': ids[:-1],
      'targets': ids[1:],
      'positions': positions,
      'segments': segments,
      'weights': weights,
    }


def rows(table: Table, seq_len: int) -> Rows:
  """Cuts a table into rows: a sequence that computes a row when asked.

  Row i reads tokens[i * seq_len : (i + 1) * seq_len + 1]: its last target is
  the first token of the next row, so that every token but the table's first
  is a target once. A remainder shorter than that is dropped.

  Returns:
    A sequence of dicts with keys, all [T] and int32 but for weights:
      tokens, targets: ids; a target is the token after its own.
      positions: from 0 at the start of the row and of every document.
      segments: number of the document inside the row, from 1.
      weights: float32, 0 where the target begins another document, which
        nothing before it foretells; else 1.

  Raises:
    DataError: the table is shorter than one row.
  """
  num_tokens = len(table.tokens)
  if num_tokens < seq_len + 1:
    raise errors.DataError(
      f'{table.name} has {num_tokens} tokens in {len(table.starts)} documents;'
      f' a row needs data.seq_len + 1 = {seq_len + 1}; shorten data.seq_len, or'
      ' give this split more text (data.held_out moves documents between them)'
    )
  return Rows(table, seq_len)
