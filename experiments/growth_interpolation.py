"""Stack or interpolate: in which order do copies come?

Claim     copies of the whole stack beat copies of each layer in its place.
Source    Stacking Your Transformers (Du et al., 2024), appendix H.2.
Runs      stack and interpolate by 2 and by 4, with the same FLOPs.
Cost      cpu: about 25 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 11 minutes of an H200, paper: 23,263 hours of one.
Command   satjax experiment experiments/growth_interpolation.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_interpolation.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Stack against interpolation'
PAPER = None
FACTORS = (2, 4)
CLAIMS = (
  spec.Claim(
    'stacking ends below interpolation',
    'Du et al., 2024, H.2',
    'interpolation starts equal, then falls behind',
    tuple(
      spec.Expect(f'stack, {g}', 'below', f'interpolate, {g}') for g in FACTORS
    ),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  for operator in ('stack', 'interpolate'):
    for factor in FACTORS:
      arms.add_grown(
        add,
        f'{operator}, {factor}',
        arms.deepen(scenario, operator, factor=factor),
        label={'operator': operator, 'factor': factor},
      )
