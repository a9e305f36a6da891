"""Settings that somebody gave and that change nothing: none in silence."""

from collections.abc import Iterator, Mapping
import fnmatch
from typing import Any

from satjax.config.run import Config

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
  return sorted(found)


def _idle(config: Config) -> Iterator[tuple[str, str]]:
  """(pattern of keys, why they have no effect)."""
  sparsity, optimizer = config.sparsity, config.optimizer.name
  if not sparsity.is_on:
    yield 'sparsity.*', 'all rates of sparsity are 0'
  if not sparsity.head_rate:
    yield 'sparsity.granularity', 'sparsity.head_rate is 0'
  if not sparsity.channel_rate:
    yield 'sparsity.channel_multiple', 'sparsity.channel_rate is 0'
  if sparsity.selection == 'top_k':
    yield 'sparsity.temperature', "sparsity.selection is 'top_k'"
  axes = [axis for axis, rate in sparsity.rates.items() if rate]
  blind = ('uniform', 'magnitude', 'cyclic')
  looks = any(sparsity.metric(axis) not in blind for axis in axes)
  if axes and not looks and 'mean' not in map(sparsity.forward, axes):
    yield (
      'sparsity.probe',
      f'sparsity.importance {sparsity.importance!r} looks at no rows',
    )
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
