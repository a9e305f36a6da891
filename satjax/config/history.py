"""What a configuration of an earlier version means today.

`config.json` carries the version of its form. A key that came later has, in an
older file, the value of what was done before there was a choice, so that a run
goes on as it began.
"""

from collections.abc import Mapping
from typing import Any

from satjax import errors
from satjax.config import schema

VERSION = 4  # of the form that is written; files without one are of version 0
# (version, 'group.key', what was done before).
ADDED: tuple[tuple[int, str, Any], ...] = (
  (1, 'data.attend', 'document'),
  (2, 'model.vocab_multiple', 0),
  (2, 'data.reasoning', 'template'),
  (2, 'data.unlearned', 'keep'),
  (2, 'train.keep_best', 0),
  (2, 'train.sample_prompts', ()),
  (2, 'train.sample_tokens', 64),
  (3, 'sparsity.layer_rate', 0.0),
  (3, 'sparsity.embed', 'train'),
)

# (version, 'group.key', what was said before, what says the same today).
RENAMED = ((2, 'data.template', 'plain', 'bare'),)

# 'group.key', or 'growth.hops: OPTION' of an operator, and what to do instead.
REMOVED = {
  'growth.hops: faithful_to_release': (
    "leave it out: growth is the paper's now, which keeps the function; what"
    ' the released code of the paper does instead is not here any more'
  ),
}


def anew(values: Any) -> Any:
  """The content of a `config.json` for another run, in today's form.

  What was nobody's choice is chosen as today: raises as `upgrade`.
  """
  if isinstance(values, Mapping):
    values = dict(values)
    if _never_decays(values.get('optimizer')):
      values['optimizer'] = {**values['optimizer'], 'decay_steps': 'auto'}
    if _is_dense(values.get('sparsity')):
      values['sparsity'] = {**values['sparsity'], 'omitted_forward': 'auto'}
  return upgrade(values)


def _is_dense(sparsity: Any) -> bool:
  """Nothing was left out, whatever word says what it would have done."""
  if not isinstance(sparsity, Mapping) or 'omitted_forward' not in sparsity:
    return False
  return not any(
    sparsity.get(f'{x}_rate') for x in ('head', 'channel', 'layer')
  )


def _never_decays(optimizer: Any) -> bool:
  """Schedule 'wsd' as it was by default once: held to the end."""
  found = optimizer if isinstance(optimizer, Mapping) else {}
  return (found.get('schedule'), found.get('decay_steps')) == ('wsd', 0)


def upgrade(values: Any) -> Any:
  """The content of a run's `config.json` of any version in today's form.

  Raises:
    ConfigError: it is of a later version, or sets what is no longer there.
  """
  if not isinstance(values, Mapping):
    return values  # `Config.from_dict` says what is wrong with it.
  values = dict(values)
  version = values.pop('version', 0)
  if type(version) is not int or not 0 <= version <= VERSION:
    raise errors.ConfigError(
      f'the configuration is of version {errors.brief(version)}, and this'
      f' satjax reads 0 to {VERSION}; upgrade satjax, or repair the file'
    )
  for key in REMOVED:
    group, _, name = key.partition('.')
    if isinstance(values.get(group), Mapping) and name in values[group]:
      raise errors.ConfigError(removed(key))
  for since, key, before in ADDED:
    group, name = key.split('.')
    if since > version and isinstance(values.get(group), Mapping):
      values[group] = {name: before, **values[group]}
  for since, key, before, now in RENAMED:
    group, name = key.split('.')
    found = values.get(group) if since > version else None
    if isinstance(found, Mapping) and found.get(name) == before:
      values[group] = {**found, name: now}
  if _never_decays(values.get('optimizer')):
    values['optimizer'] = {**values['optimizer'], 'schedule': 'constant'}
  sparsity = values.get('sparsity')
  if version < 4 and isinstance(sparsity, Mapping):
    # Axes that it did not name skipped then; they are 'exact' today.
    named = schema.pairs(sparsity.get('omitted_forward'))
    if named is not None:
      whole = dict.fromkeys(('heads', 'mlp', 'layers'), 'skip') | dict(named)
      values['sparsity'] = {**sparsity, 'omitted_forward': whole}
  return values


def removed(key: str) -> str:
  """What to say of a key that is no longer there."""
  return f'config.{key} is no longer a setting; {REMOVED[key]}'


def first_form(values: Mapping[str, Any]) -> dict[str, Any]:
  """Without later keys that change nothing: the same for every version.

  For names that are made from a configuration, which then stay what they were.
  """
  values = {name: dict(group) for name, group in values.items()}
  for _, key, before in ADDED:
    group, name = key.split('.')
    if values[group].get(name) == before:
      del values[group][name]
  return values
