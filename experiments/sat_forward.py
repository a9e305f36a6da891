"""What omitted neurons do in the forward pass.

Claim     leaving neurons out of the forward pass too is what makes SAT fast;
          does the loss pay for it?
Source    SAT (Ma et al., 2024) leaves them out; `mean` and `exact` are ours.
Runs      left out (skip), their mean output (mean), computed without gradient
          (exact: a dense forward and a sparse backward pass), at three rates.
Cost      cpu: about 29 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 23 minutes of an H200, paper: 527 hours of one.
Command   satjax experiment experiments/sat_forward.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_forward.md
"""

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'What omitted neurons do in the forward pass'
PAPER = None
RATES = (0.25, 0.5, 0.75)
FORWARDS = ('skip', 'mean', 'exact')
CLAIMS = (
  spec.Claim(
    'an exact forward pass ends below plain omission for as many steps',
    'ours',
    '',
    tuple(
      spec.Expect(f'exact, {rate:g}', 'below', f'skip, {rate:g}')
      for rate in RATES
    ),
  ),
  spec.Claim(
    'a dense forward with a sparse backward pass beats dense in equal time',
    'ours',
    '',
    tuple(spec.Expect(f'exact, {r:g}', 'below', 'time') for r in RATES),
  ),
  spec.Claim(
    'plain omission beats dense in equal time',
    'SAT, abstract (comparable quality, less time)',
    '',
    tuple(spec.Expect(f'skip, {r:g}', 'below', 'time') for r in RATES),
  ),
)
scenario = scenarios.cpt


def sweep(add, scenario):
  del scenario
  for forward in FORWARDS:
    for rate in RATES:
      add(
        f'{forward}, {rate:g}',
        scenarios.rates(rate) | {'sparsity.omitted_forward': forward},
        label={'forward': forward, 'rate': rate},
      )
