"""Importance and selection: which neurons should take part?

Claim     the choice by importance matters, and beats a random one.
Source    SAT (Ma et al., 2024), research question 1; its table is not public.
Runs      five metrics, each with the largest scores (top_k) and sampled by
          score; "uniform, top_k" is a random subset too, for ties are broken at
          random. Rate 1/2, LORS.
Cost      cpu: about 29 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 23 minutes of an H200, paper: 540 hours of one.
Command   satjax experiment experiments/sat_importance.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_importance.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Importance and selection'
PAPER = None
METRICS = ('uniform', 'magnitude', 'wanda', 'maxip', 'maxip_mean')
SELECTIONS = ('top_k', 'sample')
INFORMED = [
  f'{metric}, {selection}' for metric in METRICS[1:] for selection in SELECTIONS
]
CLAIMS = (
  spec.Claim(
    'choosing neurons by importance beats choosing at random',
    'SAT, research question 1',
    '',
    tuple(spec.Expect(arm, 'below', 'uniform, sample') for arm in INFORMED),
  ),
  spec.Claim(
    'a metric that sees inputs (maxip) beats the size of weights (magnitude)',
    'SAT, research question 1',
    '',
    tuple(
      spec.Expect(f'maxip, {s}', 'below', f'magnitude, {s}') for s in SELECTIONS
    ),
  ),
  spec.Claim(
    'sampling by score is no worse than the largest scores',
    'SAT, neuron selection',
    '',
    tuple(
      spec.Expect(f'{m}, sample', 'not above', f'{m}, top_k')
      for m in METRICS[1:]
    ),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for metric in METRICS:
    for selection in SELECTIONS:
      add(
        f'{metric}, {selection}',
        scenarios.SAT
        | {
          'sparsity.importance': metric,
          'sparsity.selection': selection,
        },
        label={'importance': metric, 'selection': selection},
      )
