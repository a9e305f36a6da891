"""Tokens on disk, of which any stretch is read at the cost of that stretch.

An ArrayRecord file holds blocks of as many tokens each; the last may be
shorter. A block is its tokens, and a bit for each: whether the loss counts it.
"""

from collections.abc import Iterator, Sequence
import functools
from pathlib import Path

import numpy as np

from satjax import errors

BLOCK_TOKENS = 8192
_CACHED_BLOCKS = 64
TOKENS, IS_TRAINED = 0, 1  # columns of a block


class BlockWriter:
  """Writes one file, of `num_tokens` so far."""

  def __init__(self, path: Path, dtype: np.dtype):
    from array_record.python import array_record_module

    self.num_tokens = 0
    self._file = array_record_module.ArrayRecordWriter(
      str(path), 'group_size:1'
    )
    self._tokens = np.empty(BLOCK_TOKENS, np.dtype(dtype).newbyteorder('<'))
    self._is_trained = np.empty(BLOCK_TOKENS, bool)

  def add(self, tokens: np.ndarray, is_trained: np.ndarray) -> None:
    """Appends tokens [n], and which of them are trained, bool [n]."""
    while len(tokens):
      begin = self.num_tokens % BLOCK_TOKENS
      size = min(BLOCK_TOKENS - begin, len(tokens))
      self._tokens[begin : begin + size] = tokens[:size]
      self._is_trained[begin : begin + size] = is_trained[:size]
      self.num_tokens += size
      if begin + size == BLOCK_TOKENS:
        self._write(BLOCK_TOKENS)
      tokens, is_trained = tokens[size:], is_trained[size:]

  def close(self) -> None:
    """Writes the last block, which may be shorter."""
    if rest := self.num_tokens % BLOCK_TOKENS:
      self._write(rest)
    self._file.close()

  def _write(self, size: int) -> None:
    bits = np.packbits(self._is_trained[:size])
    self._file.write(self._tokens[:size].tobytes() + bits.tobytes())


class Blocks:
  """Files one after the other; safe to be read by several threads."""

  def __init__(
    self, paths: Sequence[Path], sizes: Sequence[int], dtype: np.dtype
  ):
    """Takes the files for what they are said to be: `sizes` in tokens."""
    from array_record.python import array_record_data_source

    self.num_tokens = sum(sizes)
    self.dtype = np.dtype(dtype).newbyteorder('<')
    self._ends = np.cumsum(sizes, dtype=np.int64)
    counts = [-(-size // BLOCK_TOKENS) for size in sizes]
    self._first = np.cumsum([0, *counts])  # block of each file
    self._folder = paths[0].parent
    # A file whose number of records is named need not be opened to count them.
    self._records = array_record_data_source.ArrayRecordDataSource(
      [f'{path}[0:{count}]' for path, count in zip(paths, counts)]
    )
    self._block = functools.lru_cache(_CACHED_BLOCKS)(self._decoded)

  def stretches(
    self, first: int, last: int
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields tokens first to last, and whether they are trained, in parts."""
    while first < last:
      file = int(np.searchsorted(self._ends, first, side='right'))
      begin = int(self._ends[file - 1]) if file else 0
      block, offset = divmod(first - begin, BLOCK_TOKENS)
      left = int(self._ends[file]) - begin - block * BLOCK_TOKENS
      size = min(BLOCK_TOKENS, left)
      end = min(size, offset + last - first)
      found = self._block(int(self._first[file]) + block, size)
      yield tuple(array[offset:end] for array in found)
      first += end - offset

  def _decoded(self, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    record = self._records[number]
    num_bytes = size * self.dtype.itemsize
    expected = num_bytes + -(-size // 8)
    if len(record) != expected:
      raise errors.DataError(
        f'{self._folder}: block {number} has {len(record)} bytes, and not'
        f' {expected}; satjax prepare --verify says which file is damaged'
      )
    bits = np.frombuffer(record, np.uint8, offset=num_bytes)
    is_trained = np.unpackbits(bits, count=size).astype(bool)
    return np.frombuffer(record, self.dtype, size), is_trained


class Column:
  """An array of as many values as there are tokens, read by slices."""

  def __init__(self, blocks: Blocks, number: int):
    """Takes `TOKENS`, or `IS_TRAINED`: whether the loss counts each."""
    self._blocks = blocks
    self._number = number
    self.dtype = (blocks.dtype, np.dtype(bool))[number]

  def __len__(self) -> int:
    return self._blocks.num_tokens

  def __getitem__(self, index: slice) -> np.ndarray:
    first, last, step = index.indices(len(self))
    assert step == 1, 'only stretches can be read'
    parts = self._blocks.stretches(first, last)
    found = [part[self._number] for part in parts]
    return np.concatenate([np.empty(0, self.dtype), *found])
