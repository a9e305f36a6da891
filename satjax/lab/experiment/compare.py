"""Arms against the reference: at equal steps, equal time, equal FLOPs.

The reference is trained for several lengths, each with a full schedule and a
learning rate of its own: the frontier. What it would reach with exactly the
time or the FLOPs of an arm is read off between two of these runs, seed by seed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from satjax.lab.experiment import spec
from satjax.lab.report import results

# By seed, (steps, seconds or FLOPs) and loss of each length.
Frontier = Mapping[int, tuple[np.ndarray, np.ndarray]]
Losses = Mapping[int, float]  # by seed


def frontier(
  lengths: Sequence[Mapping[str, Any]], cost: str, split: str
) -> Frontier:
  """Of arms of the reference; `cost`: steps, seconds or flops."""
  xs = np.array([arm[cost] for arm in lengths], np.float64)
  losses = [losses_of(arm, split) for arm in lengths]
  return {
    seed: (xs, np.array([of[seed] for of in losses])) for seed in losses[0]
  }


def at(frontier: Frontier, x: float) -> Losses | None:
  """Losses of the reference with `x` of whatever it is; None: out of range.

  Between two lengths the loss is linear in log x; one that is no better than a
  shorter one counts as that. A tenth of a percent beyond an end is taken for
  the end.
  """
  result = {}
  for seed, (xs, losses) in _falling(frontier).items():
    if not xs[0] * 0.999 <= x <= xs[-1] * 1.001:
      return None
    result[seed] = float(np.interp(np.log(x), np.log(xs), losses))
  return result


def speedup(frontier: Frontier, x: float, loss: float) -> float | None:
  """How much longer the reference trains for a loss that took an arm `x`.

  Of the mean over seeds, without lengths that are no better than a shorter one;
  None: the loss lies above or below all that the reference reached.
  """
  xs = next(iter(frontier.values()))[0]
  mean = np.mean([of for _, of in _falling(frontier).values()], axis=0)
  lower = np.diff(mean, prepend=np.inf) < 0
  xs, falling = xs[lower], mean[lower]
  if not falling[-1] <= loss <= falling[0]:
    return None
  reached = np.interp(-loss, -falling, np.log(xs))
  return float(np.exp(reached) / x)


def _falling(frontier: Frontier) -> Frontier:
  """Each length with the losses of the best one that is not longer."""
  mean = np.mean([losses for _, losses in frontier.values()], axis=0)
  best = [int(np.argmin(mean[:end])) for end in range(1, len(mean) + 1)]
  return {seed: (xs, losses[best]) for seed, (xs, losses) in frontier.items()}


def sooner(arms: Mapping[str, Any], reference: str) -> dict[str, list[float]]:
  """How many times as fast arms by length come to the reference's own loss.

  By group, and by seed; of groups every seed of which reaches it between two of
  the lengths.
  """
  found, whole = {}, arms[reference]
  for group, names in results.by_length(arms).items():
    done = (arms[name] for name in names if not arms[name]['failed'])
    of_group = sorted(done, key=lambda arm: arm['flops'])
    xs = [whole['seconds'], *(arm['seconds'] for arm in of_group)]
    if whole['failed'] or None in xs:
      continue
    times, losses = np.array(xs[1:]), [losses_of(arm) for arm in of_group]
    each = [
      speedup({seed: (times, np.array([x[seed] for x in losses]))}, xs[0], y)
      for seed, y in losses_of(whole).items()
      if all(seed in of_arm for of_arm in losses)
    ]
    if each and None not in each:
      found[group] = [1 / ratio for ratio in each]
  return found


def difference(
  losses: Losses, other: Losses, usual: float | None = None
) -> dict[str, Any]:
  """Paired by seed: the loss minus the other's, and what that amounts to.

  It is none if seeds disagree about its sign, or if its mean is no larger than
  the spread of the other over them: an arm that varies is not excused by that.
  Of one seed, no larger than the `usual` spread; None: not known.
  """
  seeds = sorted(losses.keys() & other.keys())
  each = [losses[seed] - other[seed] for seed in seeds]
  mean, spread = float(np.mean(each)), usual
  if len(seeds) > 1:
    spread = np.ptp([other[seed] for seed in seeds])
  verdict = 'better' if mean < 0 else 'worse'
  if spread is None:
    verdict = 'one seed'
  elif abs(mean) <= spread or min(each) < 0 < max(each):
    verdict = 'no difference'
  return {
    'other': float(np.mean([other[seed] for seed in seeds])),
    'difference': {'mean': mean, 'low': min(each), 'high': max(each)},
    'verdict': verdict,
  }


def losses_of(arm: Mapping[str, Any], split: str = 'test') -> Losses:
  """Of an arm of a result: what it is judged by."""
  stops = arm['early_stop']
  return {
    run['seed']: (run['best'] if stops else run)[split] for run in arm['runs']
  }


def compared(
  arm: Mapping[str, Any],
  other: Callable[[str], Losses | None],
  usual: float | None,
) -> dict[str, Any] | None:
  """The `difference` of an arm to what `other` says of a split; None: nothing.

  All seeds are judged by the same documents, which their spread says nothing
  of. So the mean has to have the same sign on those that chose the rates.
  """
  losses = other('test')
  if losses is None:
    return None
  found = difference(losses_of(arm), losses, usual)
  again = difference(losses_of(arm, 'validation'), other('validation'))
  found['validation'] = again['difference']['mean']
  if found['validation'] * found['difference']['mean'] < 0:
    found['verdict'] = 'no difference'
  return found


def usual_spread(arms: Mapping[str, Any]) -> float | None:
  """Three of four arms of a result spread less over the seeds.

  Not the largest spread: one arm that is left to chance would excuse any other.
  None: no arm has several seeds.
  """
  several = [list(losses_of(arm).values()) for arm in arms.values()]
  spreads = [np.ptp(losses) for losses in several if len(losses) > 1]
  return float(np.percentile(spreads, 75)) if spreads else None


def judge(
  claim: spec.Claim,
  arms: Mapping[str, Any],
  reference: str,
  noise: float = 0.0,
) -> dict[str, Any]:
  """A claim with what was found; `arms` and `reference`: of a result.

  `noise` is that of its timing. What could not be tested keeps a claim from
  holding in whole.
  """
  by_seed = usual_spread(arms)
  found = [
    _is_faster(x, arms, noise)
    if x.relation == 'faster'
    else _ends_below(x, arms, reference, by_seed)
    for x in claim.expects
  ]
  true = [is_true for is_true, _ in found]
  if all(each is None for each in true):
    verdict = 'not tested'
  elif all(true):
    verdict = 'holds'
  else:
    verdict = 'holds partly' if any(true) else 'does not hold'
  return {
    'claim': claim.text,
    'source': claim.source,
    'paper': claim.paper,
    'comparisons': [comparison for _, comparison in found],
    'verdict': verdict,
  }


def _ends_below(
  expect, arms, reference, usual
) -> tuple[bool | None, dict[str, str]]:
  """Whether it came true (None: not tested), and the figures."""
  other = expect.other
  if other in results.EQUAL:
    other = f'{reference} at {results.EQUAL[other]}'
  arm, said = _named(expect, arms, other)
  if arm is None:
    return None, said
  if expect.other in results.EQUAL:
    found = arm['against'].get(expect.other)
  else:
    against = arms.get(other)
    usable = against is not None and not against['failed']
    usable = usable and against.get('judged') == arm.get('judged')
    found = usable and compared(arm, partial(losses_of, against), usual)
  if not found:
    return None, said | {'verdict': 'nothing to compare it with'}
  verdict, change = found['verdict'], found['difference']
  said |= {
    'arm': f'{expect.arm} {found["other"] + change["mean"]:.4f}',
    'against': f'{other} {found["other"]:.4f}',
    'change': results.in_words(change),
    'verdict': verdict,
  }
  if verdict == 'one seed':
    return None, said
  wanted = {'below': ('better',), 'not above': ('better', 'no difference')}
  return verdict in wanted[expect.relation], said


def _is_faster(expect, arms, noise) -> tuple[bool | None, dict[str, str]]:
  """Seconds of whole runs; what two equal arms differ by is no difference."""
  arm, said = _named(expect, arms, expect.other)
  if arm is None:
    return None, said
  other = arms.get(expect.other)
  if not (arm['seconds'] and other and other['seconds']):
    return None, said | {'verdict': 'not timed'}
  ratio = other['seconds'] / arm['seconds']
  change = f'{ratio:.2f} times as fast, {expect.by:.2f} claimed'
  if abs(ratio - 1) <= noise:
    found = f'no difference: two equal arms differ by {noise:.1%}'
    return False, said | {'change': change, 'verdict': found}
  return ratio >= expect.by, said | {'change': change}


def _named(expect, arms, other: str) -> tuple[Any, dict[str, str]]:
  """The arm if it has a result, and the row of a table so far."""
  arm = arms.get(expect.arm)
  said = {'arm': expect.arm, 'against': other, 'change': '', 'verdict': ''}
  if arm is None:
    said['verdict'] = 'not run'
  elif arm['failed']:
    arm, said['verdict'] = None, 'failed'
  return arm, said
