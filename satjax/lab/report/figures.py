"""Pictures: what they consist of, how they look, how they are written.

A page shows each panel as an SVG of its own, so that a narrow screen can stack
them; a file has them in one. matplotlib is used without pyplot: no window, no
display, no state between calls. Where it is not installed, ConfigError is
raised. Equal pictures give equal bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import html
import io
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from satjax import errors, files
from satjax.lab.report import table

INK, GRID = '#24292f', '#d3d8de'
EDGED = {'markeredgecolor': INK, 'markeredgewidth': 0.6}  # a marker
# Okabe and Ito (2008), told apart whatever one's colour vision, on white and on
# black; their yellow is too faint on white, and ink stands for their black.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
DASHES = ('-', '--', ':', '-.')
AS_IS = 'html'  # of a fenced block, which `page` does not escape
ABSCISSAS = {
  'step': 'steps',
  'tokens': 'tokens',
  'flops': 'executed FLOPs',
  'seconds': 'training time (s)',
}
_INKED = ('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color')
_OFF = ('axes.spines.top', 'axes.spines.right', 'legend.frameon')
_SETTINGS = {  # of matplotlib
  **dict.fromkeys(_INKED, INK),
  **dict.fromkeys(('axes.edgecolor', 'grid.color'), GRID),
  **dict.fromkeys((*_OFF, 'text.parse_math'), False),
  **dict.fromkeys(('axes.grid', 'axes.axisbelow'), True),
  'axes.facecolor': 'none',
  'axes.titlesize': 'medium',
  'font.family': 'DejaVu Sans',  # comes with matplotlib
  'font.size': 9,
  'image.aspect': 'auto',
  'image.interpolation': 'nearest',
  'path.simplify_threshold': 1.0,  # pixels that a long line may be off
  'svg.hashsalt': 'satjax',
}
_DPI = 100
_PALETTE = 256  # colours of a PNG
_NARROWEST = 6.4  # inches, of a file


class Key(NamedTuple):
  """An entry of a legend, and how what it names is drawn."""

  label: str
  colour: str
  dash: str = ''  # as matplotlib has it; '': no line
  marker: str = ''  # '': none

  @property
  def line(self) -> dict[str, str]:
    """What matplotlib is told of a line."""
    return {'color': self.colour, 'linestyle': self.dash}


class Panel(NamedTuple):
  """One drawing: `draw` is called with matplotlib axes; sizes are in inches."""

  draw: Callable[[Any], None]
  width: float = 4.6
  height: float = 2.9


class Picture(NamedTuple):
  """What it shows, how to read it, its panels, and the legend of all."""

  title: str
  note: str
  panels: Sequence[Panel]
  legend: Sequence[Key] = ()


def keys(names: Iterable[str]) -> dict[str, Key]:
  """Looks for some names: 24 lines, or 42 points, can be told apart."""
  colours, dashes, markers = len(COLOURS), len(DASHES), len(MARKERS)
  return {
    name: Key(
      name,
      COLOURS[number % colours],
      DASHES[number // colours % dashes],
      MARKERS[number % markers],
    )
    for number, name in enumerate(names)
  }


def label_axes(axes: Any, x: str, title: str = '', y: str = '') -> None:
  """Words and numbers along the axes of a drawing over `x`."""
  from matplotlib import ticker

  axes.set_title(short(title, 60))
  axes.set(xlabel=ABSCISSAS.get(x, x), ylabel=y)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(ticker.MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axis.set_major_formatter(ticker.EngFormatter(sep=''))


def frame_losses(axes: Any) -> None:
  """Frames lines so that 95 percent of each one's points are inside.

  The first steps, whose losses are far higher, may lie above it.
  """
  losses = (line.get_ydata() for line in axes.lines)
  ends = [np.percentile(y, (0, 95)) for y in losses if len(y)]
  if ends:
    margin = 0.05 * np.ptp(ends) + 1e-6
    axes.set_ylim(np.min(ends) - margin, np.max(ends) + margin)


def top(losses: Sequence[Mapping[str, float]]) -> float:
  """Where a frame ends, so that a few far too high do not flatten the rest."""
  means = [loss['mean'] for loss in losses]
  if len(means) < 4:
    return float('inf')
  low, high = np.percentile(means, (25, 75))
  return high + 3 * max(high - low, 1e-3)


def above(axes: Any, x: float, y: float, colour: str) -> None:
  """A triangle at the upper edge of a frame, for a point that lies above it."""
  edge = axes.get_xaxis_transform()
  axes.plot(x, 0.97, '^', color=colour, transform=edge, clip_on=False, **EDGED)
  words = {'fontsize': 'small', 'va': 'center', 'xycoords': edge}
  axes.annotate(
    f'{y:.3g}', (x, 0.97), (6, 0), textcoords='offset points', **words
  )


def short(name: str, limit: int) -> str:
  """A name that fits, cut at its start."""
  return name if len(name) <= limit else f'...{name[3 - limit :]}'


def parts(pictures: Iterable[Picture], prefix: str) -> Iterator[str]:
  """Parts of a Markdown page: headings, notes, and the panels as HTML.

  `prefix` is that of ids, which have to be unique in a page.
  """
  for number, picture in enumerate(pictures):
    title, panels = table.escape(picture.title), list(picture.panels)
    if picture.legend:
      panels.append(_legend_panel(picture.legend))
    label = html.escape(picture.title)
    shown = ''.join(
      _inline(panel, label, f'{prefix}-{number}-{at}-')
      for at, panel in enumerate(panels)
    )
    yield f'## {title}\n\n{table.escape(picture.note)}\n'
    yield as_is(f'<div class="panels">{shown}</div>')


def as_is(text: str) -> str:
  """HTML in a Markdown page, on one line, which nothing in it can end."""
  return f'```{AS_IS}\n{" ".join(text.split())}\n```\n'


def _legend(keys: Sequence[Key], width: float) -> tuple[dict[str, Any], float]:
  """What matplotlib is told of a legend, and how many inches it is high."""
  _matplotlib()
  from matplotlib import lines

  columns = max(1, int(width / (0.08 * max(len(k.label) for k in keys) + 0.6)))
  look = {**EDGED, 'lw': 2}
  handles = [
    lines.Line2D([], [], color=c, ls=ls or 'none', marker=m or 'none', **look)
    for _, c, ls, m in keys
  ]
  labels = [' ' + key.label for key in keys]  # a first _ would hide it
  told = {'handles': handles, 'labels': labels}
  told['ncols'] = min(columns, len(keys))
  return told, -(-len(keys) // columns) * 0.19


def _legend_panel(keys: Sequence[Key]) -> Panel:
  """A legend that a narrow screen stacks as it does the panels."""
  told, height = _legend(keys, Panel._field_defaults['width'])

  def draw(axes):
    axes.set_axis_off()
    axes.legend(**told, loc='upper left', borderaxespad=0)

  return Panel(draw, height=height + 0.2)


def _matplotlib() -> Any:
  return errors.import_optional('matplotlib', 'the plots of a report', 'viz')


def _inline(panel: Panel, label: str, prefix: str) -> str:
  """A panel as SVG for HTML, whose ink and grid take the colours of the page.

  `label` is for who cannot see it, `prefix` that of its ids.
  """
  matplotlib = _matplotlib()
  from matplotlib import figure as figure_lib

  # Text stays text: smaller, and it can be searched and read aloud.
  with matplotlib.rc_context({**_SETTINGS, 'svg.fonttype': 'none'}):
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
    INK: 'currentColor',
    GRID: 'var(--line)',
  }.items():
    body = body.replace(old, new)
  return (
    f'<div style="flex: {panel.width:g} 1 {88 * panel.width:g}px; max-width:'
    f' {110 * panel.width:g}px"><svg role="img" aria-label="{label}"'
    f' viewBox="{box}">{body.strip()}</div>\n'
  )


def _svg(fig: Any, **options: Any) -> str:
  stream = io.StringIO()
  nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
  fig.savefig(stream, format='svg', metadata=nothing, **options)
  return stream.getvalue()


def save(
  pictures: Mapping[str, Picture], directory: str | os.PathLike
) -> list[pathlib.Path]:
  """Writes pictures by their names as PNG and SVG, on white; returns paths."""
  matplotlib, paths = _matplotlib(), []
  for name, picture in pictures.items():
    # Glyphs as paths: a file looks the same whatever fonts there are.
    with matplotlib.rc_context({**_SETTINGS, 'svg.fonttype': 'path'}):
      fig = _compose(picture)
      contents = {'png': _png(fig), 'svg': _svg(fig).encode()}
    for end, content in contents.items():
      paths.append(pathlib.Path(directory) / f'{name}.{end}')
      files.save(paths[-1], content)
  return paths


def _compose(picture: Picture) -> Any:
  """One figure of all panels, at most two across, with the legend below."""
  from matplotlib import figure as figure_lib

  panels = picture.panels
  across = min(2, len(panels))
  rows = [panels[at : at + across] for at in range(0, len(panels), across)]
  tall = [max(panel.height for panel in row) for row in rows]
  width = max(_NARROWEST, *(sum(p.width for p in row) for row in rows))
  legend, below = _legend(picture.legend, width) if picture.legend else ({}, 0)
  size = (width, sum(tall) + below + 0.2)
  fig = figure_lib.Figure(size, layout='constrained', facecolor='white')
  grid = fig.subplots(len(rows), across, squeeze=False, height_ratios=tall)
  for axes, panel in zip(grid.flat, panels):
    panel.draw(axes)
  for axes in grid.flat[len(panels) :]:
    axes.set_axis_off()
  fig.suptitle(picture.title, wrap=True)
  if legend:
    fig.legend(**legend, loc='outside lower center')
  return fig


def _png(fig: Any) -> bytes:
  from PIL import Image  # comes with matplotlib

  stream = io.BytesIO()
  fig.savefig(stream, format='png', dpi=_DPI, metadata={'Software': None})
  image = Image.open(stream).convert('RGB').quantize(_PALETTE)
  stream = io.BytesIO()
  image.save(stream, format='png', optimize=True)
  return stream.getvalue()
