"""Settings that somebody gave and that change nothing: none in silence."""

from collections.abc import Callable, Mapping
import fnmatch
from typing import Any

from satjax.config.run import Config

# Patterns of keys, when they have no effect, and why not.
_IDLE: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str], ...] = (
  (
    ('sparsity.*',),
    lambda c: not c.sparsity.is_on,
    'sparsity.head_rate and sparsity.channel_rate are 0',
  ),
  (('lora.*',), lambda c: not c.lora.is_on, 'lora.rank is 0'),
  (('growth.*',), lambda c: not c.growth.hops, 'growth.hops is ()'),
  (
    ('train.eval_every', 'train.eval_batches'),
    lambda c: not c.data.eval,
    'data.eval is ()',
  ),
  (
    ('data.too_long',),
    lambda c: c.data.packing != 'best_fit',
    "data.packing is not 'best_fit'",
  ),
  (
    ('sparsity.temperature',),
    lambda c: c.sparsity.selection == 'top_k',
    "sparsity.selection is 'top_k'",
  ),
  (
    ('sparsity.rungs',),
    lambda c: c.sparsity.split == 1,
    'sparsity.split 1.0 leaves no ladder',
  ),
  (
    ('sparsity.channel_multiple',),
    lambda c: not c.sparsity.channel_rate,
    'sparsity.channel_rate is 0',
  ),
  (
    ('sparsity.granularity',),
    lambda c: not c.sparsity.head_rate,
    'sparsity.head_rate is 0',
  ),
  (
    ('optimizer.b1', 'optimizer.b2', 'optimizer.eps'),
    lambda c: c.optimizer.name == 'adafactor',
    "optimizer.name is 'adafactor'",
  ),
  (
    ('optimizer.b2', 'optimizer.eps'),
    lambda c: c.optimizer.name == 'sgd',
    "optimizer.name is 'sgd'",
  ),
  (
    ('optimizer.eps',),
    lambda c: c.optimizer.name == 'lion',
    "optimizer.name is 'lion'",
  ),
)
# What says that something is off has an effect.
_SWITCHES = (
  *('sparsity.head_rate', 'sparsity.channel_rate'),
  *('lora.rank', 'growth.hops'),
)


def remarks(config: Config, given: Mapping[str, Any]) -> list[str]:
  """A line for each setting without effect, and why it has none.

  `given`: what a user chose one by one, by `group.key`.
  """
  found = []
  for name, value in given.items():
    reasons = [
      why
      for patterns, is_idle, why in _IDLE
      if any(fnmatch.fnmatch(name, p) for p in patterns) and is_idle(config)
    ]
    group, _, key = name.partition('.')
    now = getattr(getattr(config, group), key)
    if config.model.init_from and group == 'model' and now != value:
      reasons.append(f'{config.model.init_from} sets it to {now!r}')
    if reasons and name not in _SWITCHES:
      found.append(f'config.{name} {value!r} has no effect: {reasons[0]}')
  return found
