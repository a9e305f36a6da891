"""Rows of the two tables of words: more of them, and those never trained."""

from collections.abc import Iterator, Sequence
import os
from pathlib import Path

from absl import logging
import numpy as np

from satjax import errors, hub
from satjax.config.run import Config
from satjax.data import tokenizers
from satjax.data.documents import Document, Message
from satjax.data.encode import Encoder
from satjax.interop import huggingface, llama, weights
from satjax.model import lora

_ZERO = 1e-16  # the largest number of a row that nobody trained
_ALIKE = 1e-2  # the largest difference of rows that are, of their largest


def num_rows(rows: int, asked: int, multiple: int, tokenizer: str) -> int:
  """How many rows the tables have in a run: one for each token, at least.

  Args:
    rows: that the model has.
    asked: `model.vocab_size`, which counts where tokens have no row.
    multiple: `model.vocab_multiple`.
    tokenizer: as a configuration names it.
  """
  if not multiple and asked <= rows:
    return rows
  tokens = tokenizers.get_tokenizer(tokenizer).vocab_size
  if multiple:
    return -(-max(rows, tokens) // multiple) * multiple
  return asked if asked >= tokens > rows else rows


def warn_of_markers(config: Config, encoder: Encoder) -> None:
  """Warns of tokens that chats need, and that the base has never trained.

  Raises:
    DataError: `model.init_from` cannot be used.
  """
  directory = config.model.init_from
  missing = untrained(hub.local(directory), encoder)
  if not missing:
    return
  names = {encoder.tokenizer.token(i) for ids in missing.values() for i in ids}
  remedy = 'they begin to learn here, and need many examples'
  adapted = lora.paths(config.lora, config.model)
  if config.lora.is_on and not missing.keys() <= {*adapted}:
    remedy = (
      'adapters leave them so, unless config.lora.targets has'
      f' {" and ".join(map(repr, missing))}; or choose a config.data.template'
      ' without them'
    )
  logging.warning(
    f'Chats of template {encoder.template!r} need the markers'
    f' {", ".join(sorted(names))}, whose rows in {directory} were never trained'
    f' (zero, or all alike): {remedy}'
  )


def untrained(
  directory: str | os.PathLike, encoder: Encoder
) -> dict[str, list[int]]:
  """Special tokens of a chat without a row of their own, by table.

  In the embedding all tokens of a chat count; in the output those it learns.
  """
  chat = Message('user', 'a'), Message('assistant', 'b')
  try:
    (found,) = encoder([Document('chat', '', messages=chat)])
  except errors.DataError:  # which says nothing of the chats of the run
    return {}
  is_special = encoder.tokenizer.id_bytes[found.tokens] == 0
  needed = {
    'embed': found.tokens[is_special],
    'unembed': found.tokens[is_special & found.is_trained],
  }
  config, headers = huggingface.check(directory)
  rows = {}
  for path in ('embed',) if config.tied else needed:
    header = headers[llama.TENSORS[path][0]]
    table = weights.read_tensor(Path(directory), header)
    ids = sorted({*map(int, needed[path])})
    if empty := [*_alike(table, ids)]:
      rows[path] = empty
  return rows


def _alike(table: np.ndarray, ids: Sequence[int]) -> Iterator[int]:
  """Those whose row is zero, or that of another, or the mean of all.

  The mean, for it is what libraries give to rows that they add.
  """
  mean = table.mean(axis=0, dtype=np.float64)
  rows = [table[i].astype(np.float64) if i < len(table) else mean for i in ids]
  for place, (number, row) in enumerate(zip(ids, rows)):
    others = [mean, *rows[:place], *rows[place + 1 :]]
    largest = np.abs(row).max()
    if largest <= _ZERO or any(
      np.abs(row - other).max() <= _ALIKE * largest for other in others
    ):
      yield number
