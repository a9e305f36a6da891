"""Rows of a fixed length, cut out of a table or packed from whole documents.

table   [bos] a b [eos] [bos] c [eos]      two documents

cut     [bos] a b [eos]                    seq_len 4: end to end, and the
        [bos] c [eos] ...                  target of a row's last token is the
                                           first of the next row
packed  [bos] a b [bos]                    as inputs: the last token of a
        c  -  -  -                         document is a target only
"""

import numpy as np

from satjax import errors
from satjax.data.table import Table

Row = dict[str, np.ndarray]


class Rows:
  """Rows that cut documents where they end; see `rows`.

  Row i reads tokens[i * seq_len : (i + 1) * seq_len + 1], so that every token
  but the table's first is a target once. A remainder that fills no row is
  dropped.
  """

  num_cut = num_dropped = 0  # documents that are longer than a row

  def __init__(self, table: Table, seq_len: int):
    self.table = table
    self.seq_len = seq_len

  def __len__(self) -> int:
    return (len(self.table.tokens) - 1) // self.seq_len

  def __getitem__(self, row: int) -> Row:
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of a table with {len(self)} rows')
    first, last = row * self.seq_len, (row + 1) * self.seq_len
    ids = self.table.tokens[first : last + 1].astype(np.int32)
    # Documents that begin after the first token, up to the last one.
    begin, end = np.searchsorted(self.table.starts, (first + 1, last))
    inner = self.table.starts[begin:end] - first
    segments = np.ones(self.seq_len, np.int32)
    segments[inner] += 1
    segments = np.cumsum(segments) - np.arange(self.seq_len)
    origins = np.concatenate(([0], inner)).astype(np.int32)
    positions = np.arange(self.seq_len, dtype=np.int32) - origins[segments - 1]
    return {
      'tokens': ids[:-1],
      'targets': ids[1:],
      'positions': positions,
      'segments': segments.astype(np.int32),
      'weights': self.table.weights(first + 1, last + 1),
    }


class PackedRows:
  """Rows of whole documents, by best fit; see `rows`.

  A document of n tokens takes n - 1 places: its last token is a target only.

  Attributes:
    num_cut: documents longer than a row, of which it has the beginning.
    num_dropped: those that were left out instead.
  """

  def __init__(self, table: Table, seq_len: int, too_long: str):
    self.table = table
    self.seq_len = seq_len
    ends = np.append(table.starts[1:], len(table.tokens))
    places = ends - table.starts - 1
    is_long = places > seq_len
    taken = np.flatnonzero(~is_long if too_long == 'drop' else places > 0)
    self.num_cut = int(is_long[taken].sum())
    self.num_dropped = int(is_long.sum()) - self.num_cut
    self._places = np.minimum(places, seq_len)
    self._documents = _pack(taken, self._places, seq_len)

  def __len__(self) -> int:
    return len(self._documents)

  def __getitem__(self, row: int) -> Row:
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of {len(self)} packed rows')
    values = {
      name: np.zeros(self.seq_len, np.int32)
      for name in ('tokens', 'targets', 'positions', 'segments')
    }
    values['weights'] = np.zeros(self.seq_len, np.float32)
    at = 0
    for number, document in enumerate(self._documents[row], 1):
      size, first = self._places[document], self.table.starts[document]
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

  def element(number):
    return {'document': np.full(places[number], number, np.int32)}

  numbered = grain.MapDataset.source(documents).map(element)
  packed = grain.experimental.BestFitPackIterDataset(
    # Threads would only wait for each other.
    numbered.to_iter_dataset(grain.ReadOptions(num_threads=0)),
    length_struct={'document': seq_len},
    num_packing_bins=64,
  )
  return [_runs(row) for row in packed]


def _runs(row):
  numbers = row['document'][row['document_segment_ids'] > 0]
  return numbers[np.flatnonzero(np.diff(numbers, prepend=-1))]


def as_one(row: Row) -> Row:
  """The row as one sequence (`data.attend='row'`), whatever is in it."""
  positions = np.arange(len(row['tokens']), dtype=np.int32)
  row = {**row, 'positions': positions}
  del row['segments']
  return row


def rows(
  table: Table,
  seq_len: int,
  packing: str = 'concat_then_split',
  too_long: str = 'cut',
) -> Rows | PackedRows:
  """A sequence that computes a row when asked for it.

  Args:
    table: at least one row long.
    seq_len: T, tokens in a row.
    packing: 'concat_then_split', documents end to end, cut where rows end; or
      'best_fit', whole documents.
    too_long: what 'best_fit' does with documents longer than a row: 'cut' or
      'drop' them.

  Returns:
    A sequence of dicts with keys, all [T] and int32 but for weights:
      tokens, targets: ids; a target is the token after its own.
      positions: from 0 at the start of the row and of every document.
      segments: number of the document inside the row, from 1; 0: nothing.
      weights: float32, 0 where the target is not learned: the begin of a
        document, which nothing before it foretells, or part of a prompt.

  Raises:
    DataError: the table is shorter than one row, its first prompt longer than
      all of its rows, or no document is whole.
  """
  if packing == 'best_fit':
    return _packed(table, seq_len, too_long)
  num_tokens = len(table.tokens)
  if num_tokens < seq_len + 1:
    raise errors.DataError(
      f'{table.name} has {num_tokens} tokens in {len(table.starts)} documents;'
      f' a row needs data.seq_len + 1 = {seq_len + 1}; shorten data.seq_len, or'
      ' give this split more text (data.held_out and data.test move documents)'
    )
  cut = Rows(table, seq_len)
  if table.first_target > len(cut) * seq_len:
    raise errors.DataError(
      f'{table.name}: its first prompt has {table.first_target - 1} tokens, and'
      f' no answer falls into its {len(cut)} rows of data.seq_len {seq_len};'
      ' shorten the prompt, or give this split more pairs'
    )
  return cut


def _packed(table, seq_len, too_long):
  packed = PackedRows(table, seq_len, too_long)
  if packed.num_cut + packed.num_dropped == len(table.starts):
    raise errors.DataError(
      f'{table.name}: all of its {len(table.starts)} documents are longer than'
      f' data.seq_len {seq_len}, so that none would be learned to its end;'
      " raise data.seq_len, or use data.packing='concat_then_split'"
    )
  return packed
