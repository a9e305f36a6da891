"""Where to leave out: heads, channels, or both?

Claim     heads and channels are both redundant; which is cheaper to leave out?
Source    SAT (Ma et al., 2024) omits both; the comparison is ours.
Runs      heads alone, channels alone and both, at rates whose FLOPs are close;
          the column of FLOPs says how close.
Cost      cpu: about 21 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 17 minutes of an H200, paper: 371 hours of one.
Command   satjax experiment experiments/sat_where.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_where.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Where neurons are left out'
PAPER = None
# At scale cpu an eighth of the heads has 8,192 weights in a layer, and an
# eighth of the channels 24,576.
ARMS = {
  'heads 0.875': (0.875, 0.0),
  'channels 0.5': (0.0, 0.5),
  'channels 0.625': (0.0, 0.625),
  'both 0.375': (0.375, 0.375),
}
CLAIMS = (
  spec.Claim(
    'leaving out both beats leaving out as much of one kind',
    'SAT, neurons are heads and channels',
    '',
    (
      spec.Expect('both 0.375', 'below', 'heads 0.875'),
      spec.Expect('both 0.375', 'below', 'channels 0.625'),
    ),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for name, where in ARMS.items():
    add(name, scenarios.rates(*where))
