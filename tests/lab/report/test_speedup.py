"""Speed-up at equal loss on curves whose answer is known."""

import numpy as np
import pytest

from satjax.lab.report import speedup

F = np.linspace(1.0, 1000.0, 1000)


def loss_of(flops):
  return 2 + 20 / (flops + 10)


def noisy(values, seed=0, scale=0.01):
  noise = np.random.default_rng(seed).normal(size=len(values))
  return values + scale * noise


@pytest.mark.parametrize('window', [0, 0.05, 0.3])
def test_a_curve_against_itself_is_1(window):
  curve = (F, noisy(loss_of(F)))
  found = speedup.speedup_at_equal_loss(curve, curve, window=window)
  np.testing.assert_array_equal(found, np.ones(3))


@pytest.mark.parametrize('window', [0, 0.02, 0.05])
@pytest.mark.parametrize('gain', [1.5, 0.8])
def test_a_curve_that_falls_faster_by_a_factor(gain, window):
  grown = loss_of(np.linspace(gain, 1000 * gain, 1000))
  found = speedup.speedup_at_equal_loss(
    (F, loss_of(F)), (F, grown), at=(0.3, 0.5, 0.75), window=window
  )
  np.testing.assert_allclose(found, gain, atol=5e-3)


def test_runs_that_record_at_different_costs_are_smoothed_alike():
  scratch = (F, loss_of(F))
  flops = F[::7] / 1.5
  found = speedup.speedup_at_equal_loss(scratch, (flops, loss_of(F[::7])))
  np.testing.assert_allclose(found[:2], 1.5, atol=5e-3)
  assert np.isnan(found[2])  # it ends at a loss that is barely higher


def test_noise_makes_little_difference():
  grown = np.concatenate([F, F + 1000])
  found = speedup.speedup_at_equal_loss(
    (F, noisy(3 - F / 1000, 1, 0.02)), (grown, noisy(3 - grown / 2000, 2, 0.02))
  )
  np.testing.assert_allclose(found, 0.5, atol=0.02)


def test_known_points_without_smoothing():
  scratch = ([10, 20, 30, 40], [8.0, 6.0, 4.0, 2.0])
  grown = ([5, 15, 25], [7.0, 9.0, 3.0])  # a spike between the two
  found = speedup.speedup_at_equal_loss(
    scratch, grown, at=(0.5, 0.75, 1.0), window=0
  )
  # 6 is first reached at 17.5, on the way from 7 at 15, as 9 counts for 7.
  np.testing.assert_allclose(found, [20 / 17.5, 30 / 22.5, np.nan])


def test_the_base_model_is_to_be_left_out():
  """Its low losses count; after it, the spike of growth does no harm."""
  scratch = (F, loss_of(F))
  loss = np.where(F <= 200, 1.0, loss_of(1.5 * F) + (F < 220))
  fooled = speedup.speedup_at_equal_loss(scratch, (F, loss), window=0.01)
  assert (fooled > 11).all()
  after = (F[200:], loss[200:])
  found = speedup.speedup_at_equal_loss(scratch, after, window=0.01)
  np.testing.assert_allclose(found, 1.5, atol=2e-3)


def test_smoothing_is_a_trailing_mean_at_the_mean_flops():
  flops, loss = np.array([1.0, 2, 3, 10]), np.array([5.0, 4, 9, 1])
  x, y = speedup._falling(flops, loss, 2.0)
  np.testing.assert_allclose(x, [1, 1.5, 2.5, 10])
  np.testing.assert_allclose(y, [5, 4.5, 4.5, 1])  # 6.5 counts for 4.5
  x, y = speedup._falling(flops, loss, 0.0)
  np.testing.assert_allclose(x, flops)
  np.testing.assert_allclose(y, [5, 4, 4, 1])


def test_a_loss_that_is_never_reached_is_nan():
  found = speedup.speedup_at_equal_loss((F, loss_of(F)), (F, loss_of(F) + 1))
  assert found.shape == (3,) and np.isnan(found).all()


def test_a_loss_below_from_the_start_counts_from_the_first_point():
  scratch = ([10, 20], [5.0, 4.0])
  grown = ([8, 9], [1.0, 1.0])
  found = speedup.speedup_at_equal_loss(scratch, grown, at=[1], window=0)
  np.testing.assert_allclose(found, [20 / 8])


def test_the_size_of_the_numbers_does_not_matter():
  scratch, grown = (F, loss_of(F)), (F, loss_of(1.5 * F))
  one = speedup.speedup_at_equal_loss(scratch, grown)
  two = speedup.speedup_at_equal_loss(
    (2.0**60 * F, loss_of(F)), (2.0**60 * F, loss_of(1.5 * F))
  )
  np.testing.assert_allclose(one, two, rtol=1e-9)
