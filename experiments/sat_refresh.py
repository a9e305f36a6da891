"""Refresh interval: how long may a selection stay?

Claim     a selection may stay for some steps, which saves the probe and the
          gathers, and lets moments and gradients shrink along.
Source    ours; SAT (Ma et al., 2024) selects at every iteration.
Runs      a fresh selection every 1, 4, 10 (the default), 16 and 64 steps, and
          every step by the scores of the refresh before.
Cost      cpu: about 23 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 18 minutes of an H200, paper: 414 hours of one.
Command   satjax experiment experiments/sat_refresh.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_refresh.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Refresh interval'
PAPER = None
EVERY = (1, 4, 10, 16, 64)
CLAIMS = (
  spec.Claim(
    'ten steps on one selection end no higher than a new one every step',
    'ours; SAT selects at every iteration',
    '',
    (spec.Expect('every 10 steps', 'not above', 'every 1 steps'),),
  ),
  spec.Claim(
    'scores may be one refresh old',
    'ours',
    '',
    (spec.Expect('every 1 steps, stale', 'not above', 'every 1 steps'),),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for steps in EVERY:
    add(
      f'every {steps} steps',
      scenarios.SAT | {'sparsity.refresh_every': steps},
      label={'steps': steps},
    )
  add(
    'every 1 steps, stale',
    scenarios.SAT
    | {'sparsity.refresh_every': 1, 'sparsity.stale_scores': True},
  )
