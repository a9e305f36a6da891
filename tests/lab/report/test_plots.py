"""Pictures of results: what they show, told apart, as files."""

import io

import numpy as np
from PIL import Image
import pytest

from satjax import errors
from satjax.lab.report import figures, plots, results
from tests.lab.report import samples


def draw(panel):
  """The axes after a panel is drawn."""
  from matplotlib import figure

  axes = figure.Figure().subplots()
  panel.draw(axes)
  return axes


def picture(value, title):
  found = {p.title: p for p in plots.pictures(results.check(value))}
  return found[title]


def points(axes):
  """Ends of single points, without lines and error bars."""
  lines = [line.get_xydata() for line in axes.lines]
  return [tuple(xy[0]) for xy in lines if len(xy) == 1]


def test_the_reference_is_a_line_and_arms_are_points():
  axes = draw(picture(samples.sat(), 'Loss and cost').panels[0])
  (line,) = (x for x in axes.lines if x.get_markevery())
  xy = line.get_xydata()
  ends = [(6e11, 2.12), (12e11, 2.02)]
  np.testing.assert_allclose(xy[line.get_markevery()], ends)
  # As the engine reads it off: half-way in the logarithm of the cost.
  middle = np.interp(6e11 * 2**0.5, *xy.T)
  np.testing.assert_allclose(middle, 2.07, atol=1e-4)
  found = points(axes)
  assert (400 * 3e9 * 0.7, 2.04) in [(round(x), y) for x, y in found]
  assert len(found) == 3  # no point for the arm that failed
  assert axes.get_xlabel() == 'executed FLOPs'


def test_lengths_of_one_arm_are_a_line():
  central, *others = plots.pictures(samples.by_length())
  assert [key.label for key in central.legend[1:]] == ['muon', 'slow']
  axes = draw(central.panels[1])
  curve, *_ = (x for x in axes.lines if len(x.get_xydata()) == 3)
  np.testing.assert_allclose(
    curve.get_xydata(), [(10, 2.12), (20, 1.92), (40, 1.9)]
  )
  assert [each.title for each in others] == ['Loss by arm']


def test_there_is_no_panel_of_time_where_nothing_is_timed():
  assert len(picture(samples.sat(), 'Loss and cost').panels) == 2
  assert len(picture(samples.growth(), 'Loss and cost').panels) == 1


def test_a_point_far_above_does_not_flatten_the_others():
  arms = {f'a{n}': samples.arm(2.0 + 0.01 * n) for n in range(5)}
  arms['far'] = samples.arm(9.0)
  axes = draw(picture(samples.result(arms), 'Loss and cost').panels[0])
  assert axes.get_ylim()[1] < 2.5
  assert [text.get_text() for text in axes.texts] == ['9']


def test_arms_of_equal_cost_stand_side_by_side():
  axes = draw(picture(samples.sat(), 'Loss by arm').panels[0])
  names = [label.get_text() for label in axes.get_yticklabels()]
  assert names == ['rate <b>0.5</b> | x', 'rate 0.25', 'rate 0.9', 'constant']
  assert points(axes) == [(2.04, 0), (2.03, 1), (2.2, 3)]
  assert [text.get_text() for text in axes.texts] == ['failed']
  dense = next(x for x in axes.lines if x.get_linestyle() == '--')
  np.testing.assert_allclose(dense.get_xdata(), 2.02)


def test_looks_of_many_arms_differ():
  arms = {f'a{n}': samples.arm(2.0) for n in range(42)}
  found = plots.keys(results.check(samples.result(arms))).values()
  assert len({(key.colour, key.marker) for key in found}) == 42
  assert figures.INK not in {key.colour for key in found}
  lines = list(figures.keys(map(str, range(24))).values())
  assert len({(key.colour, key.dash) for key in lines}) == 24


def test_of_two_coordinates_one_is_a_line_for_each_value():
  value = samples.two_coordinates()
  found = picture(value, 'Loss over importance and selection')
  assert [key.label for key in found.legend] == [
    'selection top_k',
    'selection sample',
    'dense',
  ]
  axes = draw(found.panels[0])
  top_k, sample, dense = (line.get_xydata() for line in axes.lines)
  np.testing.assert_allclose(top_k, [(1, 2.09)])  # the other one failed
  np.testing.assert_allclose(sample, [(0, 2.08), (1, 2.07)])
  np.testing.assert_allclose(dense[:, 1], 2.02)
  ticks = [label.get_text() for label in axes.get_xticklabels()]
  assert ticks == ['uniform', 'maxip']


def test_what_is_a_number_goes_along_the_axis():
  value = samples.two_coordinates(columns=(0.5, 0.25))
  found = picture(value, 'Loss over importance and selection')
  assert [key.label for key in found.legend] == [
    'importance uniform',
    'importance maxip',
    'dense',
  ]
  assert draw(found.panels[0]).get_xlabel() == 'selection'


def test_one_coordinate_is_a_line_a_group_over_the_reference():
  found = picture(samples.sat(), 'Loss over rate')
  axes = draw(found.panels[0])
  assert [key.label for key in found.legend] == ['ladder', 'other', 'dense']
  ladder, other, dense = (line.get_xydata() for line in axes.lines)
  np.testing.assert_allclose(ladder, [(0.25, 2.03), (0.5, 2.04)])
  np.testing.assert_allclose(other, [(0.25, 2.2)])
  np.testing.assert_allclose(dense[:, 1], 2.02)
  ticks = [label.get_text() for label in axes.get_xticklabels()]
  assert ticks == ['0.25', '0.5', '0.9']


def test_words_and_wide_ranges_are_coordinates_too():
  for values, scale in (('ab', 'linear'), ((1, 10, 100), 'log')):
    arms = {
      f'arm {v}': samples.arm(2.0 + 0.01 * n, label={'x_y': v})
      for n, v in enumerate(values)
    }
    axes = draw(picture(samples.result(arms), 'Loss over x y').panels[0])
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == [str(v) for v in values] and axes.get_xscale() == scale


def test_plots_are_small_files(tmp_path):
  rows = [f'importance {n}' for n in range(8)]
  value = samples.two_coordinates(rows=rows)
  paths = plots.write_plots(value, tmp_path / 'a')
  assert [path.name for path in paths] == [
    f'sat_x_{name}.{end}'
    for name in (
      *('loss_and_cost', 'loss_by_arm'),
      'loss_over_importance_and_selection',
    )
    for end in ('png', 'svg')
  ]
  for path in paths[::2]:
    content = path.read_bytes()
    assert len(content) <= 60_000
    image = Image.open(io.BytesIO(content)).convert('RGB')
    assert image.width >= 600 and image.getpixel((0, 0)) == (255, 255, 255)


def test_equal_pictures_are_files_of_equal_bytes(tmp_path):
  for folder in 'ab':
    found = picture(samples.growth(), 'Loss by arm')
    figures.save({'x': found}, tmp_path / folder)
  for end in ('png', 'svg'):
    first, second = (tmp_path / folder / f'x.{end}' for folder in 'ab')
    assert first.read_bytes() == second.read_bytes()


def test_what_can_not_be_written_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  panel = figures.Panel(lambda axes: None)
  pictures = {'x': figures.Picture('', '', [panel])}
  with pytest.raises(errors.StorageError, match='cannot write'):
    figures.save(pictures, tmp_path / 'file')
