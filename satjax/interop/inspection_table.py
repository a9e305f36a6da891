"""What `inspect` found, as tables on a console."""

from rich import console as rich_console
from rich import table as rich_table
from rich import text as rich_text

from satjax.interop import checksums
from satjax.interop.inspection import Inspection

_WIDTH = 200  # characters, where no terminal says; a checksum stays whole


def show(inspection: Inspection) -> None:
  """Prints the facts, the files and the tensors on stdout."""
  console = rich_console.Console(highlight=False)
  if not console.is_terminal:
    console.width = _WIDTH
  for table in (_facts(inspection), _files(inspection), _tensors(inspection)):
    if table.row_count:
      console.print(table)
      console.print()
  console.print(_verdict(inspection))


def _verdict(inspection: Inspection) -> str:
  if count := len(inspection.problems):
    return f'{count} problem{"s" if count > 1 else ""}'
  if inspection.has_checksums:
    return f'whole: every file of {checksums.FILE} is as it was written'
  return (
    f'there is no {checksums.FILE}, and so nothing to compare the checksums'
    ' with; headers and shapes are as expected'
  )


def _facts(inspection: Inspection) -> rich_table.Table:
  table = _table('', '')
  table.show_header = False
  for name, value in inspection.facts.items():
    table.add_row(name, _plain(value))
  return table


def _files(inspection: Inspection) -> rich_table.Table:
  table = _table('file', 'bytes', checksums.ALGORITHM, '')
  table.columns[1].justify = 'right'
  for file in inspection.files:
    table.add_row(
      _plain(file.name), f'{file.num_bytes:,}', file.checksum, file.verdict
    )
  return table


def _tensors(inspection: Inspection) -> rich_table.Table:
  table = _table('tensor', 'shape', 'dtype', 'count')
  table.columns[3].justify = 'right'
  for kind in inspection.tensors:
    shape = ' x '.join(map(str, kind.shape))
    table.add_row(_plain(kind.name), shape, kind.dtype, f'{kind.count}')
  return table


def _table(*headers: str) -> rich_table.Table:
  table = rich_table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
  for header in headers:
    table.add_column(header, overflow='fold')
  return table


def _plain(value: str) -> rich_text.Text:
  """No markup, and nothing that would steer a terminal."""
  return rich_text.Text(value if value.isprintable() else ascii(value))
