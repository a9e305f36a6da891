"""Optimizer semantics: what happens to moments of omitted neurons?

Claim     resting moments, decaying ones, and bias correction by neuron end
          alike.
Source    ours; a scatter of gradients, as in DeepSpeed, would decay them.
Runs      frozen and decayed moments, Adam that counts steps by neuron, and both
          values of b2 that the field uses.
Cost      cpu: about 21 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 17 minutes of an H200, paper: 382 hours of one.
Command   satjax experiment experiments/sat_optimizer.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_optimizer.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Optimizer semantics'
PAPER = None
ARMS = {
  'frozen': {},
  'decayed': {'sparsity.omitted': 'decayed'},
  'frozen, count by neuron': {'sparsity.bias_correction': 'per_neuron'},
  'frozen, b2 0.999': {'optimizer.b2': 0.999},
  'decayed, b2 0.999': {
    'sparsity.omitted': 'decayed',
    'optimizer.b2': 0.999,
  },
}
CLAIMS = (
  spec.Claim(
    'moments of omitted neurons may rest',
    'ours; a draft on sparse gradients finds less than 1 %',
    'below 1 % of the loss',
    (
      spec.Expect('frozen', 'not above', 'decayed'),
      spec.Expect('frozen, b2 0.999', 'not above', 'decayed, b2 0.999'),
    ),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for name, changes in ARMS.items():
    add(name, scenarios.SAT | changes)
