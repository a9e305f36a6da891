"""Growth timing: how long should the base train?

Claim     the loss has a valley: growing random layers gains nothing, a base
          that trains too long wastes FLOPs, and between is flat.
Source    Stacking Your Transformers (Du et al., 2024), figures 8 and 23 to 28.
Runs      stacking four times after 0 to 80 % of the tokens from scratch, with
          the same FLOPs in all.
Cost      cpu: about 34 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 15 minutes of an H200, paper: 31,984 hours of one.
Command   satjax experiment experiments/growth_timing.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_timing.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Growth timing'
PAPER = None
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
CLAIMS = (
  spec.Claim(
    'stacking layers that have not trained gains nothing over scratch',
    'Du et al., 2024, figure 8',
    'd = 0 is about scratch',
    (spec.Expect('scratch', 'not above', 'at 0%'),),
  ),
  spec.Claim(
    'some training of the base is better than none',
    'Du et al., 2024, figure 8',
    'a valley, flat near its bottom',
    (spec.Expect('at 10%', 'below', 'at 0%'),),
  ),
  spec.Claim(
    'a base that trains too long wastes FLOPs',
    'Du et al., 2024, figure 8',
    'a valley, flat near its bottom',
    (spec.Expect('at 10%', 'below', 'at 80%'),),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  for share in SHARES:
    arms.add_grown(
      add,
      f'at {share:.0%}',
      arms.deepen(scenario, share=share),
      label={'share of the tokens': share},
    )
