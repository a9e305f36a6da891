"""Rows of a source: found, tokenised or opened, and checked."""

from typing import Any, NamedTuple

from absl import logging
import numpy as np

from satjax import errors
from satjax.config.data import DataConfig
from satjax.data import prepared, tokenizers
from satjax.data import rows as rows_lib
from satjax.data import table as tables
from satjax.data.encode import Encoder


class Source(NamedTuple):
  """What a source of a mixture has.

  Attributes:
    name: of source and split.
    num_documents, num_tokens, num_rows: once each.
    num_cut, num_dropped: documents longer than a row, where rows hold whole
      documents.
  """

  name: str
  num_documents: int
  num_tokens: int
  num_rows: int
  num_cut: int
  num_dropped: int


class CheckedRows:
  """Rows whose ids are within the vocabulary.

  JAX clamps an index that is out of range, so that a wrong id would train the
  last row of the embedding without an error.
  """

  def __init__(self, rows: Any, vocab_size: int, attend: str):
    self.rows = rows
    self.vocab_size = vocab_size
    self.attend = attend

  @property
  def source(self) -> Source:
    table, rows = self.rows.table, self.rows
    return Source(
      table.name,
      len(table.starts),
      len(table.tokens),
      len(rows),
      rows.num_cut,
      rows.num_dropped,
    )

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    values = self.rows[row]
    for key in ('tokens', 'targets'):
      low, high = values[key].min(), values[key].max()
      if low < 0 or high >= self.vocab_size:
        raise errors.DataError(
          f'{self.rows.table.name}, row {row}: token id'
          f' {low if low < 0 else high} is outside of the vocabulary, 0 to'
          f' {self.vocab_size - 1}; the tokenizer must fit model.vocab_size'
        )
    return rows_lib.as_one(values) if self.attend == 'row' else values


def parts(
  data_config: DataConfig,
  source: str,
  split: str,
  tokenizer: tokenizers.Tokenizer,
  vocab_size: int,
) -> list[tuple[CheckedRows, float]]:
  """Rows of a source, in as many parts as it was prepared from, and shares."""
  c = data_config
  if source.startswith('tokens:'):
    found = prepared.open_tables(
      source.removeprefix('tokens:'),
      split,
      tokenizer,
      template=c.template,
      held_out=c.held_out,
      test=c.test,
    )
  else:
    table = tables.build_table(
      source,
      Encoder(tokenizer, c.template),
      split=split,
      held_out=c.held_out,
      test=c.test,
      columns=c.columns,
    )
    found = [(table, 1.0)]
  rows_of = []
  for table, share in found:
    rows = rows_lib.rows(table, c.seq_len, c.packing, c.too_long)
    if rows.num_cut or rows.num_dropped:
      logging.warning(
        '%s: %d of %d documents are longer than data.seq_len %d and were cut,'
        ' %d were left out',
        table.name,
        rows.num_cut,
        len(table.starts),
        c.seq_len,
        rows.num_dropped,
      )
    rows_of.append((CheckedRows(rows, vocab_size, c.attend), share))
  return rows_of
