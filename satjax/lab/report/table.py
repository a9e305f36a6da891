"""A table of text, and the ways to write it down."""

from collections.abc import Sequence
import html
import re
import textwrap
from typing import NamedTuple

from satjax import console


class Table(NamedTuple):
  """Cells as text."""

  title: str  # heading
  columns: Sequence[str]  # heads; the first is that of the labels of the rows
  # A label and its cells. A label alone is a heading inside the table; one
  # cell where there are more columns goes across all of them.
  rows: Sequence[Sequence[str]]
  note: str = ''  # how to read it; may be empty
  prose: bool = False  # cells are sentences, not figures


def text(table: Table) -> str:
  """For a terminal; the title is the head of the labels, the note below."""
  head = [table.title, *table.columns[1:]]
  rows = [[' '.join(cell.split()) for cell in row] for row in table.rows]
  grid = [head, *(row for row in rows if len(row) == len(head))]
  first, *widths = (max(map(len, column)) for column in zip(*grid))
  lines = []
  for row in [head, *rows]:
    label, *cells = row
    if len(row) == len(head):
      cells = [cell.rjust(width) for cell, width in zip(cells, widths)]
    lines.append('  '.join([label.ljust(first), *cells]).rstrip())
  return '\n'.join([*lines, *textwrap.wrap(table.note, 80), ''])


def markdown(table: Table) -> str:
  """A table of GitHub's Markdown, without the title and the note."""
  rows = []
  for label, *cells in table.rows:
    label = escape(label) if cells else f'**{escape(label)}**'
    texts = ['<br>'.join(map(escape, cell.splitlines())) for cell in cells]
    empty = [''] * (len(table.columns) - 1 - len(cells))
    rows.append([label, *texts, *empty])
  heads = list(map(escape, table.columns))
  return console.markdown(heads, rows, right=not table.prose)


def section(table: Table) -> str:
  """The same with the title as a heading, and the note below."""
  title = table.title[:1].upper() + table.title[1:]
  note = f'\n{escape(table.note)}\n' if table.note else ''
  return f'## {escape(title)}\n\n{markdown(table)}{note}'


def escape(words: str) -> str:
  """Text that Markdown takes as it stands, on one line."""
  line = re.sub(r'([\\|*_`~\[\]])', r'\\\1', ' '.join(words.split()))
  # Neither a list nor a heading.
  line = re.sub(r'^(\d*)([-+#=.)])(?=[-#=]*( |$))', r'\1\\\2', line)
  return html.escape(line, quote=False)
