"""Rows as a model gets them: what is read, and what is learned.

The last line of defence against a template that trains on prompts, an answer
that never ends, or packing that cuts what it should not.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import itertools
import json
import os
import pathlib

import numpy as np
from rich.console import Console
from rich.text import Text

from satjax import errors
from satjax.config.run import Config
from satjax.data import pipeline, tokenizers
from satjax.data.rows import Row

_LEARNED, _READ, _EMPTY = 'bold green', 'bright_black', 'red'
# Lines are broken where the screen ends, whatever its width.
_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>satjax preview</title>
<pre style="white-space: pre-wrap; overflow-wrap: anywhere">{code}</pre>
</html>
"""


def preview(
  config: Config,
  *,
  step: int = 0,
  num_rows: int = 4,
  out: str | os.PathLike | None = None,
  as_json: bool = False,
) -> None:
  """Prints the rows of a batch, and counts of each source.

  Args:
    config: of the run; its growth is not looked at.
    out: HTML file to write the same to.
    as_json: prints one object a row instead, as `described` has it.

  Raises:
    ConfigError: there is no such batch.
    DataError: as `pipeline.make_batches`.
  """
  if step < 0 or num_rows < 1:
    raise errors.ConfigError(
      f'--batch={step} --rows={num_rows}; batches count from 0, and one row is'
      ' the least to show'
    )
  tokenizer = tokenizers.get_tokenizer(config.data.tokenizer)
  batches = pipeline.make_batches(
    # Documents are shown as such, whatever a token sees of them.
    dataclasses.replace(config.data, attend='document'),
    split='train',
    batch_size=config.train.batch_size,
    tokenizer=tokenizer,
    vocab_size=config.model.vocab_size,
  )
  batch = batches[step]
  rows = [
    {name: values[i] for name, values in batch.items()}
    for i in range(min(num_rows, config.train.batch_size))
  ]
  if as_json:
    for number, row in enumerate(rows):
      found = {'batch': step, 'row': number} | described(row, tokenizer)
      print(json.dumps(found))  # in ASCII: U+2028 ends lines for some
    return
  _show(config, batches, step, rows, tokenizer, out)


def _show(config, batches, step, rows, tokenizer, out):
  """Prints counts and rows, and writes them to the file `out`, if any."""
  console = Console(
    record=out is not None, highlight=False, markup=False, soft_wrap=True
  )
  console.print(_counts(batches, config.train.batch_size))
  console.print(
    Text.assemble(
      ('learned', _LEARNED), '  ', ('read only', _READ), '  ', ('empty', _EMPTY)
    )
  )
  for number, row in enumerate(rows):
    console.print(
      f'\nbatch {step}, row {number}: {row["segments"].max()} documents\n'
      f'{np.sum(row["weights"] > 0)} of {len(row["weights"])} targets learned',
      style='bold',
    )
    console.print(render(row, tokenizer))
  if out is not None:
    page = console.export_html(inline_styles=True, code_format=_PAGE)
    pathlib.Path(out).write_text(page, encoding='utf-8')
    console.print(f'wrote {out}')


def render(row: Row, tokenizer: tokenizers.Tokenizer) -> Text:
  """A row as coloured text; a token without text is shown by its name."""
  text = Text()
  for shown, is_learned, has_text in _runs(_tokens(row), tokenizer):
    style = _LEARNED if is_learned else _READ
    text.append(shown, style if has_text else f'reverse {style}')
  empty = int(np.sum(row['segments'] == 0))
  if empty:
    text.append(f'\n{empty} empty places', _EMPTY)
  return text


def _runs(
  tokens: Iterable[tuple[int, bool]], tokenizer: tokenizers.Tokenizer
) -> Iterator[tuple[str, bool, bool]]:
  """Yields what is shown of tokens, if it is learned, and if it is text."""

  def kind(token: tuple[int, bool]) -> tuple[bool, bool]:
    number, is_learned = token
    return is_learned, bool(tokenizer.id_bytes[number] > 0)

  for (is_learned, has_text), run in itertools.groupby(tokens, kind):
    ids = [number for number, _ in run]
    named = '' if has_text else ''.join(map(tokenizer.token, ids))
    yield named or tokenizer.decode(ids), is_learned, has_text


def described(row: Row, tokenizer: tokenizers.Tokenizer) -> dict[str, object]:
  """A row: its ids, 1 where one is learned, and its text.

  The text is that of `render`, with the names of special tokens.
  """
  tokens = list(_tokens(row))
  return {
    'ids': [number for number, _ in tokens],
    'learned': [int(is_learned) for _, is_learned in tokens],
    'text': ''.join(shown for shown, *_ in _runs(tokens, tokenizer)),
  }


def _tokens(row: Row) -> Iterator[tuple[int, bool]]:
  """The tokens of a row in order, and whether the loss counts them.

  The last target of a document that the row packs whole is no input.
  """
  segments, weights = row['segments'], row['weights'] > 0
  for at in np.flatnonzero(segments):
    follows = at > 0 and segments[at - 1] == segments[at]
    yield int(row['tokens'][at]), bool(follows and weights[at - 1])
    is_last = at + 1 == len(segments) or segments[at + 1] != segments[at]
    if is_last and weights[at]:
      yield int(row['targets'][at]), True


def _counts(batches: pipeline.Batches, batch_size: int) -> str:
  """What each source has, and how much of it is learned."""
  lines = [f'batches of {batch_size} rows']
  for rows in batches.sources:
    lines += [
      rows.table.name,
      f'  {len(rows.table.starts):,} documents: {rows.num_cut:,} cut,'
      f' {rows.num_dropped:,} left out',
      f'  {len(rows.table.tokens):,} tokens in {len(rows):,} rows',
    ]
  return '\n'.join(lines)
