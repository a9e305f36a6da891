"""Supervised fine-tuning against a sceptic's baselines.

Claim     in fine-tuning SAT reaches the loss of dense training in less time.
Source    SAT (Ma et al., 2024), abstract: -38 % time in SFT.
Runs      SAT with plain omission, with mean and with an exact forward pass; a
          random choice, a base pruned once and for all, LoRA; dense at equal
          steps, time and FLOPs by its frontier.
Cost      cpu: about 22 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 15 minutes of an H200, paper: 5 hours of one.
Command   satjax experiment experiments/sat_sft.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_sft.md
"""

from experiments import scenarios
from satjax.experiment import spec

TITLE = 'Supervised fine-tuning'
PAPER = None
METHODS = ('SAT', 'SAT, mean', 'SAT, exact')
CLAIMS = (
  spec.Claim(
    'SAT is comparable to dense training for as many steps',
    'SAT, abstract',
    'comparable or better',
    (spec.Expect('SAT', 'not above', 'steps'),),
  ),
  spec.Claim(
    'SAT ends below dense training for the same measured time',
    'ours: what would make SAT worth its while',
    '',
    tuple(spec.Expect(name, 'below', 'time') for name in METHODS),
  ),
  spec.Claim(
    'a whole run with the ladder is as much faster as the paper says',
    'SAT, abstract; at which rate is not public, ours is 1/2',
    '38 % less time',
    (spec.Expect('SAT', 'faster', 'dense', 1 / (1 - 0.38)),),
  ),
  spec.Claim(
    'SAT ends below its baselines: a random choice, a pruned model, LoRA',
    'ours',
    '',
    (
      spec.Expect('SAT', 'below', 'uniform'),
      spec.Expect('SAT', 'below', 'static pruned twin'),
      spec.Expect('SAT', 'below', 'LoRA'),
    ),
  ),
)
scenario = scenarios.sft


def sweep(add, scenario):
  for name, forward in zip(METHODS, ('skip', 'mean', 'exact')):
    add(name, scenarios.SAT | {'sparsity.omitted_forward': forward})
  scenarios.add_paper_sizes(add, scenario)
