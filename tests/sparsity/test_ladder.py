"""LORS: where the rungs are, and how many neurons each of them keeps."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax.sparsity.ladder import Ladder


@pytest.mark.parametrize(
  'split, rungs, num_steps, boundaries',
  [
    # ceil of 6.67, 7.5, 8.33, 9.17.
    (2 / 3, 4, 10, (7, 8, 9, 10)),
    (2 / 3, 4, 1000, (667, 750, 834, 917)),
    (2 / 3, 4, 12, (8, 9, 10, 11)),
    (0.5, 2, 60, (30, 45)),
    (0.5, 1, 60, (30,)),
    (0.9, 3, 100, (90, 94, 97)),
    (0.1, 3, 30, (3, 12, 21)),
    (0.7, 3, 10, (7, 8, 9)),
    # Where floating point would be a step late: 0.55 x 100 is above 55.
    (1 / 3, 4, 60, (20, 30, 40, 50)),
    (0.55, 2, 100, (55, 78)),
    (1.0, 3, 10, (10, 10, 10)),
    # More rungs than steps are left: some are passed over.
    (0.5, 4, 4, (2, 3, 3, 4)),
    (0.5, 2, 1, (1, 1)),
  ],
)
def test_boundaries_by_hand(split, rungs, num_steps, boundaries):
  ladder = Ladder(0.5, split=split, rungs=rungs, num_steps=num_steps)
  assert ladder.boundaries == boundaries


def test_rate_at_every_edge():
  ladder = Ladder(0.8, split=0.5, rungs=4, num_steps=80)
  assert ladder.boundaries == (40, 50, 60, 70)
  at = [0, 1, 39, 40, 41, 49, 50, 59, 60, 69, 70, 71, 79]
  assert [ladder.rung(s) for s in at] == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4]
  rates = [0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2, 0.0, 0.0, 0.0]
  found = [ladder.omission_rate(s) for s in at]
  np.testing.assert_allclose(found, rates, rtol=1e-12, atol=0)
  assert found[-1] == 0.0


LADDERS = [
  Ladder(0.5, split=split, rungs=rungs, num_steps=num_steps)
  for split in (0.3, 2 / 3, 1.0)
  for rungs in (1, 4)
  for num_steps in (1, 7, 60)
]


@pytest.mark.parametrize('ladder', LADDERS, ids=str)
def test_a_traced_step_is_on_the_same_rung(ladder):
  steps = range(ladder.num_steps + 2)
  traced = jax.jit(jax.vmap(ladder.rung))(jnp.arange(len(steps)))
  assert jnp.issubdtype(traced.dtype, jnp.integer)
  assert [ladder.rung(step) for step in steps] == traced.tolist()


def test_split_of_one_never_leaves_the_full_rate():
  ladder = Ladder(0.5, split=1.0, rungs=4, num_steps=50)
  assert {ladder.omission_rate(step) for step in range(50)} == {0.5}


def test_one_rung_drops_to_dense_at_once():
  ladder = Ladder(0.5, split=0.75, rungs=1, num_steps=100)
  rates = [ladder.omission_rate(step) for step in range(100)]
  assert rates == [0.5] * 75 + [0.0] * 25


@given(
  rate=st.floats(0, 1, exclude_max=True),
  split=st.floats(0.01, 1),
  rungs=st.integers(1, 9),
  num_steps=st.integers(1, 300),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_rate_never_rises_and_ends_dense(rate, split, rungs, num_steps):
  ladder = Ladder(rate, split=split, rungs=rungs, num_steps=num_steps)
  rates = [ladder.omission_rate(step) for step in range(num_steps + 1)]
  assert rates == sorted(rates, reverse=True)
  assert rates[0] == rate or ladder.boundaries[0] == 0
  assert rates[-1] == 0.0
  assert len(ladder.boundaries) == rungs
  # The stage at the full rate has its share of the steps, to within one.
  first = ladder.boundaries[0]
  assert math.floor(split * num_steps) <= first <= split * num_steps + 1


@pytest.mark.parametrize(
  'options, levels',
  [
    # 5 % of 100 steps dense, then the ladder over the other 95.
    (
      {'warm_start': 0.05, 'split': 0.8, 'rungs': 2, 'num_steps': 100},
      [(0, 0.0), (5, 0.5), (81, 0.25), (91, 0.0)],
    ),
    # The mirror of 0.5, 0.25, 0: up over the first half.
    (
      {'shape': 'reversed', 'split': 0.5, 'rungs': 2, 'num_steps': 60},
      [(0, 0.0), (15, 0.25), (30, 0.5)],
    ),
    (
      {'shape': 'linear', 'split': 0.6, 'num_steps': 10},
      [(0, 0.5), (6, 0.375), (7, 0.25), (8, 0.125), (9, 0.0)],
    ),
    ({'split': 1.0, 'rungs': 1, 'num_steps': 8}, [(0, 0.5), (8, 0.0)]),
  ],
)
def test_levels_by_hand(options, levels):
  ladder = Ladder(0.5, **options)
  assert [start for start, _ in ladder.levels] == [s for s, _ in levels]
  rates = [rate for _, rate in ladder.levels]
  np.testing.assert_allclose(rates, [r for _, r in levels], atol=1e-12)
  for step in range(options['num_steps']):
    expected = [rate for start, rate in levels if start <= step][-1]
    assert ladder.omission_rate(step) == pytest.approx(expected, abs=1e-12)
    assert ladder.rung(jnp.array(step)) == ladder.rung(step)


def test_kept_by_rung_climbs_to_all():
  ladder = Ladder(0.5, split=0.5, rungs=2, num_steps=60)
  assert list(ladder.kept_by_rung(4)) == [2, 3, 4]
  assert list(ladder.kept_by_rung(128, 16)) == [64, 96, 128]
  assert list(ladder.kept_by_rung(128, 64)) == [64, 128, 128]
  assert list(ladder.kept_by_rung(96, 6, 4)) == [48, 72, 96]
  off = Ladder(0.0, split=0.5, rungs=2, num_steps=60)
  assert list(off.kept_by_rung(5, 4)) == [5, 5, 5]


def test_realised_rates_are_those_of_whole_neurons():
  ladder = Ladder(0.7, split=0.5, rungs=2, num_steps=60)
  assert ladder.realised_rates(8, multiple=4) == (0.5, 0.5, 0.0)
  assert ladder.realised_rates(24, 6, 4) == (0.5, 0.5, 0.0)  # 12 at a time
  for _, rate in ladder.levels:
    assert any(abs(rate - r) < 1e-3 for r in ladder.realised_rates(1000))


@pytest.mark.parametrize(
  'arguments, said',
  [
    ((8, 16), 'multiples of 16'),
    ((8, 1, 3), '3 equal groups'),
    # All would take part, rung after rung.
    ((4,), 'rate 0.1 leaves out nothing: 4 neurons.*use 0.25'),
    ((8, 4), 'multiples of 4; use 0.5'),
    ((8, 8), 'multiples of 8; use 0'),
  ],
)
def test_a_rate_that_neurons_can_not_realise_is_refused(arguments, said):
  with pytest.raises(ValueError, match=said):
    Ladder(0.1, num_steps=60).kept_by_rung(*arguments)


@pytest.mark.parametrize(
  'options, said',
  [
    ({'rate': 1.0}, 'rate 1.0'),
    ({'rate': -0.1}, 'rate -0.1'),
    ({'rate': math.nan}, 'rate nan'),
    ({'split': 0.0}, 'split 0.0'),
    ({'split': 1.5}, 'split 1.5'),
    ({'split': math.nan}, 'split nan'),
    ({'rungs': 0}, 'rungs 0'),
    ({'num_steps': 0}, 'num_steps 0'),
    ({'warm_start': 1.0}, 'warm_start 1.0'),
    ({'shape': 'spiral'}, "shape 'spiral'"),
  ],
)
def test_bad_values_raise(options, said):
  with pytest.raises(ValueError, match=said):
    Ladder(**{'rate': 0.5, **options})
