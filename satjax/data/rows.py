"""Rows of a fixed length, cut out of a table or packed from whole documents.

table   [bos] a b [eos] [bos] c [eos]      two documents

cut     [bos] a b [eos]                    seq_len 4: end to end, and the
        [bos] c [eos] ...                  target of a row's last token is the
                                           first of the next row
packed  [bos] a b [bos]                    as inputs: the last token of a
        c  -  -  -                         document is a target only

Rows to train on leave out a remainder that fills no row, and of packed
documents what is longer than a row. Rows to evaluate on leave out nothing: the
last one is filled up, and a long document goes on in another row.
"""

import numpy as np

from satjax import errors
from satjax.data.table import TokenTable

Row = dict[str, np.ndarray]


class Rows:
  """Rows that cut documents where they end; see `rows`.

  Row i reads tokens[i * seq_len : (i + 1) * seq_len + 1], so that every token
  but the table's first is a target once.
  """

  num_cut = num_dropped = 0  # documents that are longer than a row

  def __init__(
    self,
    table: TokenTable,
    seq_len: int,
    vocab_size: int,
    attend: str,
    is_whole: bool,
  ):
    self.table = table
    self._attend = attend
    self._seq_len = seq_len
    self._vocab_size = vocab_size
    self._is_whole = is_whole
    # Documents of which nothing is learned.
    self.num_unlearned = table.num_unlearned(len(table.tokens))

  def __len__(self) -> int:
    places = max(0, len(self.table.tokens) - 1)
    rest = places % self._seq_len > 0 and self._is_whole
    return places // self._seq_len + rest

  def __getitem__(self, row: int) -> Row:
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of a table with {len(self)} rows')
    values = self._row(row)
    # JAX clamps an index that is out of range: a wrong id would train the last
    # row of the embedding without an error.
    for key in ('tokens', 'targets'):
      low, high = values[key].min(), values[key].max()
      if low < 0 or high >= self._vocab_size:
        raise errors.DataError(
          f'{self.table.name}, row {row}: token id'
          f' {low if low < 0 else high} is outside of the vocabulary, 0 to'
          f' {self._vocab_size - 1}; the tokenizer must fit model.vocab_size'
        )
    if self._attend == 'row':  # one sequence, whatever is in it
      values['positions'] = np.arange(self._seq_len, dtype=np.int32)
      del values['segments']
    return values

  def documents(self, row: int) -> np.ndarray:
    """int64 [T]: the number in the table of each target's document, or -1."""
    places = self._places(row)
    return np.searchsorted(self.table.starts, places, side='right') - 1

  def _places(self, row: int) -> np.ndarray:
    """int64 [T]: where each target stands in the table; -1: there is none."""
    places = row * self._seq_len + 1 + np.arange(self._seq_len)
    return np.where(places < len(self.table.tokens), places, -1)

  def _row(self, row: int) -> Row:
    first, last = row * self._seq_len, (row + 1) * self._seq_len
    last = min(last, len(self.table.tokens) - 1)
    ids = self.table.tokens[first : last + 1].astype(np.int32)
    # Documents that begin after the first token, up to the last one.
    begin, end = np.searchsorted(self.table.starts, (first + 1, last))
    inner = self.table.starts[begin:end] - first
    segments = np.ones(last - first, np.int32)
    segments[inner] += 1
    segments = np.cumsum(segments) - np.arange(last - first)
    origins = np.concatenate(([0], inner)).astype(np.int32)
    positions = np.arange(last - first, dtype=np.int32)
    values = {
      'tokens': ids[:-1],
      'targets': ids[1:],
      'positions': positions - origins[segments - 1],
      'segments': segments.astype(np.int32),
      'weights': self.table.weights(first + 1, last + 1),
    }
    empty = self._seq_len - (last - first)
    return {key: np.pad(v, (0, empty)) for key, v in values.items()}


class PackedRows(Rows):
  """Rows of whole documents, by best fit; see `rows`.

  A document of n tokens takes n - 1 places: its last token is a target only.
  Of those longer than a row it has the beginning, or nothing; to evaluate, all
  of it: what goes on elsewhere begins with the last token before.
  """

  def __init__(
    self,
    table: TokenTable,
    seq_len: int,
    vocab_size: int,
    attend: str,
    is_whole: bool,
    too_long: str,
  ):
    super().__init__(table, seq_len, vocab_size, attend, is_whole)
    ends = np.append(table.starts[1:], len(table.tokens))
    sizes = np.maximum(ends - table.starts - 1, 0)
    if is_whole:
      counts = -(-sizes // seq_len)
      document = np.repeat(np.arange(len(sizes)), counts)
      number = np.arange(len(document)) - (np.cumsum(counts) - counts)[document]
      self._starts = table.starts[document] + number * seq_len
      sizes = sizes[document] - number * seq_len
      taken = np.arange(len(document))
    else:
      is_long = sizes > seq_len
      self._starts = table.starts
      taken = np.flatnonzero(~is_long if too_long == 'drop' else sizes > 0)
      self.num_cut = int(is_long[taken].sum())
      self.num_dropped = int(is_long.sum()) - self.num_cut
      if self.num_cut:
        self.num_unlearned = table.num_unlearned(seq_len + 1)
    # Of a piece, a document or a part of one.
    self._sizes = np.minimum(sizes, seq_len)
    self._pieces = _pack(taken, self._sizes, seq_len)

  def __len__(self) -> int:
    return len(self._pieces)

  def _places(self, row: int) -> np.ndarray:
    places = [
      self._starts[piece] + 1 + np.arange(self._sizes[piece])
      for piece in self._pieces[row]
    ]
    places = np.concatenate(places)
    empty = self._seq_len - len(places)
    return np.pad(places, (0, empty), constant_values=-1)

  def _row(self, row: int) -> Row:
    names = ('tokens', 'targets', 'positions', 'segments')
    values = {name: np.zeros(self._seq_len, np.int32) for name in names}
    values['weights'] = np.zeros(self._seq_len, np.float32)
    at = 0
    for number, piece in enumerate(self._pieces[row], 1):
      size, first = self._sizes[piece], self._starts[piece]
      ids = self.table.tokens[first : first + size + 1]
      here = slice(at, at + size)
      values['tokens'][here], values['targets'][here] = ids[:-1], ids[1:]
      values['positions'][here] = np.arange(size)
      values['segments'][here] = number
      values['weights'][here] = self.table.weights(first + 1, first + 1 + size)
      at += size
    return values


def _pack(
  documents: np.ndarray, places: np.ndarray, seq_len: int
) -> list[np.ndarray]:
  """Which documents go into which row.

  Grain packs; it is given the numbers of the documents instead of their
  tokens, so that a row can be read without those before it.
  """
  import grain

  if not len(documents):
    return []

  def element(number):
    return {'document': np.full(places[number], number, np.int32)}

  numbered = grain.MapDataset.source(documents).map(element)
  packed = grain.experimental.BestFitPackIterDataset(
    # Threads would only wait for each other.
    numbered.to_iter_dataset(grain.ReadOptions(num_threads=0)),
    length_struct={'document': seq_len},
    num_packing_bins=64,
  )
  # A row takes documents in their order, so that their numbers ascend.
  return [
    np.unique(r['document'][r['document_segment_ids'] > 0]) for r in packed
  ]


def rows(
  table: TokenTable,
  seq_len: int,
  packing: str = 'concat_then_split',
  too_long: str = 'cut',
  vocab_size: int = 2**31,
  attend: str = 'document',
  *,
  is_whole: bool = False,
) -> Rows:
  """A sequence that computes a row when asked for it.

  Args:
    seq_len: T, tokens in a row.
    packing: 'concat_then_split', documents end to end, cut where rows end; or
      'best_fit', whole documents.
    too_long: what 'best_fit' does with documents longer than a row: 'cut' or
      'drop' them.
    vocab_size: of the model; a row with another id is refused when it is read.
    attend: 'document'; or 'row', one sequence whatever is in it: positions run
      on, and there are no segments.
    is_whole: nothing is left out, as it must be where rows are evaluated.

  Returns:
    A sequence of dicts with keys, all [T] and int32 but for weights:
      tokens, targets: ids; a target is the token after its own.
      positions: from 0 at the start of the row and of every document.
      segments: number of the document inside the row, from 1; 0: nothing.
      weights: float32, 0 where the target is not learned: the begin of a
        document, which nothing before it foretells, or part of a prompt.

  Raises:
    DataError: the table is shorter than one row, its first prompt longer than
      all of its rows, or no document is whole; not if `is_whole`.
  """
  settings = (table, seq_len, vocab_size, attend, is_whole)
  if packing == 'best_fit':
    packed = PackedRows(*settings, too_long)
    if packed.num_cut + packed.num_dropped == len(table.starts):
      raise errors.DataError(
        f'{table.name}: all of its {len(table.starts)} documents are longer'
        f' than data.seq_len {seq_len}, so that none would be learned to its'
        " end; raise data.seq_len, or use data.packing='concat_then_split'"
      )
    return packed
  cut = Rows(*settings)
  if not is_whole:
    _refuse_what_teaches_nothing(cut, seq_len)
  return cut


def _refuse_what_teaches_nothing(cut: Rows, seq_len: int) -> None:
  """Raises DataError for less than a row, or a prompt that fills them all."""
  table, num_tokens = cut.table, len(cut.table.tokens)
  if num_tokens < seq_len + 1:
    raise errors.DataError(
      f'{table.name} has {num_tokens} tokens in {len(table.starts)} documents;'
      f' a row needs data.seq_len + 1 = {seq_len + 1}; shorten data.seq_len, or'
      ' give this split more text (data.held_out and data.test move documents)'
    )
  has_turns = table.is_trained is not None
  if has_turns and not any(row['weights'].any() for row in cut):
    raise errors.DataError(
      f'{table.name}: no answer falls into its {len(cut)} rows of data.seq_len'
      f' {seq_len}, which prompts fill; shorten the prompts, or give this split'
      ' more pairs'
    )
