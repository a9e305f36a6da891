"""A tokenised table, cut into rows that know where their documents begin.

table   [bos] a b [eos] [bos] c [eos]      two documents
row 0   [bos] a b [eos] [bos]              seq_len 4: four tokens, and the
row 1                   [bos] c [eos] ...  target of the last one

A pair is a document too, its prompt before its text. The loss counts the text
and its [eos] as targets: 0 of what follows is a prompt, or another [bos].

table   [bos] p q a b [eos] [bos] c [eos]  prompt p q, answer a b
weight    0     0 1 1 1     0     1 1      of the target, the token after
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
    fingerprint: hash of all arrays; equal tables give equal batches.
    name: source and split, for messages.
    answers: int64 [num_documents], where in `tokens` the text of each document
      begins, after begin and prompt; None where no document has a prompt.
  """

  tokens: np.ndarray
  starts: np.ndarray
  fingerprint: str
  name: str
  answers: np.ndarray | None = None


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
  """Tokenises the documents of one split: begin, prompt, text, end of each.

  Args:
    source: one of the forms of `sources.documents`.
    tokenizer: its vocabulary decides between uint16 and uint32.
    split: 'train' or 'held_out'.
    held_out: share of the documents (of their groups, where they have some),
      not of the tokens, that is held out.

  Raises:
    ConfigError: `source` or `split` is unknown.
    DataError: a file can not be used, or the split has no document.
  """
  if split not in SPLITS:
    raise errors.ConfigError(f'split {split!r}; allowed: {SPLITS}')
  texts, starts, answers = [], [], []
  num_tokens = num_documents = 0
  has_prompts = False
  for document in sources.documents(source):
    num_documents += 1
    if split_of(document.group or document.id, held_out) == split:
      tokens, answer = _encode(document, tokenizer, source)
      texts.append(tokens)
      starts.append(num_tokens)
      answers.append(num_tokens + answer)
      num_tokens += len(tokens)
      has_prompts |= bool(document.prompt)
  if not starts:
    raise errors.DataError(
      f'{source!r}: none of its {num_documents} documents falls into {split!r}'
      f' (data.held_out {held_out}); add documents, or change data.held_out'
    )
  arrays = {
    'tokens': np.concatenate(texts),
    'starts': np.array(starts, np.int64),
  }
  if has_prompts:
    arrays['answers'] = np.array(answers, np.int64)
  return Table(
    **arrays, fingerprint=fingerprint(**arrays), name=f'{source} ({split})'
  )


def _encode(
  document: sources.Document, tokenizer: tokenizers.Tokenizer, source: str
) -> tuple[np.ndarray, int]:
  """The tokens of a document, and at which of them its text begins."""
  # Each for itself, so that no token is half prompt and half answer.
  parts = [_ids(document.text, document, tokenizer, source)]
  if document.prompt:
    parts.insert(0, _ids(document.prompt, document, tokenizer, source))
  dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
  row = np.empty(sum(map(len, parts)) + 2, dtype)
  row[0], row[-1] = tokenizer.bos_id, tokenizer.eos_id
  np.concatenate(parts, out=row[1:-1], casting='unsafe')
  return row, len(row) - 1 - len(parts[-1])


def _ids(
  text: str,
  document: sources.Document,
  tokenizer: tokenizers.Tokenizer,
  source: str,
) -> np.ndarray:
  ids = np.asarray(tokenizer.encode(text))
  # Before the cast, which would wrap a wrong id into a valid one.
  if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
    raise errors.DataError(
      f'{source!r}, document {document.id!r}: tokenizer {tokenizer.name!r}'
      f' gives ids from {ids.min()} to {ids.max()}, but its vocabulary has'
      f' {tokenizer.vocab_size}; repair the tokenizer files'
    )
  return ids


def fingerprint(
  tokens: np.ndarray, starts: np.ndarray, answers: np.ndarray | None = None
) -> str:
  """Hashes contents and types of the arrays; 32 hexadecimal digits."""
  arrays = [tokens, starts] + ([] if answers is None else [answers])
  digest = hashlib.blake2b(digest_size=16)
  for array in arrays:
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
    if self.table.answers is not None:
      targets = np.arange(first + 1, last + 1)
      owners = np.searchsorted(self.table.starts, targets, side='right') - 1
      weights[targets < self.table.answers[owners]] = 0
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
        nothing before it foretells, or belongs to a prompt; else 1.

  Raises:
    DataError: the table is shorter than one row, or its first prompt longer
      than all of its rows.
  """
  num_tokens = len(table.tokens)
  if num_tokens < seq_len + 1:
    raise errors.DataError(
      f'{table.name} has {num_tokens} tokens in {len(table.starts)} documents;'
      f' a row needs data.seq_len + 1 = {seq_len + 1}; shorten data.seq_len, or'
      ' give this split more text (data.held_out moves documents between them)'
    )
  cut = Rows(table, seq_len)
  if table.answers is not None and table.answers[0] > len(cut) * seq_len:
    raise errors.DataError(
      f'{table.name}: its first prompt has {table.answers[0] - 1} tokens, and'
      f' no answer falls into its {len(cut)} rows of data.seq_len {seq_len};'
      ' shorten the prompt, or give this split more pairs'
    )
  return cut
