"""The search: the best choices of the other experiments, put together.

Claim     with the largest weights (magnitude, top_k) that take part for long,
          SAT ends below dense training for the same measured time.
Source    ours; what sat_importance, sat_refresh, sat_schedule and sat_forward
          found best, combined. The validation split chose among them.
Runs      plain and exact forward passes at several rates; with an exact one,
          whose output is dense throughout, also without any ladder.
Cost      cpu: about 27 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 21 minutes of an H200, paper: 484 hours of one.
Command   satjax experiment experiments/sat_search.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_search.md
"""

from experiments import scenarios
from satjax.experiment import spec

TITLE = 'The search for a setting that pays'
PAPER = None
STEADY = {
  'sparsity.importance': 'magnitude',
  'sparsity.selection': 'top_k',
  'sparsity.refresh_every': 64,
}
# By name: rate, forward pass, share of the run at that rate.
ARMS = {
  'skip, 0.125, drop': (0.125, 'skip', 2 / 3),
  'skip, 0.25, drop': (0.25, 'skip', 2 / 3),
  'skip, 0.5, drop': (0.5, 'skip', 2 / 3),
  'skip, 0.5, drop at 1/3': (0.5, 'skip', 1 / 3),
  'exact, 0.5': (0.5, 'exact', 1.0),
  'exact, 0.75': (0.75, 'exact', 1.0),
  'exact, 0.75, drop': (0.75, 'exact', 2 / 3),
}
CLAIMS = (
  spec.Claim(
    'SAT at its best ends below dense training for the same measured time',
    'ours: what would make SAT worth its while',
    '',
    tuple(spec.Expect(name, 'below', 'time') for name in ARMS),
  ),
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
  for name, (rate, forward, split) in ARMS.items():
    changes = {
      'sparsity.omitted_forward': forward,
      'sparsity.split': split,
      'sparsity.rungs': 1,
    }
    add(name, scenarios.rates(rate) | STEADY | changes)
