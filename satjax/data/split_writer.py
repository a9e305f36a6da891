"""Writes the documents of one split, shard after shard.

What `finish` has done is on disk for good. What came after it is written again
by whoever goes on from there, and is the same.
"""

import dataclasses
from pathlib import Path

import numpy as np

from satjax import files
from satjax.data import blocks, manifest
from satjax.data.manifest import Shard, Split

STARTS = 'starts.npy'


class SplitWriter:
  """Writes below a folder.

  Attributes:
    num_tokens: that are not finished yet.
  """

  def __init__(self, folder: Path, dtype: np.dtype, split: Split):
    """Goes on after what a split has; it is changed by `finish`."""
    self._folder = folder
    self._dtype = dtype
    self._split = split
    self._shard = None
    self._starts, self._has_turns = [], False
    folder.mkdir(parents=True, exist_ok=True)

  @property
  def num_tokens(self) -> int:
    return self._shard.num_tokens if self._shard else 0

  def add(
    self,
    tokens: np.ndarray,
    lengths: np.ndarray,
    is_trained: np.ndarray | None,
  ) -> None:
    """Appends documents, end to end.

    Args:
      tokens: [n] of all.
      lengths: int64, of each in tokens, none of which is empty.
      is_trained: bool [n]; None: all but the first of each.
    """
    if not len(lengths):
      return
    if self._shard is None:
      self._shard = blocks.Writer(self._partial, self._dtype)
    starts = np.cumsum(lengths) - lengths
    before = self._split.num_tokens + self._shard.num_tokens
    self._starts.append(starts + before)
    if is_trained is None:
      is_trained = np.ones(len(tokens), bool)
      is_trained[starts] = False
    else:
      self._has_turns = True
    self._shard.add(tokens, is_trained)

  def finish(self) -> None:
    """Ends the shard; afterwards the split counts what it has."""
    split = self._split
    starts = np.concatenate([np.empty(0, np.int64), *self._starts])
    _append(self._folder / STARTS, starts, split.num_documents)
    if self._shard is not None:
      self._shard.close()
      files.sync(self._partial)
      path = self._folder / f'{len(split.shards):05}.array_record'
      self._partial.replace(path)
      written = dataclasses.asdict(manifest.file_of(path))
      shard = Shard(**written, num_tokens=self._shard.num_tokens)
      split.shards.append(shard)
      split.num_tokens += shard.num_tokens
      split.num_documents += len(starts)
      split.has_turns |= self._has_turns
    files.sync(self._folder)
    self._shard, self._starts = None, []

  def close(self) -> None:
    """Ends the shard, and the split."""
    self.finish()
    self._split.starts = manifest.file_of(self._folder / STARTS)

  @property
  def _partial(self) -> Path:
    return self._folder / 'shard.tmp'


def _append(path: Path, starts: np.ndarray, count: int) -> None:
  """Adds to an .npy file after `count` numbers; drops what came after them."""
  path.touch()
  with path.open('r+b') as file:
    # The header has room for any length: it is always as long.
    header = {'descr': '<i8', 'fortran_order': False}
    header['shape'] = (count + len(starts),)
    np.lib.format.write_array_header_1_0(file, header)
    file.seek(8 * count, 1)
    file.write(starts.astype('<i8').tobytes())
    file.truncate()
  files.sync(path)
