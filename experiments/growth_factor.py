"""Growth factor: how shallow may the base be?

Claim     factors of 2 to 4 are best, and a base of one layer is worse than
          scratch.
Source    Stacking Your Transformers (Du et al., 2024), figures 10 and 29 to 32.
Runs      stacking 2, 4 and 8 times, to the same depth, with the same FLOPs.
Cost      cpu: about 22 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 9 minutes of an H200, paper: 20,356 hours of one.
Command   satjax experiment experiments/growth_factor.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_factor.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Growth factor'
PAPER = None
FACTORS = (2, 4, 8)
CLAIMS = (
  spec.Claim(
    'factors 2 and 4 beat scratch',
    'Du et al., 2024, figure 10',
    'best between 2 and 4',
    (
      spec.Expect('factor 2', 'below', 'flops'),
      spec.Expect('factor 4', 'below', 'flops'),
    ),
  ),
  spec.Claim(
    'a base of one layer is worse than scratch',
    'Du et al., 2024, figure 10',
    '1 layer: worse',
    (spec.Expect('scratch', 'below', 'factor 8'),),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  for factor in FACTORS:
    if scenario.config.model.num_layers % factor == 0:
      arms.add_grown(
        add,
        f'factor {factor}',
        arms.deepen(scenario, factor=factor),
        label={'factor': factor},
      )
