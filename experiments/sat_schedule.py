"""Schedule: does the ladder bring the dense model back?

Claim     without the ladder the model over-fits to its sub-networks; LORS
          repairs that.
Source    SAT (Ma et al., 2024), LORS figure; its values are not public.
Runs      LORS, a constant rate, a drop to dense after 2/3, the ladder in a
          mirror (dense first), and a little less every step (masked, so no
          faster than dense). Rate 1/2 at the start.
Cost      cpu: about 22 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 18 minutes of an H200, paper: 398 hours of one.
Command   satjax experiment experiments/sat_schedule.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_schedule.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Schedule of the omission rate'
PAPER = None
SCHEDULES = {
  'LORS': {},
  'constant': {'sparsity.split': 1.0},
  'drop to dense': {'sparsity.rungs': 1},
  'reversed': {'sparsity.shape': 'reversed'},
  'linear (masked)': {
    'sparsity.shape': 'linear',
    'sparsity.execution': 'masked',
  },
}
CLAIMS = (
  spec.Claim(
    'the ladder ends below a constant rate, evaluated dense',
    'SAT, LORS',
    'comparable to dense, more robust',
    (spec.Expect('LORS', 'below', 'constant'),),
  ),
  spec.Claim(
    'sparse first and dense last beats the other way round',
    'SAT, LORS',
    '',
    (spec.Expect('LORS', 'below', 'reversed'),),
  ),
  spec.Claim(
    'several rungs beat one drop to dense',
    'SAT, LORS',
    '',
    (spec.Expect('LORS', 'below', 'drop to dense'),),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for name, changes in SCHEDULES.items():
    add(name, scenarios.SAT | changes)
