"""The stack-up: how soon the loss of well-tuned dense training is reached.

Claim     what helps alone helps together: at least twice as fast as dense AdamW
          with a tuned rate, to its own final loss.
Source    ours. Muon: Jordan, 2024. Growth: Du et al., 2024. Short rows first:
          GrowLength, arXiv 2310.00576.
Runs      20 tokens a parameter. Muon; growth from half of the layers; layers
          dropped at a falling rate; SAT with a dense forward pass; short rows
          first; all together, and all but one. Each for three lengths of its
          own schedule, between which the time to the loss is read off.
Cost      cpu: about four hours on two cores; not at paper.
Command   satjax experiment experiments/growth_stack_up.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_stack_up.md
"""

import dataclasses

import numpy as np

from experiments import scenarios
from satjax.lab.experiment import compare, spec

TITLE = 'The stack-up'
ANSWERS = 'Pre-training from scratch'
PAPER = None
LENGTHS = (0.25, 0.4, 0.6)
ALL = 'all together'
NAMES = ('Muon', 'growth', 'layers dropped', 'SAT, exact', 'short rows first')
CLAIMS = (
  spec.Claim(
    'all together reach the loss of dense AdamW in half of its time',
    'ours',
    '',
    (spec.Expect(f'{ALL}, 40%', 'not above', 'scratch'),),
  ),
  spec.Claim(
    'each of them ends below dense AdamW of the same time',
    'ours',
    '',
    tuple(spec.Expect(f'{name}, 60%', 'below', 'time') for name in NAMES),
  ),
)


def scenario(scale):
  found = scenarios.scratch(scale, 20)
  lengths = (0.3, 1.0, 1.4) if scale == 'smoke' else (0.4, 0.7, 1.0, 1.5, 2.25)
  return dataclasses.replace(found, name=f'stack-up-{scale}', lengths=lengths)


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
        label={'share of the steps': length},
        length=length,
      )


def _recipes(scenario):
  layers = scenario.config.model.num_layers
  data, train = scenario.config.data, scenario.config.train
  parts = {
    'Muon': {'optimizer.name': 'muon'},
    'growth': {
      'model.num_layers': layers // 2,
      'growth.hops': ((0.4, 'stack', 2),),
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
    },
  }
  recipes = parts | {ALL: _together(parts.values())}
  for name in parts:
    others = (part for other, part in parts.items() if other != name)
    recipes[f'all but {name}'] = _together(others)
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


def notes(found):
  """Seconds to the final loss of scratch, by recipe."""
  names = [n for n in found if found[n]['group'] not in ('', 'baselines')]
  recipes = {}
  for name in names:
    recipes.setdefault(found[name]['group'], []).append(found[name])
  target = {run['seed']: run['test'] for run in found['scratch']['runs']}
  whole = found['scratch']['seconds']
  for recipe, lengths in recipes.items():
    times = [_seconds_to(lengths, seed, loss) for seed, loss in target.items()]
    if not whole or None in times or not times:
      yield f'{recipe}: the loss of scratch is not reached, or not timed.'
      continue
    gains = [whole / seconds for seconds in times]
    yield (
      f'{recipe}: {np.mean(times):.1f} s to the loss of scratch, which takes'
      f' {whole:.1f} s: {np.mean(gains):.2f} times as fast ({min(gains):.2f} to'
      f' {max(gains):.2f}).'
    )


def _seconds_to(lengths, seed, loss):
  """Read off between two lengths, as for all speed-ups; None: outside."""
  points = sorted(
    (arm['seconds'], run['test'])
    for arm in lengths
    for run in arm['runs']
    if run['seed'] == seed and arm['seconds']
  )
  frontier = {seed: tuple(np.array(points).T)}
  return compare.speedup(frontier, 1.0, loss) if points else None
