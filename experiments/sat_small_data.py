"""The question: does SAT win where dense training over-fits?

Claim     on small fine-tuning sets leaving neurons out is a regulariser that
          saves time.
Source    ours: the setting in which anybody should use SAT, or not.
Runs      few pairs, about seven epochs. SAT with a plain and with an exact
          forward pass; dense for shorter schedules, dense stopped early by
          validation loss, dropout, a random choice (which is structured
          dropout), LoRA.
Cost      cpu: about 38 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 2 minutes of an H200, paper: an hour of one.
Command   satjax experiment experiments/sat_small_data.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_small_data.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Small fine-tuning sets'
PAPER = None
METHODS = {
  'skip, 0.25': scenarios.rates(0.25),
  'exact, 0.75': scenarios.rates(0.75) | scenarios.EXACT,
}
CLAIMS = (
  *arms.small_data(METHODS),
  spec.Claim(
    'SAT ends below dense for as many steps, which over-fits',
    'ours',
    '',
    tuple(spec.Expect(name, 'below', 'steps') for name in METHODS),
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
  add('dropout 0.2', {'model.dropout': 0.2}, group='baselines')
  arms.add_methods(add, METHODS)
