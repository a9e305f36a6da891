"""Reading a configuration: a Python file or a run's JSON, then overrides."""

from collections.abc import Iterator, Sequence
import contextlib
import importlib.util
import json
import pathlib
import sys
import traceback
import types

from absl import flags
import ml_collections
from ml_collections import config_flags

from satjax import errors, files
from satjax.config import history, schema
from satjax.config.run import Config, allowed


def load(path: str, overrides: Sequence[str] = ()) -> Config:
  """The checked configuration of a file.

  Args:
    path: a Python file with `get_config()`, which is executed, or a JSON file
      such as a run's config.json, which is only read. `FILE.py:ARGUMENT` calls
      `get_config(ARGUMENT)`.
    overrides: `--config.group.key=value` arguments, in their order.

  Raises:
    ConfigError: names the file or the key, the value and what is allowed.
  """
  name, has_argument, argument = path.partition('.py:')
  file = pathlib.Path(f'{name}.py' if has_argument else path)
  if not file.is_file() or file.suffix not in ('.py', '.json'):
    raise errors.ConfigError(
      f'--config={path}: there is no such file, .py or .json; try'
      ' --config=configs/tiny.py'
    )
  if file.suffix == '.json':
    # Lists are the tuples that they were.
    values = ml_collections.ConfigDict(read_json(file).to_dict()).lock()
  else:
    values = _run_python(file, [argument] if has_argument else [])
  for argument in overrides:
    values = override(values, argument)
  return Config.from_dict(values)


def read_json(
  file: pathlib.Path, damaged: type[Exception] = errors.ConfigError
) -> Config:
  """The configuration of a run's config.json, of any version up to this one.

  Raises:
    ConfigError: it is no configuration; or what `damaged` says: it is no JSON.
  """
  try:
    values = json.loads(file.read_text())
  except (ValueError, RecursionError) as error:
    raise damaged(f'{file} is not valid JSON: {error}') from error
  try:
    return Config.from_dict(history.upgrade(values))
  except errors.ConfigError as error:
    raise errors.ConfigError(f'{file}: {error}') from error


def write_json(file: pathlib.Path, config: Config) -> None:
  """The inverse of `read_json`; raises OSError."""
  files.write_json(file, {'version': history.VERSION, **config.to_dict()})


def _run_python(
  file: pathlib.Path, arguments: Sequence[str]
) -> ml_collections.ConfigDict:
  asks = (
    'a config file is Python with a function get_config() that returns an'
    ' ml_collections.ConfigDict'
  )
  module = execute(file, asks)
  with explained(file, asks):
    values = module.get_config(*arguments)
    if not isinstance(values, ml_collections.ConfigDict):
      raise TypeError(f'get_config() gives a {type(values).__name__}')
  return values


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
  values: ml_collections.ConfigDict, argument: str
) -> ml_collections.ConfigDict:
  """The values with one `--config.group.key=value` applied.

  Raises:
    ConfigError: there is no such key, or the value is of another type.
  """
  _check_key(values, argument)
  arguments = ['satjax', argument]
  flag_values = flags.FlagValues()
  holder = config_flags.DEFINE_config_dict(
    'config', values, flag_values=flag_values, sys_argv=arguments
  )
  try:
    flag_values(arguments)
  except (flags.Error, TypeError, ValueError) as error:
    key, _, value = argument.removeprefix('--').partition('=')
    raise errors.ConfigError(
      f'{key} = {value!r}; allowed: {allowed(key)}'
    ) from error
  return holder.value


def _check_key(values: ml_collections.ConfigDict, argument: str) -> None:
  """Our own words for an unknown key, the same as for a key in a file."""
  name, separator, _ = argument.partition('=')
  parts = name.removeprefix('--config.').split('.')
  if not separator:
    raise errors.ConfigError(
      f'{argument}: write {name}=VALUE, such as --config.train.num_steps=100'
    )
  known = values.to_dict()
  for depth, part in enumerate(parts):
    if not isinstance(known, dict) or part not in known:
      prefix = '.'.join(['config', *parts[:depth]])
      siblings = known if isinstance(known, dict) else {}
      raise errors.ConfigError(schema.unknown_key(prefix, part, siblings))
    known = known[part]
