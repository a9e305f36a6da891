"""Rescaling of the neurons that take part.

Claim     what is missing can be made up for by larger outputs of what is there.
Source    ours; no source of SAT mentions a factor.
Runs      no factor, 1 / (1 - rate) (inverse), and by the share of the energy
          that is kept (energy), for a random and an informed choice.
Cost      cpu: about 23 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 18 minutes of an H200, paper: 414 hours of one.
Command   satjax experiment experiments/sat_rescale.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_rescale.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Rescaling'
PAPER = None
CLAIMS = (
  spec.Claim(
    'no factor is best where neurons are chosen by importance',
    'ours: the kept ones carry more than their share already',
    '',
    (
      spec.Expect('maxip, none', 'not above', 'maxip, inverse'),
      spec.Expect('maxip, none', 'not above', 'maxip, energy'),
    ),
  ),
  spec.Claim(
    'the inverse factor helps where the choice is random',
    'dropout (Srivastava et al., 2014)',
    '',
    (spec.Expect('uniform, inverse', 'below', 'uniform, none'),),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for metric in ('uniform', 'maxip'):
    for rescale in ('none', 'inverse', 'energy'):
      add(
        f'{metric}, {rescale}',
        scenarios.SAT
        | {'sparsity.importance': metric, 'sparsity.rescale': rescale},
        label={'importance': metric, 'rescale': rescale},
      )
