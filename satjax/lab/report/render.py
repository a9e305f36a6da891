"""Pictures as SVG inside of a page, and as files.

A page shows each panel as an SVG of its own, so that a narrow screen can stack
them; a file has them in one. matplotlib is used without pyplot: no window, no
display, no state between calls. Equal pictures give equal bytes.
"""

from collections.abc import Mapping
import html
import io
import os
import pathlib
from typing import Any

from satjax import errors, files
from satjax.lab.report import figures

_DPI = 100
_PALETTE = 256  # colours of a PNG
_NARROWEST = 6.4  # inches, of a file
# Of a marker in the legend of a page, 10 wide, around (14, 6).
_MARKS = {
  'o': 'M14 1.5a4.5 4.5 0 1 0 .01 0z',
  's': 'M10 2h8v8h-8z',
  '^': 'M14 1l5 9.5h-10z',
  'D': 'M14 .5l5.5 5.5-5.5 5.5-5.5-5.5z',
  'v': 'M14 11l5-9.5h-10z',
  'P': 'M12 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z',
  'X': 'M11 1l3 2.5 3-2.5 2 2-2.5 3 2.5 3-2 2-3-2.5-3 2.5-2-2 2.5-3-2.5-3z',
}
_DASHES = {'-': '', '--': '6 3', ':': '2 2', '-.': '6 2 2 2'}


def html_picture(picture: figures.Picture, prefix: str, level: int) -> str:
  """A section: heading, note, panels, legend.

  Args:
    picture: to draw.
    prefix: of ids, which have to be unique in a page.
    level: of the heading.

  Raises:
    ConfigError: matplotlib is not installed.
  """
  title = html.escape(picture.title)
  panels = ''.join(
    f'<div style="flex: {panel.width:g} 1 {88 * panel.width:g}px; max-width:'
    f' {110 * panel.width:g}px">{_inline(panel, title, f"{prefix}-{number}-")}'
    '</div>\n'
    for number, panel in enumerate(picture.panels)
  )
  keys = ''.join(
    f'<li>{_swatch(key)} {html.escape(key.label)}</li>'
    for key in picture.legend
  )
  legend = f'<ul class="legend">{keys}</ul>' if keys else ''
  return (
    f'<section class="picture"><h{level}>{title}</h{level}>'
    f'<p>{html.escape(picture.note)}</p>{legend}<div class="panels">\n{panels}'
    '</div></section>\n'
  )


def _swatch(key: figures.Key) -> str:
  paths = ''
  colour = key.colour.replace(figures.INK, 'currentColor')
  if key.dash:
    dashes = _DASHES[key.dash]
    paths += (
      f'<path d="M0 6h28" stroke="{colour}" stroke-width="2"'
      + (f' stroke-dasharray="{dashes}"' if dashes else '')
      + '/>'
    )
  if key.marker:
    paths += (
      f'<path d="{_MARKS[key.marker]}" fill="{colour}" stroke="currentColor"'
      ' stroke-width=".7"/>'
    )
  return f'<svg viewBox="0 0 28 12" aria-hidden="true">{paths}</svg>'


def _need_matplotlib() -> None:
  """Raises ConfigError where matplotlib is not installed."""
  try:
    import matplotlib  # noqa: F401
  except ImportError as error:
    raise errors.ConfigError(
      'the plots of a report need matplotlib, which is not installed; run'
      " pip install 'satjax[viz]'"
    ) from error


def _settings() -> dict[str, Any]:
  """Of matplotlib."""
  inked = ('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color')
  lines = ('axes.edgecolor', 'grid.color')
  off = ('axes.spines.top', 'axes.spines.right', 'legend.frameon')
  return {
    **dict.fromkeys(inked, figures.INK),
    **dict.fromkeys(lines, figures.GRID),
    **dict.fromkeys((*off, 'text.parse_math'), False),
    **dict.fromkeys(('axes.grid', 'axes.axisbelow'), True),
    'axes.facecolor': 'none',
    'axes.titlesize': 'medium',
    'font.family': 'DejaVu Sans',  # comes with matplotlib
    'font.size': 9,
    'image.aspect': 'auto',
    'image.interpolation': 'nearest',
    'svg.hashsalt': 'satjax',
  }


def _inline(panel: figures.Panel, label: str, prefix: str) -> str:
  """A panel as SVG for HTML, whose ink and grid take the colours of the page.

  Args:
    panel: to draw.
    label: for who cannot see it; escaped.
    prefix: of its ids, which have to be unique in a page.

  Raises:
    ConfigError: matplotlib is not installed.
  """
  _need_matplotlib()
  import matplotlib
  from matplotlib import figure as figure_lib

  # Text stays text: smaller, and it can be searched and read aloud.
  with matplotlib.rc_context({**_settings(), 'svg.fonttype': 'none'}):
    fig = figure_lib.Figure((panel.width, panel.height), layout='constrained')
    panel.draw(fig.subplots())
    text = _svg(fig, transparent=True)
  head, _, body = text[text.index('<svg') :].partition('>')
  box = next(word for word in head.split('"') if word.startswith('0 0 '))
  body = body.replace('\n', ' ').replace("'DejaVu Sans'", 'sans-serif')
  for old, new in {
    'id="': f'id="{prefix}',
    'href="#': f'href="#{prefix}',
    'url(#': f'url(#{prefix}',
    figures.INK: 'currentColor',
    figures.GRID: 'var(--line)',
  }.items():
    body = body.replace(old, new)
  return f'<svg role="img" aria-label="{label}" viewBox="{box}">{body.strip()}'


def _svg(fig: Any, **options: Any) -> str:
  stream = io.StringIO()
  nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
  fig.savefig(stream, format='svg', metadata=nothing, **options)
  return stream.getvalue()


def save(
  pictures: Mapping[str, figures.Picture], directory: str | os.PathLike
) -> list[pathlib.Path]:
  """Writes pictures as PNG and SVG, on white; returns their paths.

  Args:
    pictures: by name of the file, without its end.
    directory: made where it is not there.

  Raises:
    ConfigError: matplotlib is not installed.
    StorageError: a file that cannot be written.
  """
  _need_matplotlib()
  import matplotlib

  directory = pathlib.Path(directory)
  paths = []
  for name, picture in pictures.items():
    # Glyphs as paths: a file looks the same whatever fonts there are.
    with matplotlib.rc_context({**_settings(), 'svg.fonttype': 'path'}):
      fig = _compose(picture)
      contents = {'png': _png(fig), 'svg': _svg(fig).encode()}
    for end, content in contents.items():
      paths.append(directory / f'{name}.{end}')
      write(paths[-1], content)
  return paths


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file as a whole; raises StorageError."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, content)
  except OSError as error:
    raise errors.StorageError(
      f'cannot write {path}: {error.strerror}; choose another file'
    ) from error


def _compose(picture: figures.Picture) -> Any:
  """One figure of all panels, at most two across, with the legend below."""
  from matplotlib import figure as figure_lib
  from matplotlib import lines

  panels = picture.panels
  across = min(2, len(panels))
  rows = [panels[at : at + across] for at in range(0, len(panels), across)]
  tall = [max(panel.height for panel in row) for row in rows]
  width = max(_NARROWEST, *(sum(p.width for p in row) for row in rows))
  longest = max((len(key.label) for key in picture.legend), default=1)
  columns = max(1, int(width / (0.08 * longest + 0.6)))
  legend = -(-len(picture.legend) // columns) * 0.19
  size = (width, sum(tall) + legend + 0.2)
  fig = figure_lib.Figure(size, layout='constrained', facecolor='white')
  grid = fig.subplots(len(rows), across, squeeze=False, height_ratios=tall)
  for axes, panel in zip(grid.flat, panels):
    panel.draw(axes)
  for axes in grid.flat[len(panels) :]:
    axes.set_axis_off()
  fig.suptitle(picture.title)
  if picture.legend:
    fig.legend(
      [
        lines.Line2D(
          [],
          [],
          color=key.colour,
          linestyle=key.dash or 'none',
          marker=key.marker or 'none',
          markeredgecolor=figures.INK,
          markeredgewidth=0.6,
          linewidth=2,
        )
        for key in picture.legend
      ],
      [' ' + key.label for key in picture.legend],  # a first _ would hide it
      loc='outside lower center',
      ncols=min(columns, len(picture.legend)),
    )
  return fig


def _png(fig: Any) -> bytes:
  from PIL import Image  # comes with matplotlib

  stream = io.BytesIO()
  fig.savefig(stream, format='png', dpi=_DPI, metadata={'Software': None})
  image = Image.open(stream).convert('RGB').quantize(_PALETTE)
  stream = io.BytesIO()
  image.save(stream, format='png', optimize=True)
  return stream.getvalue()
