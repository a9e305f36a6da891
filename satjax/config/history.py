"""What a configuration of an earlier version means today.

`config.json` carries the version of its form. A key that came later has, in an
older file, the value of what was done before there was a choice, so that a run
goes on as it began.
"""

from collections.abc import Mapping
from typing import Any

from satjax import errors

VERSION = 1  # of the form that is written; files without one are of version 0
# (version, 'group.key', what was done before).
ADDED: tuple[tuple[int, str, Any], ...] = ((1, 'data.attend', 'document'),)


def upgrade(values: Any) -> Any:
  """The content of a `config.json` of any version in today's form.

  Raises:
    ConfigError: it is of a later version.
  """
  if not isinstance(values, Mapping):
    return values  # `Config.from_dict` says what is wrong with it.
  values = dict(values)
  version = values.pop('version', 0)
  if type(version) is not int or version > VERSION:
    raise errors.ConfigError(
      f'the configuration is of version {errors.brief(version)}, and this'
      f' satjax reads versions up to {VERSION}; upgrade satjax'
    )
  for since, key, before in ADDED:
    group, name = key.split('.')
    if since > version and isinstance(values.get(group), Mapping):
      values[group] = {name: before, **values[group]}
  return values


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
