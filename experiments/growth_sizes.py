"""Model-size scaling: does the gain shrink with size?

Claim     the gain of stacking does not shrink with size; both follow a power
          law.
Source    Stacking Your Transformers (Du et al., 2024), figure 5 and the fit L =
          a C^b.
Runs      models of three widths, trained with FLOPs that grow as the square of
          their parameters, from scratch and stacked.
Cost      cpu: about 21 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 9 minutes of an H200, paper: 19,654 hours of one.
Command   satjax experiment experiments/growth_sizes.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_sizes.md
"""

import numpy as np

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Model-size scaling'
PAPER = None
WIDTHS = (0.5, 0.75, 1.0)  # of the scenario's model
CLAIMS = (
  spec.Claim(
    'stacking beats scratch at every size',
    'Du et al., 2024, figure 5',
    '+49.1 % at 1.1B, +54.5 % at 3B, +54.6 % at 7B',
    tuple(
      spec.Expect(f'stack, width {w:g}', 'below', f'scratch, width {w:g}')
      for w in WIDTHS
    ),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  for width in WIDTHS:
    sizes = {
      f'model.{key}': size for key, size in arms.widths(scenario, width).items()
    }
    how = {'length': width**4, 'label': {'width': width}}  # parameters squared
    name = f'width {width:g}'
    arms.add_grown(add, f'scratch, {name}', sizes, group='scratch', **how)
    grown = arms.deepen(scenario, share=0.1 * width**2)
    arms.add_grown(add, f'stack, {name}', sizes | grown, **how)


def notes(results):
  """Fits L = a C^b to both kinds, and extrapolates as section 4.2 does."""
  for kind in ('scratch', 'stack'):
    found = [results[f'{kind}, width {width:g}'] for width in WIDTHS]
    found = [arm for arm in found if arm['loss']]
    if len(found) < 2:
      continue
    flops = np.array([arm['flops'] for arm in found])
    losses = np.array([arm['loss']['mean'] for arm in found])
    b, offset = np.polyfit(np.log(flops), np.log(losses), 1)
    a, ahead = np.exp(offset), 100 * flops.max()
    yield (
      f'{kind}: L = {a:.4g} C^{b:.4f}; extrapolated to {ahead:.1e} FLOPs'
      f' {a * ahead**b:.3f} nats'
    )
