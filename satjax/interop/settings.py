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
from satjax.interop import llama, models


def load(
  path: str,
  overrides: Sequence[str] = (),
  begun: Config | None = None,
  forward: str = 'auto',
) -> Config:
  """The configuration of a file with overrides, as `config.file.read`.

  Of a run that has `begun`, what was left to satjax, and the shape of the model
  that it started from, stay as they were then. `forward` is what
  `sparsity.omitted_forward` becomes where it was left to satjax.

  Raises:
    ConfigError: names the file or the key, the value and what is allowed.
    DataError: `model.init_from` is no model directory.
  """
  values = config_file.read(path, overrides).to_dict()
  Config.from_dict(values, rules='types')
  if forward != 'auto':
    values = defaults.with_forward(values, forward)
  if begun is None:
    config = resolve(values)
  else:
    values = defaults.as_begun(values, begun)
    config = Config.from_dict(_with_shape(values, begun))
  said = [*defaults.said(values, config), *config.remarks()]
  keys = [argument.partition('=')[0].split('.')[1:] for argument in overrides]
  given = {f'{group}.{key}': values[group][key] for group, key in keys}
  for line in [*said, *idle.remarks(config, given)]:
    console.say(line)
  return config


def resolve(values: Mapping[str, Any]) -> Config:
  """The configuration of some values, with the model of `model.init_from`.

  Raises as `load`: rules are for that model, not for the shape in `values`.
  """
  found = models.resolve(Config.from_dict(values, rules='types'))
  data = {**values['data'], 'tokenizer': found.data.tokenizer}
  model = dataclasses.asdict(found.model)
  return Config.from_dict({**values, 'data': data, 'model': model})


def _with_shape(values: Mapping[str, Any], begun: Config) -> dict[str, Any]:
  """Values with the shape that a run has from its `model.init_from`."""
  own = Config.from_dict(values, rules='types').model
  if not own.init_from:
    return dict(values)
  kept = {key: getattr(own, key) for key in llama.TRAINING}
  model = dataclasses.asdict(begun.model) | kept
  return {**values, 'model': model}
