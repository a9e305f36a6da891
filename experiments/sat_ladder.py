"""Shape of the ladder: when does it begin, how many rungs?

Claim     the last part of the run, near dense, decides how the dense model
          ends.
Source    SAT (Ma et al., 2024); its split and rungs are not public.
Runs      the share at the full rate (split) from 1/2 to 0.9, and 1 to 8 rungs.
Cost      cpu: about 25 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 20 minutes of an H200, paper: 446 hours of one.
Command   satjax experiment experiments/sat_ladder.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_ladder.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Shape of the ladder'
PAPER = None
SPLITS = (0.5, 2 / 3, 0.75, 0.9)
RUNGS = (1, 2, 4, 8)
CLAIMS = (
  spec.Claim(
    'four rungs end below one',
    'ours',
    '',
    (spec.Expect('split 0.67, rungs 4', 'below', 'split 0.67, rungs 1'),),
  ),
  spec.Claim(
    'a longer ladder (from half of the run) ends below a short one (from 0.9)',
    'ours',
    '',
    (spec.Expect('split 0.50, rungs 4', 'below', 'split 0.90, rungs 4'),),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  steps = scenario.config.train.num_steps
  shapes = [(split, 4) for split in SPLITS] + [(2 / 3, n) for n in RUNGS]
  for split, rungs in dict.fromkeys(shapes):
    if rungs <= (1 - split) * steps:  # a rung has a step at least
      add(
        f'split {split:.2f}, rungs {rungs}',
        scenarios.SAT | {'sparsity.split': split, 'sparsity.rungs': rungs},
        label={'split': round(split, 2), 'rungs': rungs},
      )
