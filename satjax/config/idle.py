"""Settings that somebody gave and that change nothing: none in silence."""

from collections.abc import Iterator, Mapping
import fnmatch
from typing import Any

from satjax.config import schema
from satjax.config.groups import AXES, SparsityConfig
from satjax.config.run import Config, field_of

# What says that something is off has an effect.
_SWITCHES = {f'sparsity.{x}_rate' for x in ('head', 'channel', 'layer')}
_SWITCHES |= {'lora.rank', 'growth.hops'}


def remarks(config: Config, given: Mapping[str, Any]) -> list[str]:
  """A line for each setting without effect, and why it has none.

  `given`: what a user chose one by one, by `group.key`.
  """
  found = []
  for name in given.keys() - _SWITCHES:
    reasons = [why for key, why in _idle(config) if fnmatch.fnmatch(name, key)]
    group, _, key = name.partition('.')
    now = getattr(getattr(config, group), key)
    if group == 'model' and config.model.init_from and now != given[name]:
      reasons.append(f'{config.model.init_from} sets it to {now!r}')
    if reasons:
      found.append(f'config.{name} {given[name]!r} has no effect: {reasons[0]}')
    elif group == 'sparsity':
      found += _idle_axes(config.sparsity, key)
  return sorted(found)


def _idle_axes(sparsity: SparsityConfig, key: str) -> Iterator[str]:
  """Of a setting by axis, what it says of axes that stay whole."""
  if not field_of('sparsity', key).metadata['axes']:
    return
  named = dict(zip(AXES, ('head_rate', 'channel_rate', 'layer_rate')))
  for axis, own in schema.pairs(getattr(sparsity, key)) or ():
    if not sparsity.rates[axis]:
      yield (
        f'config.sparsity.{key} {own!r} of {axis!r} has no effect:'
        f' sparsity.{named[axis]} is 0'
      )


def _idle(config: Config) -> Iterator[tuple[str, str]]:
  """(pattern of keys, why they have no effect)."""
  sparsity, optimizer = config.sparsity, config.optimizer.name
  if not sparsity.is_on:
    yield 'sparsity.*', 'all rates of sparsity are 0'
  else:
    yield from _idle_choice(sparsity)
  if not sparsity.head_rate:
    yield 'sparsity.granularity', 'sparsity.head_rate is 0'
  if not sparsity.channel_rate:
    yield 'sparsity.channel_multiple', 'sparsity.channel_rate is 0'
  if sparsity.shape == 'linear':
    yield 'sparsity.rungs', "sparsity.shape 'linear' has none"
  if sparsity.split == 1:
    yield 'sparsity.rungs', 'sparsity.split 1.0 leaves no ladder'
  if not config.lora.is_on:
    yield 'lora.*', 'lora.rank is 0'
  if not config.growth.hops:
    yield 'growth.*', 'growth.hops is ()'
  if not config.data.eval:
    yield 'train.eval_batches', 'data.eval is ()'
    if not config.train.sample_prompts:
      yield 'train.eval_every', 'data.eval is ()'
  if not config.train.sample_prompts:
    yield 'train.sample_tokens', 'train.sample_prompts is ()'
  if config.data.packing != 'best_fit':
    yield 'data.too_long', "data.packing is not 'best_fit'"
  unused = {
    'adafactor': ('b1', 'b2', 'eps'),
    'sgd': ('b2', 'eps'),
    'lion': ('eps',),
  }
  for key in unused.get(optimizer, ()):
    yield f'optimizer.{key}', f'optimizer.name is {optimizer!r}'


def _idle_choice(sparsity: SparsityConfig) -> Iterator[tuple[str, str]]:
  """Of settings of the choice, those that its metrics do not look at."""
  axes = [axis for axis in AXES if sparsity.rates[axis]]
  metrics = {sparsity.metric(axis) for axis in axes}
  by = f'sparsity.importance {sparsity.importance!r}'
  if sparsity.selection == 'top_k':
    yield 'sparsity.temperature', "sparsity.selection is 'top_k'"
  sees = metrics - {'uniform', 'magnitude', 'cyclic'}
  # With 'skip' and 'mean', rows show the damage of a selection.
  if not sees and not sparsity.is_missed:
    yield 'sparsity.probe', f'{by} looks at no rows'
  if metrics <= {'uniform', 'cyclic'}:
    for key in ('balance', 'stale_scores'):
      yield f'sparsity.{key}', f'{by} has no scores'
    if not sparsity.layer_scale:  # a layer's factor counts as a score
      yield 'sparsity.temperature', f'{by} has no scores'
  if metrics == {'cyclic'}:
    yield 'sparsity.selection', f'{by} takes layers in turn'
  if axes == ['layers']:
    for key in ('balance', 'rescale', 'shards'):
      yield f'sparsity.{key}', 'only layers are left out'
