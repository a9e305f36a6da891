"""What growth may save, against the runs that the paper prints."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from satjax import errors
from satjax.growth import guidelines
from satjax.lab.plan import growth


@pytest.mark.parametrize('bad', [0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('name', ['num_params', 'tokens', 'factor'])
def test_bad_numbers_are_refused(name, bad):
  good = {'num_params': 1e9, 'tokens': 1e11, 'factor': 4.0}
  with pytest.raises(errors.ConfigError, match=f'{name} {bad}: must be '):
    growth.plan(**{**good, name: bad})


@pytest.mark.parametrize(
  'num_params, tokens, speedups, is_published',
  [
    (7e9, 300e9, (1.408, 1.553), True),
    (7e9, 160e9, (1.408, 1.553), True),
    (3e9, 180e9, (1.408, 1.553), True),
    (1.1e9, 100e9, (1.408, 1.553), True),
    (0.41e9, 400e9, (1.310, 1.531), True),
    (0.41e9, 700e9, (1.310, 1.531), True),
    (0.41e9, 20e9, (1.408, 1.553), False),
    (7e9, 2e12, (1.310, 1.531), False),
    (7e9, 100e9, (1.408, 1.553), False),
    (70e9, 2e12, (1.408, 1.553), False),
  ],
)
def test_the_saving_is_that_of_runs_alike(
  num_params, tokens, speedups, is_published
):
  found = growth.plan(num_params, tokens)
  assert found.speedup == speedups
  said = any('saving is extrapolated' in note for note in found.notes)
  assert said == (not is_published)


@pytest.mark.parametrize('factor', [2, 3.5, 4, 24])
@pytest.mark.parametrize('num_params, tokens', [(7e9, 3e11), (1e7, 1e9)])
def test_a_schedule_adds_up(num_params, tokens, factor, recwarn):
  s = growth.plan(num_params, tokens, factor)
  assert not recwarn.list  # what there is to say is in the notes
  assert s.notes
  assert any('a factor of 4' in note for note in s.notes) == (factor != 4)
  assert s.base_flops == pytest.approx(6 * num_params / factor * s.base_tokens)
  assert s.scratch_flops == 6 * num_params * tokens
  for speedup, after in zip(reversed(s.speedup), s.target_flops):
    gain = guidelines.speedup(s.scratch_flops, s.base_flops + after)
    assert gain + 1 == pytest.approx(speedup)
  assert 0 < s.target_flops[0] < s.target_flops[1] < s.scratch_flops


@settings(deadline=None)
@given(st.floats(1e3, 1e13), st.floats(1e3, 1e16), st.floats(2, 100))
def test_every_schedule_leaves_work_to_the_target(num_params, tokens, factor):
  found = growth.plan(num_params, tokens, factor)
  low, high = found.target_flops
  assert 0 < low < high < found.scratch_flops
