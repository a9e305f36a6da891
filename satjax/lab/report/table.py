"""A table of text, and the ways to write it down."""

from collections.abc import Sequence
import html as html_lib
import re
from typing import NamedTuple

from satjax import console

# Verdicts that a page tints; the word says it, too.
_TINTS = {
  **dict.fromkeys(('holds', 'better'), 'good'),
  **dict.fromkeys(('does not hold', 'worse'), 'bad'),
}


class Table(NamedTuple):
  """Cells as text."""

  title: str  # heading
  columns: Sequence[str]  # heads; the first is that of the labels of the rows
  # A label and its cells. A label alone is a heading inside the table; one
  # cell where there are more columns goes across all of them.
  rows: Sequence[Sequence[str]]
  note: str = ''  # how to read it; may be empty
  prose: bool = False  # cells are sentences, not figures


def drop_empty(table: Table) -> Table:
  """Without columns in which no row says anything."""
  used = {
    number
    for row in table.rows
    for number, cell in enumerate(row)
    if number == 0 or cell and len(row) == len(table.columns)
  }
  return table._replace(
    columns=[c for n, c in enumerate(table.columns) if n in used],
    rows=[
      [c for n, c in enumerate(row) if n in used or len(row) == 2]
      for row in table.rows
    ],
  )


def text(table: Table) -> str:
  """For a terminal; the title is the head of the labels."""
  if table.prose:
    return _sentences(table)
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
  return '\n'.join([*lines, ''])


def _sentences(table: Table) -> str:
  """A paragraph a row: sentences do not fit side by side."""
  lines = [table.title]
  for label, *cells in table.rows:
    lines.append(f'  {label}')
    for column, cell in zip(table.columns[1:], cells):
      if cell:
        lines.append(f'    {column}: {" ".join(cell.split())}')
  return '\n'.join([*lines, ''])


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


def escape(words: str) -> str:
  """Text that Markdown takes as it stands, on one line."""
  line = re.sub(r'([\\|*_`\[\]])', r'\\\1', ' '.join(words.split()))
  return html_lib.escape(line, quote=False)


def html(table: Table, level: int = 3) -> str:
  """A section; verdicts carry a class of their own, so a page may tint them."""
  esc = html_lib.escape
  heads = ''.join(f'<th scope="col">{esc(c)}</th>' for c in table.columns[1:])
  rows, across = [], len(table.columns) - 1
  for label, *cells in table.rows:
    if not cells:
      rows.append(
        '<tr class="group"><th scope="colgroup"'
        f' colspan="{across + 1}"><span>{esc(label)}</span></th></tr>'
      )
      continue
    wide = f' class="across" colspan="{across}"'
    tail = ''.join(
      f'<td{_tint(cell) if len(cells) == across else wide}>{esc(cell)}</td>'
      for cell in cells
    )
    rows.append(f'<tr><th scope="row">{esc(label)}</th>{tail}</tr>')
  note = f'<p>{esc(table.note)}</p>' if table.note else ''
  body = '\n'.join(rows)
  return (
    f'<section><h{level}>{esc(table.title)}</h{level}>{note}<div class="wide"'
    f' tabindex="0"><table{" class=prose" if table.prose else ""}>\n<thead><tr>'
    f'<th scope="col">{esc(table.columns[0])}</th>{heads}</tr></thead>\n<tbody>'
    f'\n{body}\n</tbody></table></div></section>\n'
  )


def _tint(cell: str) -> str:
  tint = _TINTS.get(cell.partition(':')[0])
  return f' class="{tint}"' if tint else ''
