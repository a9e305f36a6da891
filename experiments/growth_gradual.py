"""Gradual growth or one hop?

Claim     one hop beats doubling twice.
Source    Stacking Your Transformers (Du et al., 2024), section 5.1 and H.1;
          MIDAS (Saunshi et al., 2024) grows its middle.
Runs      one hop by 4; doubling at 10 % and at 20 % of the tokens; MIDAS.
Cost      cpu: about 22 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 9 minutes of an H200, paper: 20,356 hours of one.
Command   satjax experiment experiments/growth_gradual.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_gradual.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Gradual growth against one hop'
PAPER = None
CLAIMS = (
  spec.Claim(
    'one hop ends below doubling twice',
    'Du et al., 2024, H.1',
    'by 0.6 perplexity at 100B tokens',
    (spec.Expect('one hop', 'below', 'doubling twice'),),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  base = {'num_layers': scenario.config.model.num_layers // scenarios.FACTOR}
  step = base['num_layers']
  for name, hops in {
    'one hop': ((0.1, 'stack', 4),),
    'doubling twice': ((0.1, 'stack', 2), (0.2, 'stack', 2)),
    'midas': tuple((share, 'midas', step) for share in (0.1, 0.2, 0.3)),
  }.items():
    arms.add_grown(add, name, arms.grow(scenario, *hops, **base))
