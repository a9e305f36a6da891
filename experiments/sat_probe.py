"""Probe size: how many tokens does importance need?

Claim     an eighth of the batch is enough to rank neurons.
Source    ours.
Runs      the share of the batch that importance looks at, from all to 1/64.
Cost      cpu: about 21 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 17 minutes of an H200, paper: 382 hours of one.
Command   satjax experiment experiments/sat_probe.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_probe.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Size of the probe'
PAPER = None
SHARES = (1.0, 0.25, 0.125, 0.0625, 0.015625)
CLAIMS = (
  spec.Claim(
    'an eighth of the batch is as good as all of it',
    'ours',
    '',
    (spec.Expect('probe 0.125', 'not above', 'probe 1'),),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for share in SHARES:
    add(
      f'probe {share:g}',
      scenarios.SAT | {'sparsity.probe': share},
      label={'share of the batch': share},
    )
