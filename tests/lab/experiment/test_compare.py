"""Comparisons at equal cost, by hand."""

import math

import numpy as np
import pytest

from satjax.lab.experiment import compare, spec

XS = np.array([1.0, 2.0, 4.0])
FRONTIER = {
  0: (XS, np.array([3.0, 2.0, 1.5])),
  1: (XS, np.array([3.2, 2.2, 1.7])),
}


def test_the_frontier_is_met_at_its_points_and_linear_in_the_logarithm():
  assert compare.at(FRONTIER, 2.0) == pytest.approx({0: 2.0, 1: 2.2})
  between = compare.at(FRONTIER, math.sqrt(2))
  assert between == pytest.approx({0: 2.5, 1: 2.7})


@pytest.mark.parametrize('x', [0.9, 4.1])
def test_nothing_is_said_beyond_the_ends(x):
  assert compare.at(FRONTIER, x) is None


def test_the_reference_against_itself_is_no_faster():
  for x, loss in zip(XS, (3.1, 2.1, 1.6)):
    assert compare.speedup(FRONTIER, x, loss) == pytest.approx(1.0)


def test_a_loss_that_takes_the_reference_twice_as_long_is_a_speedup_of_two():
  assert compare.speedup(FRONTIER, 2.0, 1.6) == pytest.approx(2.0)
  assert compare.speedup(FRONTIER, 2.0, 1.5) is None
  assert compare.speedup(FRONTIER, 2.0, 3.2) is None


def test_a_frontier_that_rises_again_counts_by_its_lowest_point():
  bumpy = {0: (XS, np.array([3.0, 2.0, 2.4]))}
  assert compare.speedup(bumpy, 1.0, 2.0) == pytest.approx(2.0)
  assert compare.at(bumpy, 4.0) == compare.at(bumpy, 3.0) == {0: 2.0}


def test_arms_by_length_are_as_much_sooner_as_a_curve_says():
  def arm(group, seconds, tests, **label):
    runs = [{'seed': seed, 'test': test} for seed, test in enumerate(tests)]
    how = {'group': group, 'label': label, 'failed': None, 'early_stop': False}
    return {'seconds': seconds, 'flops': seconds or 0, 'runs': runs, **how}

  arms = {
    'dense': arm('dense', 8.0, (2.0, 2.2)),
    'long': arm('fast', 4.0, (1.5, 1.7), length=1.0),
    'short': arm('fast', 1.0, (3.0, 3.2), length=0.25),
    'middle': arm('fast', 2.0, (2.0, 2.7), length=0.5),
    'first seed': arm('half', 2.0, (2.0,), length=0.5),
    'its other': arm('half', 4.0, (1.5,), length=1.0),
    # Of its first seed the shortest does, and how much sooner is not known.
    'soon': arm('sooner', 1.0, (1.9, 2.3), length=0.25),
    'later': arm('sooner', 2.0, (1.8, 1.9), length=0.5),
    'never': arm('slow', 4.0, (2.1, 2.1), length=1.0),
    'no clock': arm('untimed', None, (1.0, 1.0), length=1.0),
    'other': arm('rates', 4.0, (1.0, 1.0), rate=1.0),
  }
  found = compare.sooner(arms, 'dense')
  assert found == {
    'fast': pytest.approx([4.0, 8 / 2**1.5]),
    'half': pytest.approx([4.0]),
  }


@pytest.mark.parametrize(
  'losses, other, verdict',
  [
    ({0: 1.0, 1: 1.1}, {0: 1.3, 1: 1.4}, 'better'),
    ({0: 1.3, 1: 1.4}, {0: 1.0, 1: 1.1}, 'worse'),
    # The mean difference is no larger than the spread of the other.
    ({0: 1.0, 1: 1.1}, {0: 1.05, 1: 1.2}, 'no difference'),
    # The seeds do not agree.
    ({0: 1.0, 1: 2.0}, {0: 1.05, 1: 1.1}, 'no difference'),
    # What varies a lot, and is higher each time, is worse.
    ({0: 1.1, 1: 3.0}, {0: 1.05, 1: 1.1}, 'worse'),
    ({0: 1.0, 1: 1.0}, {0: 1.05, 1: 1.35}, 'no difference'),
    ({0: 1.0}, {0: 2.0}, 'one seed'),
  ],
)
def test_what_seeds_change_as_much_is_no_difference(losses, other, verdict):
  assert compare.difference(losses, other)['verdict'] == verdict


@pytest.mark.parametrize(
  'usual, verdict', [(0.1, 'worse'), (0.3, 'no difference'), (None, 'one seed')]
)
def test_one_seed_is_judged_by_the_spread_of_other_arms(usual, verdict):
  assert compare.difference({0: 1.2}, {0: 1.0}, usual)['verdict'] == verdict


def test_the_usual_spread_is_one_that_most_arms_are_within():
  spreads = (0.01, 0.02, 0.02, 0.03, 0.9)
  arms = {str(n): arm(1.0, 1.0 + x) for n, x in enumerate(spreads)}
  found = compare.usual_spread(arms | {'one': arm(9.0)})
  assert found == pytest.approx(0.03)
  assert compare.usual_spread({'one': arm(9.0)}) is None


def test_differences_are_paired_by_seed():
  found = compare.difference({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.7, 2: 9.0})
  assert found['difference'] == pytest.approx(
    {'mean': -0.6, 'low': -0.7, 'high': -0.5}
  )
  assert found['other'] == pytest.approx(2.1)


def test_a_row_shows_the_losses_that_were_paired():
  arms = {'a': arm(1.0, 1.1, 9.0), 'b': arm(2.0, 2.1)}
  claim = spec.Claim('', '', '', (spec.Expect('a', 'below', 'b'),))
  (row,) = compare.judge(claim, arms, 'dense')['comparisons']
  assert (row['arm'], row['against']) == ('a 1.0500', 'b 2.0500')


SPLITS = 'test', 'validation'


def arm(*losses, against=None, early_stop=False, failed=None, seconds=None):
  return {
    'seconds': seconds,
    'runs': [
      {
        'seed': n,
        'test': x,
        'validation': x,
        'best': dict.fromkeys(SPLITS, x - 1),
      }
      for n, x in enumerate(losses)
    ],
    'loss': {'mean': sum(losses) / max(1, len(losses))},
    'early_stop': early_stop,
    'against': against or {},
    'failed': failed,
  }


ARMS = {
  'low': arm(1.0, 1.01),
  'high': arm(2.0, 2.01),
  'near': arm(1.005, 1.0),
  'stopped': arm(3.0, 3.01, early_stop=True),
  'bad': arm(failed='diverged'),
  'wild': arm(1.0, 3.0),
  'quick': arm(1.0, seconds=2.0),
  'slow': arm(1.0, seconds=3.0),
}


@pytest.mark.parametrize(
  'expects, verdict',
  [
    ([('low', 'below', 'high')], 'holds'),
    ([('high', 'below', 'low')], 'does not hold'),
    ([('low', 'below', 'near')], 'does not hold'),
    ([('near', 'not above', 'low'), ('low', 'not above', 'near')], 'holds'),
    ([('low', 'below', 'high'), ('high', 'below', 'low')], 'holds partly'),
    # It varies more than it is above, and that does not excuse it.
    ([('wild', 'not above', 'low')], 'does not hold'),
    ([('wild', 'below', 'low')], 'does not hold'),
    ([('low', 'below', 'bad')], 'not tested'),
    ([('low', 'below', 'bad'), ('low', 'below', 'high')], 'holds partly'),
    ([('low', 'below', 'bad'), ('high', 'below', 'low')], 'does not hold'),
    ([('bad', 'below', 'low')], 'not tested'),
    ([('low', 'below', 'absent')], 'not tested'),
    ([('low', 'below', 'time')], 'not tested'),
    # One seed, against the spread of the others.
    ([('quick', 'below', 'high')], 'holds'),
    ([('quick', 'faster', 'slow', 1.5)], 'holds'),
    ([('quick', 'faster', 'slow', 1.51)], 'does not hold'),
    ([('quick', 'faster', 'low', 1.0)], 'not tested'),
    # Judged by its best step, one below its last: 2.0, as 'high' is.
    ([('stopped', 'not above', 'high')], 'holds'),
  ],
)
def test_a_claim_is_judged_by_its_expectations(expects, verdict):
  expects = tuple(spec.Expect(*expect) for expect in expects)
  claim = spec.Claim('text', 'source', '', expects)
  found = compare.judge(claim, ARMS, 'dense')
  assert found['verdict'] == verdict
  shown = zip(expects, found['comparisons'], strict=True)
  assert all(expect.arm in row['arm'] for expect, row in shown)


def test_a_claim_against_the_reference_reads_what_was_compared():
  better = compare.difference({0: 1.0, 1: 1.2}, {0: 2.0, 1: 2.4})
  arms = {'a': arm(1.0, 1.2, against={'time': better})}
  claim = spec.Claim('', '', '', (spec.Expect('a', 'below', 'time'),))
  found = compare.judge(claim, arms, 'dense')
  assert found['verdict'] == 'holds'
  assert found['comparisons'] == [
    {
      'arm': 'a 1.1000',
      'against': 'dense at equal time 2.2000',
      'change': '-1.1000 (-1.2000 to -1.0000)',
      'verdict': 'better',
    }
  ]
