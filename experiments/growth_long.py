"""A run long enough for its depth: does growth pay where depth does?

Claim     stacking beats scratch, and the shallow model that never grows, once
          the deep model sees enough tokens for its parameters.
Source    ours; on fewer tokens a parameter the shallow one wins.
Runs      half the width and three times the steps: about 17 tokens a parameter
          at cpu. Stacking by two and by four, early and later.
Cost      cpu: about 36 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 8 minutes of an H200; not at paper.
Command   satjax experiment experiments/growth_long.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_long.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'A run long enough for its depth'
PAPER = None
# By name: factor, share of the tokens from scratch.
ARMS = {
  'stack 4 at 10%': (4, 0.1),
  'stack 4 at 40%': (4, 0.4),
  'stack 2 at 40%': (2, 0.4),
}
CLAIMS = (
  spec.Claim(
    'stacking beats scratch with the same FLOPs, however small the model',
    'Du et al., 2024, figure 5',
    '',
    tuple(spec.Expect(name, 'below', 'flops') for name in ARMS),
  ),
  spec.Claim(
    'stacking beats the shallow model, trained on for the same FLOPs',
    'ours: else nobody needs the deep model',
    '',
    tuple(spec.Expect(name, 'below', scenarios.SHALLOW) for name in ARMS),
  ),
)


def scenario(scale):
  return scenarios.growth(scale, 'long', width=0.5, steps=3)


def sweep(add, scenario):
  for name, (factor, share) in ARMS.items():
    overrides = arms.deepen(scenario, factor=factor, share=share)
    arms.add_grown(add, name, overrides)
