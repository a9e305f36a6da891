"""The configuration that a command starts with: here every one is completed.

Rules and plans have to see the model that will train, and that is written in
the directory which `model.init_from` names. Whatever is not done as it was
written is said, on stderr.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from satjax import console
from satjax.config import defaults, idle
from satjax.config import file as config_file
from satjax.config.run import Config
from satjax.interop import huggingface, llama


def load(
  path: str, overrides: Sequence[str] = (), begun: Config | None = None
) -> Config:
  """The configuration of a file with overrides, as `config.file.read`.

  Of a run that has `begun`, what was left to satjax stays as it was then.

  Raises:
    ConfigError: names the file or the key, the value and what is allowed.
    DataError: `model.init_from` is no model directory.
  """
  values = config_file.read(path, overrides).to_dict()
  if begun is not None:
    values = defaults.as_begun(values, begun)
  config = Config.from_dict(with_shape(values))
  said = [*defaults.said(values, config), *config.remarks()]
  keys = [argument.partition('=')[0].split('.')[1:] for argument in overrides]
  given = {f'{group}.{key}': values[group][key] for group, key in keys}
  for line in [*said, *idle.remarks(config, given)]:
    console.say(line)
  return config


def resolve(config: Config) -> Config:
  """The configuration with the model of `model.init_from`; it says nothing."""
  if not config.model.init_from:
    return config
  return Config.from_dict(with_shape(config.to_dict()))


def with_shape(values: Mapping[str, Any]) -> Mapping[str, Any]:
  """Values whose model has the shape of the directory that they name, if any.

  Raises:
    DataError: it is no model directory.
  """
  match values:
    case {'model': {'init_from': str(directory), **model}} if directory:
      stored = dataclasses.asdict(huggingface.read_config(directory))
      own = {
        key: value
        for key, value in model.items()
        if key in llama.TRAINING or key not in stored
      }
      return {**values, 'model': {**stored, **own, 'init_from': directory}}
  return values
