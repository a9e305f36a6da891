"""A run that is worse after warm-up than where it began says so, once."""

import pytest

from satjax.train import onset as onset_lib


@pytest.fixture
def warnings(monkeypatch):
  found = []
  monkeypatch.setattr(onset_lib.logging, 'warning', found.append)
  return found


def train(losses, warmup, first=1):
  onset = onset_lib.Onset(warmup)
  for step, loss in enumerate(losses, first):
    onset.trained(step, loss)


@pytest.mark.parametrize('warmup', [0, 2, 30])
def test_a_loss_that_rises_after_warmup_is_told_once(warnings, warmup):
  wiggle = [0.1 * (-1) ** step for step in range(80)]
  before, after = [3.0] * max(warmup, 1), [4.0] * 40
  train([a + b for a, b in zip(before + after, wiggle)], warmup)
  (said,) = warnings
  assert f'Step {warmup + 10}: ' in said and 'peak_lr' in said
  assert '4.0000 after warm-up, and was 3.' in said or warmup == 0


@pytest.mark.parametrize(
  'losses',
  [
    [3.0] * 40,
    [3.0 - 0.01 * step for step in range(40)],
    # Higher by less than its noise.
    [3.0, 3.0, *[2.1, 4.0] * 20],
    [3.0, 3.0, *[4.0] * 9],  # ends before that is sure
  ],
)
def test_other_losses_are_not_worth_a_word(warnings, losses):
  train(losses, warmup=2)
  assert not warnings


def test_a_run_that_goes_on_does_not_know_where_it_began(warnings):
  train([3.0] * 5 + [9.0] * 40, warmup=2, first=7)
  assert not warnings


def test_held_out_text_is_compared_at_the_first_evaluation_after_warmup(
  warnings,
):
  onset = onset_lib.Onset(10)
  onset.evaluated(0, {'docs': 3.0, 'code': 3.0})
  onset.evaluated(5, {'docs': 9.0, 'code': 9.0})
  onset.evaluated(15, {'docs': 3.5, 'code': 2.5})
  onset.evaluated(20, {'docs': 9.0, 'code': 9.0})
  (said,) = warnings
  assert 'of held-out docs is 3.5000' in said and 'was 3.0000' in said
