"""Growth, then SAT: do the two ideas add up?

Claim     ours: a model that has grown may train with neurons left out for a
          while.
Source    ours; no paper has both.
Runs      stacking by 4, and stacking followed by SAT at two rates, all with the
          FLOPs of training from scratch.
Cost      cpu: about 22 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 9 minutes of an H200, paper: 20,356 hours of one.
Command   satjax experiment experiments/growth_then_sat.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_then_sat.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Growth, then SAT'
PAPER = None
RATES = (0.25, 0.5)
CLAIMS = (
  spec.Claim(
    'SAT after growth ends below growth alone, with the same FLOPs',
    'ours',
    '',
    tuple(spec.Expect(f'stack, SAT {r:g}', 'below', 'stack') for r in RATES),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  grown = arms.deepen(scenario)
  arms.add_grown(add, 'stack', grown)
  for rate in RATES:
    changes = scenarios.rates(rate) | {'sparsity.warm_start': 0.2}
    arms.add_grown(add, f'stack, SAT {rate:g}', grown | changes)
