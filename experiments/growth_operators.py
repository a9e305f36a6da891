"""Growth operators: the four, in depth and in width.

Claim     growth in depth by stacking is best; growth in width gains nothing.
Source    Stacking Your Transformers (Du et al., 2024), figure 3.
Runs      direct (stack in depth), zero, random and learn, in depth from a
          quarter of the layers and in width from half the width, each with the
          FLOPs of training from scratch.
Cost      cpu: about 38 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 16 minutes of an H200, paper: 34,898 hours of one.
Command   satjax experiment experiments/growth_operators.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_operators.md
"""

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'Growth operators, in depth and in width'
PAPER = {
  'columns': ['loss', 'speed-up at equal loss'],
  'rows': {
    'scratch': [2.204, '0'],
    'depth, stack': [2.151, '+49.1%'],
    'depth, zero': [2.161, '+46.6%'],
    'depth, random': [2.258, '-25.7%'],
    'depth, learn': [2.156, '+48.6%'],
    'width, direct': [2.209, '-0.7%'],
    'width, zero': [2.249, '-17.9%'],
    'width, random': [2.227, '-13.8%'],
    'width, learn': [2.233, '-15.4%'],
  },
}
WIDTHS = ('direct', 'zero', 'random', 'learn')
CLAIMS = (
  spec.Claim(
    'stacking beats training from scratch with the same FLOPs',
    'Du et al., 2024, figure 3',
    '+49.1 % speed-up',
    (spec.Expect('depth, stack', 'below', 'flops'),),
  ),
  spec.Claim(
    'stacking beats its base, trained on for the same FLOPs',
    'ours: else nobody needs the deep model',
    '',
    (spec.Expect('depth, stack', 'below', scenarios.SHALLOW),),
  ),
  spec.Claim(
    'no other operator in depth ends below stacking',
    'Du et al., 2024, figure 3',
    'stack 2.151, learn 2.156, zero 2.161, random 2.258',
    tuple(
      spec.Expect('depth, stack', 'not above', f'depth, {name}')
      for name in ('zero', 'random', 'learn')
    ),
  ),
  spec.Claim(
    'masked random layers in depth lose to scratch',
    'Du et al., 2024, figure 3',
    '-25.7 %',
    (spec.Expect('scratch', 'below', 'depth, random'),),
  ),
  spec.Claim(
    'growth in width does not beat scratch',
    'Du et al., 2024, figure 3',
    '-0.7 % to -17.9 %',
    tuple(
      spec.Expect('scratch', 'not above', f'width, {name}') for name in WIDTHS
    ),
  ),
)
scenario = scenarios.growth


def sweep(add, scenario):
  steps = scenario.config.train.num_steps
  ramp = {'ramp_tokens': scenario.tokens_per_step * (steps // 10)}
  learn = {'steps': max(2, steps // 20)}
  depths = {'stack': {}, 'zero': {}, 'random': ramp, 'learn': learn}
  widths = {
    'direct': {'split': 'uneven'},
    'zero': {},
    'random': ramp,
    'learn': learn,
  }
  for operator, options in depths.items():
    changes = arms.deepen(scenario, operator, **options)
    arms.add_grown(add, f'depth, {operator}', changes, group='depth')
  for operator, options in widths.items():
    changes = arms.widen(scenario, operator, **options)
    arms.add_grown(add, f'width, {operator}', changes, group='width')
