"""What a trial was like on its way: curves, ladder, visits, hops."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from satjax.lab.experiment.trials import Trial

_POINTS = 40  # of a curve
_BINS = 64  # of a heat map of channels


def none() -> dict[str, Any]:
  """Of an arm that failed."""
  return {'curves': None, 'ladder': None, 'visits': None, 'growth': []}


def of(trials: Sequence[Trial], by_step: np.ndarray | None) -> dict[str, Any]:
  """Means over seeds along the run, and what is known of its first one.

  Args:
    trials: of the seeds, with the same steps.
    by_step: seconds after each step, float64 [steps]; None: not timed.
  """
  records = [[r for r in t.records if 'train/loss' in r] for t in trials]
  first = records[0]
  steps = np.array([r['step'] for r in first])
  loss = np.mean([[r['train/loss'] for r in each] for each in records], axis=0)
  taken = np.unique(np.linspace(0, len(steps) - 1, _POINTS).round().astype(int))
  shown = steps[taken]
  seconds = None if by_step is None else by_step[shown - 1].tolist()
  evaluations = [trial.evaluations for trial in trials]
  losses = [[e['validation'] for e in each] for each in evaluations]

  def column(name):
    return [first[i][name] for i in taken]

  return {
    'curves': {
      'step': shown.tolist(),
      'tokens': column('tokens'),
      'flops': column('flops'),
      'seconds': seconds,
      'train': _smooth(loss)[taken].tolist(),
      'validation_step': [e['step'] for e in evaluations[0]],
      'validation': np.mean(losses, axis=0).tolist(),
    },
    'ladder': {
      'step': shown.tolist(),
      'omission_rate': column('sparsity/omission_rate'),
    },
    'visits': _visits(trials[0]),
    'growth': _growth(trials[0].records),
  }


def _smooth(values: np.ndarray) -> np.ndarray:
  """Running mean over a tenth of the values."""
  width = max(1, len(values) // 10)
  total = np.cumsum(np.concatenate([[0.0], values]))
  ends = np.arange(1, len(values) + 1)
  starts = np.maximum(0, ends - width)
  return (total[ends] - total[starts]) / (ends - starts)


def _visits(trial: Trial) -> dict[str, Any] | None:
  """Share of selections that neurons were in; channels sorted and binned."""
  path = trial.path / 'visits.npz'
  if not path.exists():
    return None
  with np.load(path) as file:
    counts = dict(file)
  total = max(1, int(counts.pop('selections')))
  shares = {name: count / total for name, count in counts.items()}
  if 'mlp' in shares:
    ordered = -np.sort(-shares['mlp'], axis=1)
    bins = np.array_split(ordered, min(_BINS, ordered.shape[1]), axis=1)
    shares['mlp'] = np.stack([b.mean(axis=1) for b in bins], axis=1)
  rounded = {n: np.round(share, 4).tolist() for n, share in shares.items()}
  return {'selections': total, **rounded}


def _growth(records) -> list[dict[str, float]]:
  """The hops of a run."""
  hops = []
  for record in records:
    if 'growth/loss_before' in record:
      hops.append(dict(record))
    elif hops and 'growth/steps_to_recover' in record:
      hops[-1]['growth/steps_to_recover'] = record['growth/steps_to_recover']
  wanted = ('loss_before', 'loss_after', 'steps_to_recover')
  return [
    {'step': hop['step'], **{n: hop.get(f'growth/{n}') for n in wanted}}
    for hop in hops
  ]
