"""Reading a configuration: a Python file or a run's JSON, then overrides."""

from collections.abc import Iterator, Sequence
import contextlib
import importlib.util
import json
import pathlib
import sys
import traceback
import types
from typing import Any

import ml_collections

from satjax import console, errors, files
from satjax.config import history, schema
from satjax.config.run import Config, field_of

# Configurations that come with the package, in a clone and in a wheel.
RECIPES = pathlib.Path(__file__).parents[2] / 'configs'


def load(path: str, overrides: Sequence[str] = ()) -> Config:
  """The checked configuration of a file; arguments and errors as `read`."""
  return Config.from_dict(read(path, overrides))


def read(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """The values of a file as they are written, for `Config.from_dict`.

  Args:
    path: a Python file with `get_config()`, which is executed, or a JSON file
      such as a run's config.json, which is only read. `FILE.py:ARGUMENT` calls
      `get_config(ARGUMENT)`. `configs/NAME.py` is the one that satjax brings
      along where there is no such file.
    overrides: `--config.group.key=value` arguments.

  Raises:
    ConfigError: names the file or the key, the value and what is allowed.
  """
  name, has_argument, argument = path.partition('.py:')
  file = _find(pathlib.Path(f'{name}.py' if has_argument else path))
  if not file.is_file() or file.suffix not in ('.py', '.json'):
    names = ', '.join(sorted(p.stem for p in RECIPES.glob('[!_]*.py')))
    raise errors.ConfigError(
      f'--config={path}: there is no such file, .py or .json; try'
      f' --config=configs/tiny.py, or another that comes with satjax: {names}'
    )
  if file.suffix == '.json':
    values = history.anew(_parse_json(file))
    with _in_file(file):
      Config.from_dict(values, rules='recorded')
    values = ml_collections.ConfigDict(values)
  else:
    asks = (
      'a config file is Python with a function get_config() that returns an'
      ' ml_collections.ConfigDict'
    )
    module = execute(file, asks)
    with explained(file, asks):
      values = module.get_config(*([argument] if has_argument else []))
      if not isinstance(values, ml_collections.ConfigDict):
        raise TypeError(f'get_config() gives a {type(values).__name__}')
  return override(values, overrides)


def _find(file: pathlib.Path) -> pathlib.Path:
  """A file as it is named, or else the recipe of that name, and says so."""
  shipped = RECIPES.parent / file
  is_here = file.parts[:1] != (RECIPES.name,) or file.is_file()
  if is_here or not shipped.is_file():
    return file
  console.say(f'{file} is not here; {shipped} is used')
  return shipped


def read_json(
  file: pathlib.Path, damaged: type[Exception] = errors.ConfigError
) -> Config:
  """The configuration of a run's config.json, of any version up to this one.

  Raises:
    ConfigError: it is no configuration; or what `damaged` says: it is no JSON.
  """
  values = _parse_json(file, damaged)
  with _in_file(file):
    return Config.from_dict(history.upgrade(values), rules='recorded')


def _parse_json(file, damaged=errors.ConfigError) -> Any:
  try:
    return json.loads(file.read_text(), object_pairs_hook=_without_repeats)
  except (ValueError, RecursionError) as error:
    raise damaged(f'{file} is not valid JSON: {error}') from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """What a JSON object says; json takes the last of several values."""
  names = [name for name, _ in pairs]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f'it has {name!r} twice; keep one of them')
  return dict(pairs)


@contextlib.contextmanager
def _in_file(file: pathlib.Path) -> Iterator[None]:
  """Names the file whose values are wrong."""
  try:
    yield
  except errors.ConfigError as error:
    raise errors.ConfigError(f'{file}: {error}') from error


def write_json(file: pathlib.Path, config: Config) -> None:
  """The inverse of `read_json`; raises OSError."""
  files.write_json(file, {'version': history.VERSION, **config.to_dict()})


def execute(file: pathlib.Path, asks: str) -> types.ModuleType:
  """The module that a user's file is; `asks`, what it has to say, for errors.

  Imports such as `from configs import base` work beside the file, in a clone of
  the repository, and in the folder that the command runs in.

  Raises:
    ConfigError: it fails, and where.
  """
  for folder in (*file.resolve().parents[1::-1], pathlib.Path.cwd()):
    if str(folder) not in sys.path:
      sys.path.append(str(folder))
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  with explained(file, asks):
    spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def explained(file: pathlib.Path, asks: str) -> Iterator[None]:
  """Turns what goes wrong in a user's file into a message with its line."""
  try:
    yield
  except errors.SatjaxError:
    raise
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [x.lineno for x in frames if x.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
      lines = [error.lineno]
    where = f' at line {lines[-1]}' if lines else ''
    raise errors.ConfigError(
      f'{file} failed{where} with {type(error).__name__}: {error}; {asks}'
    ) from error


def override(
  values: ml_collections.ConfigDict, arguments: Sequence[str]
) -> ml_collections.ConfigDict:
  """The values with every `--config.group.key=value` put in.

  What a key may hold is checked by `Config.from_dict`.

  Raises:
    ConfigError: there is no such key, or it is given twice.
  """
  given = {}
  for argument in arguments:
    name, _, text = argument.partition('=')
    if name in given:
      raise errors.ConfigError(
        f'{name} is given twice, {given[name]!r} and {text!r}; keep one of them'
      )
    given[name] = text
    group, key = known_key(values, name)
    with values[group].ignore_type():
      values[group][key] = schema.parse(field_of(group, key), text)
  return values


def known_key(values: ml_collections.ConfigDict, name: str) -> tuple[str, str]:
  """Our own words for an unknown key, the same as for a key in a file."""
  parts = name.removeprefix('--config.').split('.')
  known, prefix = values.to_dict(), 'config'
  for part in parts[:2]:
    siblings = known if isinstance(known, dict) else {}
    if part not in siblings:
      raise errors.ConfigError(schema.unknown_key(prefix, part, siblings))
    known, prefix = known[part], f'{prefix}.{part}'
  if len(parts) > 2:
    raise errors.ConfigError(
      f'{name}: --{prefix} is a single setting; where it may differ by axis,'
      f""" give a mapping, such as --{prefix}="{{'layers': VALUE}}\""""
    )
  if len(parts) < 2:
    raise errors.ConfigError(
      f'{name} is a group of keys; set them one by one, such as'
      f' {name}.{next(iter(known), "KEY")}=VALUE'
    )
  return parts[0], parts[1]
