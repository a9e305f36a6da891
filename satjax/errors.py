"""Errors that a user can act on; each class carries its exit code (sysexits).

A message states the value, the rule and the remedy. The command line prints it
without a traceback and exits with `exit_code`.
"""

import importlib
import reprlib
from typing import Any


class SatjaxError(Exception):
  """Any failure that satjax explains; exit code 70 (internal)."""

  exit_code = 70


class ConfigError(SatjaxError, ValueError):
  """A setting that is unknown, out of range or contradicts another one."""

  exit_code = 78


class DataError(SatjaxError, ValueError):
  """Data, a model directory or a checkpoint that cannot be used."""

  exit_code = 65


class StorageError(SatjaxError, OSError):
  """A path that cannot be read or written."""

  exit_code = 74


class NonFiniteError(SatjaxError, ArithmeticError):
  """The loss or the gradient stopped being finite."""

  exit_code = 70


class Preempted(SatjaxError):
  """The run was asked to stop, saved its state, and can be started again."""

  exit_code = 75


class PeerLost(SatjaxError):
  """Another process of the run ended; started again, all of them go on."""

  exit_code = 75


def import_optional(name: str, what: str, extra: str) -> Any:
  """Imports a library that is optional; ConfigError: it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ConfigError(
      f'{what} needs the library {name}, which cannot be imported ({error});'
      f" run: pip install -e '.[{extra}]'"
    ) from None


def brief(value: Any) -> str:
  """A value of a file for a message, however long or deep it is."""
  form = reprlib.Repr()
  form.maxstring = 200
  form.maxtuple = form.maxlist = form.maxdict = 30
  try:
    return form.repr(value)
  except ValueError:  # a number of thousands of digits
    return f'something of the type {type(value).__name__} with a huge number'
