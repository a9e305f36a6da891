"""Continual pre-training against a sceptic's baselines.

Claim     in continual pre-training SAT reaches the loss of dense training in
          less time.
Source    SAT (Ma et al., 2024), abstract: +45 % throughput in CPT.
Runs      SAT with plain omission, with mean and with an exact forward pass; a
          random choice, a base pruned once and for all, LoRA; dense at equal
          steps, time and FLOPs by its frontier.
Cost      cpu: about 18 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 15 minutes of an H200, paper: 1,758 hours of one.
Command   satjax experiment experiments/sat_cpt.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_cpt.md
"""

from experiments import scenarios
from satjax.experiment import spec

TITLE = 'Continual pre-training'
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
    '45 % more throughput',
    (spec.Expect('SAT', 'faster', 'dense', 1.45),),
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
scenario = scenarios.cpt


def sweep(add, scenario):
  for name, forward in zip(METHODS, ('skip', 'mean', 'exact')):
    add(name, scenarios.SAT | {'sparsity.omitted_forward': forward})
  scenarios.add_paper_sizes(add, scenario)
