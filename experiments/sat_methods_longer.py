"""A second look at the best methods: twice and four times the tokens.

Claim     the order of the best methods is that of short runs, and so is what
          they gain on dense training of the same time.
Source    ours: sat_methods_cpt, whose best these are.
Runs      source code of Python: the best three, one seed; dense for as many
          steps, and what its lengths reach in the same time, three seeds.
Cost      llm: about three hours on two cores, after those of sat_methods_cpt,
          whose runs and times it shares; resumed by the same command.
Command   satjax experiment experiments/sat_methods_longer.py --scale=llm \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_methods_longer.md
"""

import dataclasses
import itertools

from experiments import arms, scenarios
from satjax.lab.experiment import spec

TITLE = 'A second look at the best methods'
PAPER = None
LENGTHS = (2.0, 4.0)
BEST = ('lora', 'half', 'sat_exact')  # the best first
CLAIMS = (
  spec.Claim(
    'the order of short runs holds',
    'ours',
    '',
    tuple(
      spec.Expect(arms.longer(one, n), 'not above', arms.longer(next_one, n))
      for n in LENGTHS
      for one, next_one in itertools.pairwise(BEST)
    ),
  ),
  spec.Claim(
    'a method ends below dense training for the same measured time',
    'ours: what would make it worth its while',
    '',
    tuple(
      spec.Expect(arms.longer(name, n), 'below', 'time')
      for n in LENGTHS
      for name in BEST
    ),
  ),
)


def scenario(scale):
  found = scenarios.with_room_for_layers(scenarios.cpt(scale))
  seeds = {'finalists': 0} if scale == 'llm' else {}  # of dense and LoRA alone
  return dataclasses.replace(found, lengths=(1.0, 1.4, *LENGTHS), **seeds)


def sweep(add, scenario):
  arms.add_longer(add, scenario, BEST, LENGTHS)
