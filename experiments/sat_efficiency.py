"""Efficiency: how much faster is a step, and how close to what FLOPs allow?

Claim     45 % more throughput in continual pre-training, 38 % less time in
          fine-tuning.
Source    SAT (Ma et al., 2024), abstract; rates and lengths are not public.
Runs      row lengths and rows a step, dense and SAT at a constant rate and with
          the ladder. A few steps each: seconds are what counts, not losses.
Cost      cpu: about 5 minutes on two cores, most of them to time steps;
          by FLOPs, gpu: a minute of an H200, paper: less than an hour of one.
Command   satjax experiment experiments/sat_efficiency.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_efficiency.md
"""

import dataclasses

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'Efficiency'
PAPER = None
SHAPES = ((4, 64), (8, 128), (4, 512), (16, 128))  # rows, tokens in a row
CLAIMS = (
  spec.Claim(
    'the ladder at rate 1/2 gives 45 % more throughput over a whole run',
    'SAT, abstract (CPT)',
    '+45 %',
    tuple(
      spec.Expect(f'SAT, {b} x {t}', 'faster', f'dense, {b} x {t}', 1.45)
      for b, t in SHAPES
    ),
  ),
)


def scenario(scale):
  found = scenarios.cpt(scale, 'efficiency')
  found.config.train.num_steps = 24
  found.config.train.log_every = 4
  found.config.optimizer.warmup_steps = 1
  return dataclasses.replace(
    found,
    seeds=found.seeds[:1],
    learning_rates=found.learning_rates[:1],
    lengths=(1.0,),
    baselines=(),
  )


def sweep(add, scenario):
  # Of a larger machine.
  scale = max(1, scenario.config.train.batch_size // 8)
  for rows, length in SHAPES:
    shape = {'train.batch_size': rows * scale, 'data.seq_len': length}
    name = f'{rows} x {length}'
    add(f'dense, {name}', shape, group=name)
    constant = scenarios.SAT | {'sparsity.split': 1.0}
    add(f'constant, {name}', shape | constant, group=name)
    add(f'SAT, {name}', shape | scenarios.SAT, group=name)


def notes(arms):
  """What the seconds come to, beside what the FLOPs allow."""
  for rows, length in SHAPES:
    dense = arms[f'dense, {rows} x {length}']
    for kind in ('constant', 'SAT'):
      arm = arms[f'{kind}, {rows} x {length}']
      if arm['seconds'] and dense['seconds']:
        found = dense['seconds'] / arm['seconds']
        limit = dense['flops'] / arm['flops']
        yield (
          f'{rows} x {length}, {kind}: {found:.2f} times as fast; its FLOPs'
          f' allow {limit:.2f}, efficiency {found / limit:.2f}'
        )
