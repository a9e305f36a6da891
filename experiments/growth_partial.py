"""Partial stacking: which part of the stack is repeated?

Claim     all, then the middle and the back; repeating the front is worst.
Source    Stacking Your Transformers (Du et al., 2024), table 5.
Runs      a base of half the layers grows to the whole depth by repeating all of
          it, its back, its middle or its front.
Cost      cpu: about 25 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 11 minutes of an H200, paper: 23,263 hours of one.
Command   satjax experiment experiments/growth_partial.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_partial.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Partial stacking'
PAPER = None
CLAIMS = (
  spec.Claim(
    'stacking all is at least as good as stacking a part',
    'Du et al., 2024, table 5',
    'all > middle, back >> front',
    tuple(
      spec.Expect('all', 'not above', part)
      for part in ('back', 'middle', 'front')
    ),
  ),
  spec.Claim(
    'repeating the front is worse than repeating the back',
    'Du et al., 2024, table 5',
    'front below scratch',
    (spec.Expect('back', 'below', 'front'),),
  ),
)
scenario = scenarios.growth
# Of a base of 4 layers, in the notation of the paper; 2 layers at scale smoke.
_PARTS = {
  8: {'back': '12-34*3', 'middle': '1-23*3-4', 'front': '12*3-34'},
  4: {'back': '1-2*3', 'front': '1*3-2'},
}


def sweep(add, scenario):
  layers = scenario.config.model.num_layers
  arms.add_grown(add, 'all', arms.deepen(scenario, factor=2))
  for name, target in _PARTS.get(layers, _PARTS[8]).items():
    hop = (0.1, 'partial', target)
    sizes = {'num_layers': 2 if layers == 4 else 4}
    arms.add_grown(add, name, arms.grow(scenario, hop, **sizes))
