"""Layer protection: should some layers stay dense?

Claim     the first and the last layers are sensitive.
Source    SparseLoRA (Khaki et al., 2025) keeps them dense; SAT says nothing.
Runs      no layer dense, the first, the last, both, and the first half.
Cost      cpu: about 23 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 18 minutes of an H200, paper: 394 hours of one.
Command   satjax experiment experiments/sat_layers.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_layers.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Layers that stay dense'
PAPER = None
CLAIMS = (
  spec.Claim(
    'keeping the first and the last layer dense lowers the loss',
    'SparseLoRA',
    '',
    (spec.Expect('first and last', 'below', 'none'),),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  layers = scenario.config.model.num_layers
  for name, dense in {
    'none': (0, 0),
    'first': (1, 0),
    'last': (0, 1),
    'first and last': (1, 1),
    'first half': (layers // 2, 0),
  }.items():
    if sum(dense) < layers and (name != 'first half' or layers > 2):
      add(name, scenarios.SAT | {'sparsity.dense_layers': dense})
