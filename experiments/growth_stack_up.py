"""The stack-up: how soon the loss of well-tuned dense training is reached.

Claim     what helps alone helps together: at least twice as fast as dense AdamW
          with a tuned rate, to its own final loss.
Source    ours. Muon: Jordan, 2024. Growth: Du et al., 2024. Short rows first:
          GrowLength, arXiv 2310.00576.
Runs      20 tokens a parameter. Muon; growth from half of the layers; short
          rows first; these in pairs and together; layers dropped at a falling
          rate; SAT with a dense forward pass; all five. Each for three lengths
          of its own schedule, between which the time to the loss is read off.
Cost      cpu: about an hour and a half on two cores, where the runs of
          growth_when_20_cosine are shared; not at paper.
Command   satjax experiment experiments/growth_stack_up.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_stack_up.md
"""

import dataclasses
import itertools

from experiments import scenarios
from satjax.lab.experiment import spec

TITLE = 'The stack-up'
ANSWERS = 'Pre-training from scratch'
PAPER = None
LENGTHS = (0.5, 0.7, 0.9)
WHOLE = ('Muon', 'growth', 'short rows first')  # these leave nothing out
LEFT_OUT = ('layers dropped', 'SAT, exact')
ALL = 'all five'
CLAIMS = (
  spec.Claim(
    'together they reach the loss of dense AdamW in half of its steps',
    'ours',
    '',
    tuple(
      spec.Expect(f'{name}, 50%', 'not above', 'scratch')
      for name in ('Muon + growth', ' + '.join(WHOLE), ALL)
    ),
  ),
  spec.Claim(
    'each of them ends below dense AdamW of the same time',
    'ours',
    '',
    tuple(
      spec.Expect(f'{name}, 50%', 'below', 'time')
      for name in (*WHOLE, *LEFT_OUT)
    ),
  ),
)


def scenario(scale):
  lengths = (0.3, 1.0, 1.4) if scale == 'smoke' else (0.3, 0.4, 0.6, 1, 1.4, 2)
  return dataclasses.replace(scenarios.scratch(scale, 20), lengths=lengths)


def sweep(add, scenario):
  steps, tokens = scenario.config.train.num_steps, scenario.tokens_per_step
  for name, parts in _recipes(scenario).items():
    for length in LENGTHS:
      # A hop is a share of the arm's own steps.
      hops = tuple(
        (round(share * length * steps) * tokens, *how)
        for share, *how in parts['growth.hops']
      )
      add(
        f'{name}, {length:.0%}',
        parts | {'growth.hops': hops},
        group=name,
        label={'length': length},
        length=length,
        # Where the search begins: all want more than dense AdamW.
        rate_factor=4 if 'optimizer.name' in parts else 2,
      )


def _recipes(scenario):
  layers = scenario.config.model.num_layers
  data, train = scenario.config.data, scenario.config.train
  # One schedule for a run, however often the model changes in it.
  goes_on = {'growth.opt_state': 'grow', 'growth.learning_rate': 'continue'}
  parts = {
    'Muon': {'optimizer.name': 'muon'},
    'growth': {
      'model.num_layers': layers // 2,
      'growth.hops': ((0.4, 'stack', 2),),
      **goes_on,
    },
    'layers dropped': {
      'sparsity.layer_rate': 0.25,
      'sparsity.omitted_forward': {'layers': 'skip'},
      'sparsity.importance': {'layers': 'uniform'},
    },
    'SAT, exact': {
      'sparsity.head_rate': 0.5,
      'sparsity.channel_rate': 0.5,
      'sparsity.importance': {'heads': 'wanda_out', 'mlp': 'maxip'},
      'sparsity.omitted_forward': {'heads': 'exact', 'mlp': 'exact'},
    },
    'short rows first': {
      'data.seq_len': data.seq_len // 2,
      'train.batch_size': 2 * train.batch_size,
      'growth.hops': ((0.6, 'length', 2),),
      **goes_on,
    },
  }
  recipes = parts | {ALL: _together(parts.values())}
  for count in (2, 3):
    for names in itertools.combinations(WHOLE, count):
      recipes[' + '.join(names)] = _together(parts[name] for name in names)
  return {n: {'growth.hops': ()} | recipe for n, recipe in recipes.items()}


def _together(parts):
  """Overrides of all; what is said by axis of each axis, hops in turn."""
  found = {}
  for part in parts:
    for key, value in part.items():
      if isinstance(value, dict):
        value = found.get(key, {}) | value
      if key == 'growth.hops':
        value = tuple(sorted((*found.get(key, ()), *value)))
      found[key] = value
  return found
