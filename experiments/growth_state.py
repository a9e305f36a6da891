"""Optimizer state and learning rate at growth.

Claim     moments reset and the schedule restarted, as the paper does, against
          moments that grow along and a schedule that continues.
Source    ours; Stacking Your Transformers (Du et al., 2024) resets both and
          tests neither.
Runs      every choice of both; of moments also: those of new layers are reset.
Cost      cpu: about 25 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 11 minutes of an H200, paper: 23,263 hours of one.
Command   satjax experiment experiments/growth_state.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_state.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Optimizer state and learning rate at growth'
PAPER = None
CLAIMS = (
  spec.Claim(
    'grown moments end no higher than reset ones',
    'ours',
    '',
    tuple(
      spec.Expect(f'grow, {rate}', 'not above', f'reset, {rate}')
      for rate in ('restart', 'continue')
    ),
  ),
  spec.Claim(
    'restarting the learning rate does no harm',
    'ours',
    '',
    (spec.Expect('reset, restart', 'not above', 'reset, continue'),),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  for state in ('reset', 'reset_new', 'grow'):
    for rate in ('restart', 'continue'):
      changes = {'growth.opt_state': state, 'growth.learning_rate': rate}
      arms.add_grown(
        add,
        f'{state}, {rate}',
        arms.deepen(scenario) | changes,
        label={'moments': state, 'learning rate': rate},
      )
