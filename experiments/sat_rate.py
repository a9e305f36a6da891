"""Omission rate: how much can be left out?

Claim     a model that trains with neurons left out, and returns along the
          ladder, ends comparable to dense training, for less time.
Source    SAT (Ma et al., 2024), figure on omission rates; its values are not
          public, the rates here are ours.
Runs      rates from 1/8 to 3/4 of heads and channels, maxip, sampled, LORS.
Cost      cpu: about 24 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 19 minutes of an H200, paper: 428 hours of one.
Command   satjax experiment experiments/sat_rate.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_rate.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Omission rate'
PAPER = None
RATES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
CLAIMS = (
  spec.Claim(
    'SAT is comparable to dense training for as many steps',
    'SAT, abstract',
    'comparable or better',
    (
      spec.Expect('rate 0.25', 'not above', 'steps'),
      spec.Expect('rate 0.5', 'not above', 'steps'),
    ),
  ),
  spec.Claim(
    'SAT ends below dense training for the same measured time',
    'ours: what would make SAT worth its while',
    '',
    tuple(spec.Expect(f'rate {r:g}', 'below', 'time') for r in RATES),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for rate in RATES:
    add(f'rate {rate:g}', scenarios.rates(rate), label={'rate': rate})
