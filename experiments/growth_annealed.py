"""Growing a model that has been trained to its end.

Claim     copies of each layer in its place beat copies of the whole stack,
          where the learning rate of the base has decayed.
Source    arXiv 2510.08008, which grows a converged mixture of experts.
Runs      twice as many layers, by both operators, before the first step; the
          model as it is, for as many steps, and for as many FLOPs.
Cost      cpu and llm: about two hours each on two cores; not at paper.
Command   satjax experiment experiments/growth_annealed.py --scale=llm \\
            --workdir=runs/experiments
Result    experiments/results/growth_annealed.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Growing a model that was trained to its end'
PAPER = None
OPERATORS = ('stack', 'interpolate')
CLAIMS = (
  spec.Claim(
    'interpolation ends below stacking',
    'arXiv 2510.08008',
    'a lower loss and a higher accuracy, at every size',
    (spec.Expect('interpolate', 'below', 'stack'),),
  ),
  spec.Claim(
    'it pays to grow: the loss is below that of the model as it was, trained'
    ' for the same FLOPs',
    'ours: else nobody needs the deep model',
    '',
    tuple(spec.Expect(name, 'below', 'flops') for name in OPERATORS),
  ),
)
scenario = scenarios.annealed


def sweep(add, scenario):
  del scenario
  for operator in OPERATORS:
    add(operator, {'growth.hops': ((0, operator, 2),)})
