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
    growth.growth_schedule(**{**good, name: bad})


@pytest.mark.parametrize(
  'num_params, tokens, speedups, is_published',
  [
    (7e9, 300e9, (0.408, 0.553), True),
    (7e9, 160e9, (0.408, 0.553), True),
    (3e9, 180e9, (0.408, 0.553), True),
    (1.1e9, 100e9, (0.408, 0.553), True),
    (0.41e9, 400e9, (0.310, 0.531), True),
    (0.41e9, 700e9, (0.310, 0.531), True),
    (0.41e9, 20e9, (0.408, 0.553), False),
    (7e9, 2e12, (0.310, 0.531), False),
    (7e9, 100e9, (0.408, 0.553), False),
    (70e9, 2e12, (0.408, 0.553), False),
  ],
)
def test_the_saving_is_that_of_runs_alike(
  num_params, tokens, speedups, is_published
):
  found = growth.growth_schedule(num_params, tokens)
  assert found.speedup == speedups
  assert found.saving == tuple(1 - 1 / (1 + s) for s in speedups)
  said = any('saving is extrapolated' in note for note in found.notes)
  assert said == (not is_published)


@pytest.mark.parametrize('factor', [2, 3.5, 4, 24])
@pytest.mark.parametrize('num_params, tokens', [(7e9, 3e11), (1e7, 1e9)])
def test_a_schedule_adds_up(num_params, tokens, factor, recwarn):
  s = growth.growth_schedule(num_params, tokens, factor)
  assert not recwarn.list  # what there is to say is in the notes
  assert s.notes
  assert any('a factor of 4' in note for note in s.notes) == (factor != 4)
  assert s.base_params == num_params / factor
  assert s.base_flops == pytest.approx(6 * s.base_params * s.base_tokens)
  assert s.scratch_flops == 6 * num_params * tokens
  for i, saving in enumerate(reversed(s.saving)):
    grown = s.base_flops + s.target_flops[i]
    assert grown == pytest.approx((1 - saving) * s.scratch_flops)
    assert guidelines.speedup(s.scratch_flops, grown) == pytest.approx(
      s.speedup[1 - i]
    )
    assert s.target_flops[i] == pytest.approx(
      6 * num_params * s.target_tokens[i]
    )
  assert 0 < s.target_tokens[0] < s.target_tokens[1] < tokens


@settings(deadline=None)
@given(st.floats(1e3, 1e13), st.floats(1e3, 1e16), st.floats(2, 100))
def test_every_schedule_leaves_tokens_to_the_target(num_params, tokens, factor):
  found = growth.growth_schedule(num_params, tokens, factor)
  assert 0 < found.target_tokens[0] < found.target_tokens[1] < tokens
