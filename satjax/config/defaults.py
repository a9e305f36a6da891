"""What 'auto' means, and how many steps a share of a run is: one table.

A run begins with random weights, goes on with a model that can do something, or
trains adapters beside it. What suits the first ruins the others: a pretrained
model learns best at 8e-5, where random weights take 1e-3.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from satjax.config import schema
from satjax.config.groups import AXES, Groups, OptimizerConfig, of_axis

# Settings of the optimizer by how a run begins; `end_lr` is a tenth of a peak.
# Under 'wsd' the rate holds until it decays over the last steps, so that a run
# may be extended (Haegele et al., 2024, who decay for a fifth too).
_GOES_ON = {
  'schedule': 'wsd',
  'warmup_steps': 0.1,
  'decay_steps': 0.2,
  'weight_decay': 0.0,
}
BY_START = {
  'scratch': {
    'schedule': 'cosine',
    'peak_lr': 1e-3,
    'warmup_steps': 50,
    'decay_steps': 0.2,
    'weight_decay': 0.1,
  },
  # Of three rates or more these did best on SmolLM2-135M, in continual
  # pre-training and in fine-tuning (experiments/results/sat_methods_cpt.md).
  'continue': {'peak_lr': 8e-5, **_GOES_ON},
  'lora': {'peak_lr': 1.28e-3, **_GOES_ON},
}
# Of the model that they were measured on. Adam's best rate falls with the width
# of the matrices (Yang et al., 2022, arXiv 2203.03466): at 4096 it is 1.1e-5.
_WIDTH = 576
_WHY = {
  'continue': 'to continue {init_from} without forgetting what it knows',
  'lora': 'for adapters, which take a higher rate than whole matrices',
}


def start_of(config: Groups) -> str:
  """How a run begins: a key of `BY_START`."""
  if config.lora.is_on:
    return 'lora'
  return 'continue' if config.model.init_from else 'scratch'


def resolve(config: Groups) -> Groups:
  """The configuration with a value for every 'auto' and every share.

  But the tokenizer of `model.init_from`, which its directory names.
  """
  train, steps = config.train, config.train.num_steps
  data, sparsity = config.data, config.sparsity
  if data.tokenizer == 'auto' and not config.model.init_from:
    data = dataclasses.replace(data, tokenizer='byte')
  every = {
    key: max(1, _whole(value, steps)) if isinstance(value, float) else value
    for key in ('eval_every', 'checkpoint_every')
    for value in [getattr(train, key)]
  }
  rungs = sparsity.rungs
  if sparsity.is_on:
    rungs = min(rungs, most_rungs(config) or rungs)
  # 'exact' ends far below 'skip' on a real model; some know only 'skip'.
  forward = sparsity.usual_forward
  if config.lora.is_on and (sparsity.head_rate or sparsity.channel_rate):
    forward = 'skip'
  return dataclasses.replace(
    config,
    data=data,
    train=dataclasses.replace(train, **every),
    optimizer=_optimizer(config.optimizer, _row(config), steps),
    sparsity=dataclasses.replace(
      sparsity,
      rungs=rungs,
      channel_multiple=_multiple(config),
      omitted_forward=_filled(sparsity.omitted_forward, forward),
    ),
  )


def _filled(value: Any, otherwise: Any) -> Any:
  """One for all, or by axis, with another one in place of 'auto'."""
  named = schema.pairs(value)
  if named is None:
    return otherwise if value == 'auto' else value
  whole = dict(schema.pairs(otherwise) or dict.fromkeys(AXES, otherwise))
  whole |= {axis: how for axis, how in named if how != 'auto'}
  first, *others = whole.values()
  return first if others == [first] * len(others) else tuple(whole.items())


def most_rungs(config: Groups) -> int:
  """How many rungs the ladder of a run has steps for; 0: it leaves none."""
  sparsity = config.sparsity
  if sparsity.shape == 'linear' or sparsity.split == 1:
    return sparsity.rungs
  room = (1 - sparsity.split) * (1 - sparsity.warm_start)
  return _whole(room, config.train.num_steps)


def _multiple(config: Groups) -> int:
  """A multiple that leaves some of the channels of the model to choose."""
  found = config.sparsity.channel_multiple
  while config.sparsity.channel_rate and found >= config.model.mlp_dim > 1:
    found //= 2
  return found


def _row(config: Groups) -> dict[str, Any]:
  """Of `BY_START`, with the learning rate for the width of the model."""
  start = start_of(config)
  width = _WIDTH if start == 'scratch' else config.model.embed_dim
  peak = BY_START[start]['peak_lr'] * min(1.0, _WIDTH / width)
  return BY_START[start] | {'peak_lr': float(f'{peak:.3g}')}


def _optimizer(
  given: OptimizerConfig, row: Mapping[str, Any], steps: int
) -> OptimizerConfig:
  found = {
    key: value if getattr(given, key) == 'auto' else getattr(given, key)
    for key, value in row.items()
  }
  peak, warmup = found['peak_lr'], _whole(found['warmup_steps'], steps)
  if given.warmup_steps == 'auto':
    warmup = min(warmup, steps // 2)  # no default refuses a short run
  if given.decay_steps == 'auto' and found['schedule'] != 'wsd':
    found['decay_steps'] = 0
  # Rounded up, so that there is a decay, and both fit into the run together.
  decay = -_whole(-found['decay_steps'], steps)
  end = given.end_lr
  if end == 'auto':
    end = peak if found['schedule'] == 'constant' else float(f'{peak / 10:g}')
  found |= {'warmup_steps': warmup, 'decay_steps': decay, 'end_lr': end}
  return dataclasses.replace(given, **found)


def _whole(value: float, steps: int) -> int:
  """A number of steps; a share of all of them is rounded down."""
  share = isinstance(value, float)
  return math.floor(round(value * steps, 6)) if share else value


def as_begun(values: Mapping[str, Any], begun: Groups) -> dict[str, Any]:
  """Values with what a run began with, for every 'auto' and every share.

  But the decay at the end of a run of another length, which is still to come.
  All values are of the right types.
  """
  found, ahead = dict(values), ()
  if values['train']['num_steps'] != begun.train.num_steps:
    ahead += ('decay_steps',)
  if values['optimizer']['peak_lr'] not in ('auto', begun.optimizer.peak_lr):
    ahead += ('end_lr',)  # of another peak
  for group in ('data', 'train', 'optimizer'):
    chosen = getattr(begun, group)
    found[group] = {
      key: getattr(chosen, key)
      if key not in ahead and _is_open(chosen, key, value)
      else value
      for key, value in values[group].items()
    }
  return with_forward(found, begun.sparsity.omitted_forward)


def with_forward(values: Mapping[str, Any], forward: Any) -> dict[str, Any]:
  """Values with `forward` where `sparsity.omitted_forward` is left open."""
  sparsity = values['sparsity']
  how = _filled(sparsity['omitted_forward'], forward)
  return {**values, 'sparsity': {**sparsity, 'omitted_forward': how}}


def _is_open(group: Any, key: str, value: Any) -> bool:
  """Whether a value leaves a key of a group to be chosen."""
  rules = {field.name: field.metadata for field in dataclasses.fields(group)}
  is_share = rules[key]['share'] and schema.is_share(value)
  return is_share or (value == 'auto' and rules[key]['word'] == 'auto')


def said(values: Mapping[str, Any], config: Groups) -> list[str]:
  """What was chosen for a model that goes on, or a short run, and why.

  Args:
    values: as they were given, 'auto' and shares among them.
    config: what became of them.
  """
  found, given = [], values['sparsity']
  rungs, multiple = given['rungs'], given['channel_multiple']
  if rungs != config.sparsity.rungs:
    found.append(
      f'config.sparsity.rungs {rungs} become {config.sparsity.rungs}: so many'
      f' fit into a run of {config.train.num_steps} steps'
    )
  if multiple != config.sparsity.channel_multiple:
    found.append(
      f'config.sparsity.channel_multiple {multiple} becomes'
      f' {config.sparsity.channel_multiple}: the model has'
      f' {config.model.mlp_dim} channels'
    )
  sparsity, how = config.sparsity, given['omitted_forward']
  skipped = [
    axis
    for axis, rate in sparsity.rates.items()
    if rate and of_axis(how, axis, 'auto') == 'auto'
    if sparsity.forward(axis) == 'skip'
  ]
  if skipped:
    found.append(
      f"config.sparsity.omitted_forward 'auto' of {', '.join(skipped)} becomes"
      " 'skip', which adapters, rescale and omitted 'decayed' need; its output"
      ' is missed'
    )
  start = start_of(config)
  chosen = [
    f'{key} {getattr(config.optimizer, key)!r}'
    for key, value in values['optimizer'].items()
    if value == 'auto'
  ]
  if start != 'scratch' and chosen:
    why = _WHY[start].format(init_from=config.model.init_from)
    chosen = ', '.join(chosen)
    found.append(
      f'config.optimizer, {why}: {chosen}; set them for other values'
    )
  return found
