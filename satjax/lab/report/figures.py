"""What pictures of a report consist of, and how they look."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

INK, GRID = '#24292f', '#d3d8de'
# Okabe and Ito (2008), told apart whatever one's colour vision, on white and on
# black; their yellow is too faint on white, and ink stands for their black.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
DASHES = ('-', '--', ':', '-.')
ABSCISSAS = {
  'step': 'steps',
  'tokens': 'tokens',
  'flops': 'executed FLOPs',
  'seconds': 'training time (s)',
}


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
  """One drawing.

  Attributes:
    draw: called with matplotlib axes.
    width: inches.
    height: inches.
  """

  draw: Callable[[Any], None]
  width: float = 4.6
  height: float = 2.9


class Picture(NamedTuple):
  """What it shows, how to read it, its panels, and the legend of all."""

  title: str
  note: str
  panels: Sequence[Panel]
  legend: Sequence[Key] = ()


def key(label: str, row: int, column: int) -> Key:
  """A look by two coordinates: colour, and dash and marker."""
  return Key(
    label,
    COLOURS[row % len(COLOURS)],
    DASHES[column % len(DASHES)],
    MARKERS[column % len(MARKERS)],
  )


def keys(names: Iterable[str]) -> dict[str, Key]:
  """Looks for some names: 24 lines, or 42 points, can be told apart."""
  around = len(COLOURS)
  return {
    name: Key(
      name,
      COLOURS[number % around],
      DASHES[number // around % len(DASHES)],
      MARKERS[number % len(MARKERS)],
    )
    for number, name in enumerate(names)
  }


def lines(some: Iterable[Key]) -> list[Key]:
  """For a legend of lines without markers."""
  return [each._replace(marker='') for each in some]


def points(some: Iterable[Key]) -> list[Key]:
  """For a legend of markers without lines."""
  return [each._replace(dash='') for each in some]


def label_axes(axes: Any, x: str, title: str = '', y: str = '') -> None:
  """Words and numbers along the axes of a drawing over `x`."""
  from matplotlib import ticker

  axes.set_title(short(title, 60))
  axes.set(xlabel=ABSCISSAS.get(x, x), ylabel=y)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(ticker.MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axis.set_major_formatter(ticker.EngFormatter(sep=''))


def percent(axes: Any) -> None:
  """Shares up the axis."""
  axes.yaxis.set_major_formatter(lambda value, _: f'{100 * value:.4g}%')


def frame_losses(axes: Any, shown: float = 95) -> None:
  """Frames lines by what most of them is; first steps may lie above it.

  Args:
    axes: whose lines are drawn.
    shown: percent of the points of each line that are to be inside.
  """
  ends = [
    np.percentile(line.get_ydata(), (0, shown))
    for line in axes.lines
    if len(line.get_ydata())
  ]
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
  axes.plot(
    x,
    0.97,
    '^',
    transform=axes.get_xaxis_transform(),
    color=colour,
    markeredgecolor=INK,
    markeredgewidth=0.6,
    clip_on=False,
  )
  axes.annotate(
    f'{y:.3g}',
    (x, 0.97),
    (6, 0),
    xycoords=axes.get_xaxis_transform(),
    textcoords='offset points',
    fontsize='small',
    va='center',
  )


def short(name: str, limit: int) -> str:
  """A name that fits, cut at its start."""
  return name if len(name) <= limit else f'...{name[3 - limit :]}'
