"""The search: the best choices of the other experiments, put together.

Claim     with the largest weights (magnitude, top_k) that take part for long,
          SAT ends below dense training for the same measured time.
Source    ours; what sat_importance, sat_refresh, sat_schedule and sat_where
          found best, combined. The validation split chose among them.
Runs      plain and exact forward passes at several rates, of heads and channels
          or of channels alone; with an exact one, whose output is dense
          throughout, also without any ladder.
Cost      cpu: about 29 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 25 minutes of an H200, paper: 567 hours of one.
Command   satjax experiment experiments/sat_search.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_search.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'The search for a setting that pays'
PAPER = None
CLAIMS = (
  arms.worthwhile(arms.RECIPES),
  spec.Claim(
    'SAT at its best ends below LoRA and below the pruned twin',
    'ours',
    '',
    (
      spec.Expect('skip, 0.5, drop', 'below', 'LoRA'),
      spec.Expect('skip, 0.5, drop', 'below', 'static pruned twin'),
      spec.Expect('exact, 0.5', 'below', 'LoRA'),
    ),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for name, recipe in arms.RECIPES.items():
    add(name, recipe)
