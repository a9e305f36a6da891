"""Timing, factor and saving against what the paper prints."""

import math
import re
import warnings

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from satjax import errors
from satjax.growth import guidelines

INF, NAN = math.inf, math.nan


@pytest.fixture
def quiet():
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def timing(num_params, tokens):
  return guidelines.growth_timing(num_params, 6 * num_params * tokens)


@pytest.mark.parametrize(
  'num_params, tokens, computed, published',
  [
    (8e9, 15e12, 6_581_387_829, 6.58e9),
    (7e9, 2e12, 11_112_953_127, 11.11e9),
    (13e9, 2e12, 15_843_690_723, 15.84e9),
    (70e9, 2e12, 42_475_087_122, 42.48e9),
  ],
)
def test_the_published_timings(num_params, tokens, computed, published, quiet):
  found = timing(num_params, tokens)
  assert found == pytest.approx(computed, rel=1e-9)
  assert found == pytest.approx(published, abs=0.005e9)
  given_tokens = guidelines.growth_timing(
    num_params, 6 * num_params * tokens, target_tokens=tokens
  )
  assert given_tokens == found


@pytest.mark.parametrize(
  'num_params, tokens, expected',
  [
    (0.41e9, 100e9, 7.02e9),
    (0.41e9, 750e9, 3.29e9),
    (1.1e9, 100e9, 11.44e9),
    (3e9, 300e9, 12.96e9),
    (7e9, 300e9, 20.48e9),
  ],
)
def test_further_points_of_the_formula(num_params, tokens, expected, quiet):
  assert timing(num_params, tokens) == pytest.approx(expected, abs=0.005e9)


def test_within_the_fitted_range_nothing_is_said():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for num_params in guidelines.FITTED_PARAMS:
      for flops in guidelines.FITTED_FLOPS:
        tokens = flops / (6 * num_params)
        if tokens > 10e9:
          assert 0 < guidelines.growth_timing(num_params, flops) < tokens


@pytest.mark.parametrize(
  'num_params, flops, said',
  [
    (7e9, 6e20, [r'num_params 7e\+09 .*4.1e\+08 to 3e\+09']),
    (1.1e9, 6e21, [r'flops 6e\+21 .*8e\+19 to 1.2e\+21']),
    (7e9, 8.4e22, ['num_params', 'flops']),
  ],
)
def test_outside_of_the_fitted_range_there_is_a_warning(
  num_params, flops, said
):
  with pytest.warns(UserWarning) as caught:
    found = guidelines.growth_timing(num_params, flops, 2e12)
  assert found > 1e9
  assert len(caught) == len(said)
  for warning, pattern in zip(caught, said):
    assert re.match(pattern, str(warning.message))
    assert warning.filename == __file__


# Below so many tokens Eq. 2 asks for all of them or more.
@pytest.mark.parametrize(
  'num_params, limit',
  [
    (10e6, 5.6e9),
    (30e6, 7.2e9),
    (125e6, 10.7e9),
    (410e6, 15.3e9),
    (1.1e9, 21.4e9),
  ],
)
def test_a_tenth_where_the_formula_asks_for_everything(num_params, limit):
  with pytest.warns(UserWarning) as caught:
    found = timing(num_params, 0.95 * limit)
  assert '10% of these are taken instead' in str(caught[-1].message)
  assert found == pytest.approx(0.095 * limit)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    assert timing(num_params, 1.05 * limit) > 0.7 * limit


def test_budgets_that_are_no_training_at_all(quiet):
  assert guidelines.growth_timing(1e6, 1.5, 10.0) == 1
  assert guidelines.growth_timing(1e6, 0.5, 10.0) == 1
  assert guidelines.growth_timing(1e6, 1 + 1e-12, 10.0) == 1


@settings(deadline=None)
@given(st.floats(1, 1e15), st.floats(1, 1e35), st.floats(1e-3, 1e20))
def test_never_as_many_tokens_as_the_target(num_params, flops, tokens):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    own = guidelines.growth_timing(num_params, flops)
    assert 0 < own < flops / (6 * num_params)
    assert 0 < guidelines.growth_timing(num_params, flops, tokens) < tokens


@pytest.mark.parametrize('bad', [0, -1.0, NAN, INF, -INF])
@pytest.mark.parametrize(
  'call, name, good',
  [
    (guidelines.growth_timing, 'num_params', {'flops': 1e20}),
    (guidelines.growth_timing, 'flops', {'num_params': 1e9}),
    (
      guidelines.growth_timing,
      'target_tokens',
      {'num_params': 1e9, 'flops': 1e20},
    ),
    (guidelines.speedup, 'flops_scratch', {'flops_grown': 1.0}),
    (guidelines.speedup, 'flops_grown', {'flops_scratch': 1.0}),
  ],
)
def test_bad_numbers_are_refused(call, name, good, bad):
  with pytest.raises(ValueError, match=rf'{name} {bad}: must be .*(give|such)'):
    call(**good, **{name: bad})


def test_errors_exit_as_bad_settings_do():
  with pytest.raises(errors.ConfigError):
    guidelines.growth_timing(-1, 1e20)


def test_the_factor_is_4():
  assert guidelines.growth_factor() == 4


def test_speedup_is_that_of_the_7b_run():
  assert round(guidelines.speedup(300, 194), 4) == 0.5464
  assert guidelines.speedup(1, 1) == 0
  assert guidelines.speedup(1, 2) == -0.5
