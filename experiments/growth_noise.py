"""Noise: does breaking the symmetry of copies help?

Claim     up to 20 % of noise on stacked layers does no harm, more does; in
          width it helps.
Source    Stacking Your Transformers (Du et al., 2024), sections 5.2 and I.2.
Runs      stacking by 4 with 0 to 50 % of the initial distribution mixed in;
          twice the width, where copies are equal, without noise and with 20 %.
Cost      cpu: about 34 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 15 minutes of an H200, paper: 31,984 hours of one.
Command   satjax experiment experiments/growth_noise.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_noise.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

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
  spec.Claim(
    'noise of 20 % helps growth in width',
    'Du et al., 2024, section 5.2',
    '-0.27 perplexity, +0.41 accuracy',
    (spec.Expect('width, 0.2', 'below', 'width, 0'),),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  grow = {'stack': arms.deepen, 'width': arms.widen}
  arms_of = {'stack': SHARES, 'width': (0.0, 0.2)}
  for kind, shares in arms_of.items():
    for share in shares:
      options = {'noise': share} if share else {}
      arms.add_grown(
        add,
        f'{kind}, {share:g}',
        grow[kind](scenario, **options),
        group=kind,
        label={'noise': share, 'growth': kind},
      )
