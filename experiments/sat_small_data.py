"""The question: does SAT win where dense training over-fits?

Claim     on small fine-tuning sets leaving neurons out is a regulariser that
          saves time.
Source    ours: the setting in which anybody should use SAT, or not.
Runs      few pairs, about seven epochs. SAT with plain and with exact forward
          passes; dense for shorter schedules, dense stopped early by validation
          loss, dropout, a random choice (which is structured dropout), LoRA.
Cost      cpu: about 37 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 2 minutes of an H200, paper: 2 hours of one.
Command   satjax experiment experiments/sat_small_data.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_small_data.md
"""

from experiments import arms, scenarios
from satjax.experiment import spec

TITLE = 'Small fine-tuning sets'
PAPER = None
# By name: rate, forward pass, selection, share of the run at that rate.
METHODS = {
  'skip, 0.25': (0.25, 'skip', 'sample', 2 / 3),
  'skip, 0.5, top_k': (0.5, 'skip', 'top_k', 2 / 3),
  'exact, 0.5, top_k': (0.5, 'exact', 'top_k', 2 / 3),
  'exact, 0.75': (0.75, 'exact', 'sample', 2 / 3),
  'exact, 0.75, constant': (0.75, 'exact', 'sample', 1.0),
}
CLAIMS = (
  spec.Claim(
    'SAT ends below dense for as many steps, which over-fits',
    'ours',
    '',
    tuple(spec.Expect(name, 'below', 'steps') for name in METHODS),
  ),
  arms.worthwhile(METHODS),
  spec.Claim(
    'SAT ends below dense that is stopped early',
    'ours',
    '',
    tuple(spec.Expect(name, 'below', 'dense, stopped') for name in METHODS),
  ),
  spec.Claim(
    'SAT ends below dense with dropout',
    'ours',
    '',
    tuple(spec.Expect(name, 'below', 'dropout 0.2') for name in METHODS),
  ),
)
scenario = scenarios.small_data


def sweep(add, scenario):
  del scenario
  add('dense, stopped', {}, group='baselines', early_stop=True)
  add('dropout 0.2', {'model.dropout': 0.2}, group='baselines')
  for name, (rate, forward, selection, split) in METHODS.items():
    changes = {
      'sparsity.omitted_forward': forward,
      'sparsity.selection': selection,
      'sparsity.split': split,
    }
    add(name, scenarios.rates(rate) | changes, group='SAT')
