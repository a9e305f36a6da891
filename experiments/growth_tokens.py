"""Token scaling: does the gain last on longer runs?

Claim     the gain of stacking falls with more tokens, and stays positive.
Source    Stacking Your Transformers (Du et al., 2024), section 4.2 (410M, up to
          750B tokens: +53.1, +33.7, +31.0 %).
Runs      stacking by 4 with 60, 100 and 140 % of the FLOPs, each with a full
          schedule, against scratch with as many.
Cost      cpu: about 22 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 9 minutes of an H200, paper: 20,356 hours of one.
Command   satjax experiment experiments/growth_tokens.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_tokens.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Token scaling'
PAPER = None
LENGTHS = (0.6, 1.0, 1.4)
CLAIMS = (
  spec.Claim(
    'stacking beats scratch however long the run',
    'Du et al., 2024, section 4.2',
    '+53.1 % at 400B tokens, +31.0 % at 700B',
    tuple(spec.Expect(f'stack, {x:.0%}', 'below', 'flops') for x in LENGTHS),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  for length in LENGTHS:
    arms.add_grown(
      add,
      f'stack, {length:.0%}',
      arms.deepen(scenario, share=0.1 * length),
      length=length,
      label={'FLOPs': length},
    )
