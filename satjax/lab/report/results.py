"""Result files of experiments: found, read and checked.

A result is a JSON object that `satjax experiment` wrote. What may be absent is
filled in here, so that nothing else has to ask.
"""

from collections.abc import Iterator, Mapping
import json
import os
import pathlib
from typing import Any

from satjax import errors
from satjax.config import schema

Result = Mapping[str, Any]

VERDICTS = ('holds', 'holds partly', 'does not hold', 'not tested')
EQUAL = {'steps': 'equal steps', 'time': 'equal time', 'flops': 'equal FLOPs'}
# What a reference is called in a sentence.
REFERENCES = {'sat': 'dense training', 'growth': 'training from scratch'}


class _Maybe:
  """A value that may be null."""

  def __init__(self, form: Any):
    self.form = form


class _OneOf:
  """One of some words."""

  def __init__(self, *words: str):
    self.words = words


# Forms: a type; [form] of a list; {str: form} of an object with any keys; an
# object of forms by key, where a ? marks a key that may be absent.
_NUMBERS = _Maybe([_Maybe(float)])
_SPREAD = {'mean': float, 'low': float, 'high': float}
_AGAINST = {
  'other': float,
  'difference': _SPREAD,
  'verdict': _OneOf('better', 'worse', 'no difference', 'one seed'),
}
_FAILED = {
  'group': str,
  'overrides': dict,
  'label?': {str: object},
  'failed': str,
}
_ARM = {
  'group': str,
  'overrides': dict,
  'label': {str: object},
  'learning_rate': _Maybe(float),
  'search': {str: _Maybe(float)},
  'at_edge': bool,
  'steps': int,
  'tokens': float,
  'flops': float,
  'seconds': _Maybe(float),
  'omission_rate': _Maybe(float),
  'parameters': _Maybe(float),
  'runs': [{'seed': int, 'test': _Maybe(float)}],
  'loss': _SPREAD,
  'early_stop': bool,
  'against': {f'{key}?': _Maybe(_AGAINST) for key in EQUAL},
  'speedup': {'time?': _Maybe(float), 'flops?': _Maybe(float)},
  'curves': {
    **dict.fromkeys(('step', 'tokens', 'flops', 'train'), _NUMBERS),
    'seconds': _NUMBERS,
    'validation_step': _NUMBERS,
    'validation': _NUMBERS,
  },
  'ladder': {'step': _NUMBERS, 'omission_rate': _NUMBERS},
  'visits': _Maybe({'selections': int, 'heads?': [[float]], 'mlp?': [[float]]}),
  'growth': [
    {
      'step': int,
      'loss_before': _Maybe(float),
      'loss_after': _Maybe(float),
      'steps_to_recover': _Maybe(float),
    }
  ],
  'failed': _Maybe(str),
}
_RESULT = {
  **dict.fromkeys(('name', 'title', 'doc', 'scale', 'scenario'), str),
  'family': _OneOf(*REFERENCES),
  'environment': {
    'command': [str],
    'packages': {str: str},
    **dict.fromkeys(
      ('devices?', 'platform?', 'python?', 'commit?'), _Maybe(str)
    ),
  },
  'seeds': [int],
  'learning_rates': [float],
  'process_seconds': _Maybe(float),
  'source': str,
  'reference': str,
  'frontier': [str],
  'arms': {str: dict},
  'timing?': _Maybe({'noise?': _Maybe(float), 'cores?': _Maybe(int)}),
  'notes?': [str],
  'paper?': _Maybe({'columns': [str], 'rows': {str: [object]}}),
  'claims': [
    {
      **dict.fromkeys(('claim', 'source', 'paper', 'ours'), _Maybe(str)),
      'verdict': _OneOf(*VERDICTS),
    }
  ],
}
# Of an arm that failed, where it says no more than why.
_NOTHING = {
  **dict.fromkeys(('label', 'search', 'against', 'speedup'), {}),
  **dict.fromkeys(('learning_rate', 'steps', 'tokens', 'flops', 'seconds')),
  **dict.fromkeys(('omission_rate', 'parameters', 'loss', 'visits')),
  **dict.fromkeys(('at_edge', 'early_stop'), False),
  **dict.fromkeys(('runs', 'growth'), []),
  'curves': dict.fromkeys(_ARM['curves'], []),
  'ladder': {'step': [], 'omission_rate': []},
}


def find(path: str | os.PathLike) -> list[pathlib.Path]:
  """Result files that a path names: itself, or those in the folder.

  Returns:
    Sorted by name; empty for what is the folder of a run, or has none.
  """
  path = pathlib.Path(path)
  if path.suffix == '.json' and not path.is_dir():
    return [path]
  if (path / 'metrics.jsonl').exists():
    return []
  return sorted(path.glob('*.json'))


def read(path: str | os.PathLike) -> Result:
  """Reads and checks one result file.

  Raises:
    DataError: it is not JSON, or a key is missing or no such value; names both.
    StorageError: it cannot be read.
  """
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
    return check(json.loads(text, parse_constant=_refuse))
  except UnicodeDecodeError as error:
    raise _broken(path, 'it is not text') from error
  except OSError as error:
    raise errors.StorageError(
      f'cannot read {path}: {error.strerror}; name a result file'
    ) from error
  except errors.DataError as error:
    raise _broken(path, str(error)) from error
  except (ValueError, RecursionError) as error:
    raise _broken(path, f'it is not valid JSON ({error})') from error


def _refuse(name: str) -> None:
  raise ValueError(f'{name} is no number of JSON; null is')


def _broken(path: str | os.PathLike, what: str) -> errors.DataError:
  return errors.DataError(
    f'{path} cannot be used: {what}; write it again with `satjax experiment`'
  )


def check(values: Any) -> Result:
  """A result whose arms all have the same keys.

  Raises:
    DataError: names the key, such as arms.dense.loss.mean, and its value.
  """
  _require(values, _RESULT, '')
  arms = {}
  for name, arm in values['arms'].items():
    failed = arm.get('failed') is not None
    _require(arm, _FAILED if failed else _ARM, f'arms.{name}')
    known = {key: value for key, value in arm.items() if value is not None}
    arms[name] = (_NOTHING if failed else {}) | (known if failed else arm)
  # Of a run that stopped early, some arms are not there yet.
  frontier = [name for name in values['frontier'] if name in arms]
  more = {'arms': arms, 'frontier': frontier}
  return {'timing': None, 'paper': None} | values | more


def _require(value: Any, form: Any, where: str) -> None:
  """Raises DataError if a value does not have the form."""
  match form:
    case _Maybe():
      if value is not None:
        _require(value, form.form, where)
      return
    case _OneOf():
      fine = value in form.words
      wanted = ' | '.join(map(repr, form.words))
    case list():
      fine, wanted = isinstance(value, list), 'a list'
    case dict():
      fine, wanted = isinstance(value, dict), 'an object'
    case _:
      fine, wanted = _is(value, form), _KINDS[form]
  if not fine:
    raise errors.DataError(
      f'{where or "the file"} is {errors.brief(value)}, not {wanted}'
    )
  for key, inner, inside in _inside(value, form, where):
    _require(inner, inside, f'{where}.{key}' if where else str(key))


_KINDS = {
  str: 'a text',
  float: 'a number',
  int: 'a whole number',
  bool: 'true or false',
  dict: 'an object',
  object: 'anything',
}


def _is(value: Any, kind: type) -> bool:
  if kind is float:
    return schema.is_number(value)
  return schema.is_whole(value) if kind is int else isinstance(value, kind)


def _inside(value, form, where) -> Iterator[tuple[Any, Any, Any]]:
  """Keys, values and forms of what a value consists of."""
  if isinstance(form, list):
    yield from ((number, inner, form[0]) for number, inner in enumerate(value))
  elif isinstance(form, dict) and str in form:
    yield from ((key, inner, form[str]) for key, inner in value.items())
  elif isinstance(form, dict):
    for key, inside in form.items():
      name = key.removesuffix('?')
      if name in value:
        yield name, value[name], inside
      elif name == key:
        path = f'{where}.{name}' if where else name
        raise errors.DataError(f'{path} is missing')


def reference_points(
  result: Result, axis: str
) -> list[tuple[float, Mapping[str, float]]]:
  """The reference by length: what it cost, and its loss, cheapest first.

  Args:
    result: checked.
    axis: `flops` or `seconds`; lengths without are left out.
  """
  arms = [result['arms'][name] for name in result['frontier']]
  known = [a for a in arms if a['loss'] and (a[axis] or 0) > 0]
  return sorted(((a[axis], a['loss']) for a in known), key=lambda x: x[0])


def compared(result: Result) -> list[str]:
  """Arms besides the reference and its lengths; those of a group together."""
  frontier = [result['reference'], *result['frontier']]
  groups: dict[str, list[str]] = {}
  for name, arm in result['arms'].items():
    if name not in frontier:
      groups.setdefault(arm['group'], []).append(name)
  return sum(groups.values(), [])
