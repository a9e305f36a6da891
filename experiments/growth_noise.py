"""Noise: does breaking the symmetry of copies help?

Claim     up to 20 % of noise on stacked layers does no harm, more does.
Source    Stacking Your Transformers (Du et al., 2024), sections 5.2 and I.2.
Runs      stacking by 4 with 0 to 50 % of the initial distribution mixed in;
          width with and without.
Cost      cpu: about 27 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 13 minutes of an H200, paper: 28,501 hours of one.
Command   satjax experiment experiments/growth_noise.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_noise.md
"""

from experiments import arms, scenarios
from satjax.experiment import spec

TITLE = 'Noise on the grown weights'
PAPER = None
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5)
CLAIMS = (
  spec.Claim(
    'noise of 20 % does no harm to stacking',
    'Du et al., 2024, I.2',
    'slightly better',
    (spec.Expect('stack, 0.2', 'not above', 'stack, 0'),),
  ),
  spec.Claim(
    'noise of 50 % harms stacking',
    'Du et al., 2024, I.2',
    'above 20 % clearly worse',
    (spec.Expect('stack, 0', 'below', 'stack, 0.5'),),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  for share in SHARES:
    options = {'noise': share} if share else {}
    arms.add_grown(
      add,
      f'stack, {share:g}',
      arms.stack(scenario, **options),
      label={'noise': share},
    )
