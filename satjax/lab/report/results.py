"""Result files of experiments: found, read and checked.

A result is a JSON object that `satjax experiment` wrote. Whoever draws it may
rely on the forms below, and has only to ask for null.
"""

from collections.abc import Callable, Mapping
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

# Forms: a type; words, one of which it is; (form, None) of what may be null;
# [form] of a list; {str: form} of an object with any keys; forms by key, where
# ? marks one that may be absent.
_NUMBER = (float, None)
_SPREAD = dict.fromkeys(('mean', 'low', 'high'), float)
_AGAINST = {
  'other': float,
  'difference': _SPREAD,
  'verdict': ('better', 'worse', 'no difference', 'one seed'),
}
_HOP = {
  'step': int,
  **dict.fromkeys(('loss_before', 'loss_after', 'steps_to_recover'), _NUMBER),
}
_ARM = {
  'group': str,
  'overrides': dict,
  'label': dict,
  'learning_rate': _NUMBER,
  'search': {str: _NUMBER},
  'at_edge': bool,
  'steps': int,
  'tokens': float,
  'flops': float,
  **dict.fromkeys(('seconds', 'omission_rate', 'parameters'), _NUMBER),
  **dict.fromkeys(('bytes?', 'state_bytes?'), _NUMBER),
  'other?': {str: _NUMBER},
  'runs': [{'seed': int, 'test': _NUMBER}],
  'loss': _SPREAD,
  'early_stop': bool,
  'against': {f'{key}?': (_AGAINST, None) for key in EQUAL},
  'speedup': {'time?': _NUMBER, 'flops?': _NUMBER},
  'growth': [_HOP],
  'failed': (str, None),
}
_COMPARISON = ('arm', 'against', 'change', 'verdict')
_RESULT = {
  **dict.fromkeys(('name', 'title', 'doc', 'scale', 'scenario'), str),
  'family': tuple(REFERENCES),
  'environment': {
    'command': [str],
    'packages': {str: str},
    **dict.fromkeys(('devices', 'platform', 'python', 'commit'), (str, None)),
  },
  'seeds': [int],
  'learning_rates': [float],
  'process_seconds': _NUMBER,
  'source': str,
  'files?': {str: str},
  'answers?': str,
  'sooner?': {str: [float]},
  'reference': str,
  'frontier': [str],
  'arms': {str: dict},
  'timing': ({'noise?': _NUMBER, 'cores?': (int, None)}, None),
  'notes': [str],
  'paper': ({'columns': [str], 'rows': {str: list}}, None),
  'claims': [
    {
      **dict.fromkeys(('claim', 'source', 'paper'), (str, None)),
      'comparisons': [dict.fromkeys(_COMPARISON, str)],
      'verdict': VERDICTS,
    }
  ],
}
# Of an arm that failed there is no loss.
_FAILED = _ARM | {'loss': (_SPREAD, None)}


def in_words(difference: Mapping[str, float], between: str = ' ') -> str:
  """A mean difference, and its range over the seeds where there are several."""
  low, high = difference['low'], difference['high']
  spread = f'{between}({low:+.4f} to {high:+.4f})' if low < high else ''
  return f'{difference["mean"]:+.4f}{spread}'


def find(path: str | os.PathLike) -> list[pathlib.Path]:
  """Result files that a path names: itself, or those in the folder.

  Returns:
    Sorted by name; empty for what is the folder of a run, or has none.
  """
  path = pathlib.Path(path)
  if path.suffix == '.json' and not path.is_dir():
    return [path]
  if any((path / n).exists() for n in ('metrics.jsonl', 'config.json')):
    return []
  return sorted(path.glob('*.json'))


def read(path: str | os.PathLike, is_other: Callable[[Any], bool]) -> Any:
  """Reads one result file, and checks it, unless what it holds is another kind.

  Raises:
    DataError: it is not JSON, or a key is missing or no such value; names both.
    StorageError: it cannot be read.
  """
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
    values = json.loads(text, parse_constant=_refuse)
    return values if is_other(values) else check(values)
  except OSError as error:
    raise errors.StorageError(
      f'cannot read {path}: {error.strerror}; name a result file'
    ) from error
  except (ValueError, RecursionError) as error:
    is_json = isinstance(error, errors.DataError)
    what = error if is_json else f'it is not valid JSON ({error})'
    raise errors.DataError(
      f'{path} cannot be used: {what}; write it again with `satjax experiment`'
    ) from error


def _refuse(name: str) -> None:
  raise ValueError(f'{name} is no number of JSON; null is')


def check(values: Any) -> Result:
  """A result that has every key, and whose frontier has only arms of it.

  Raises:
    DataError: names the key, such as arms.dense.loss.mean, and its value.
  """
  _require(values, _RESULT, '')
  if not values['arms']:
    raise errors.DataError('arms is empty')
  for name, arm in values['arms'].items():
    form = _ARM if arm.get('failed') is None else _FAILED
    _require(arm, form, f'arms.{name}')
  # Of a run that stopped early, some arms are not there yet.
  return values | {
    'frontier': [name for name in values['frontier'] if name in values['arms']]
  }


def _require(value: Any, form: Any, where: str) -> None:
  """Raises DataError if a value does not have the form."""
  if isinstance(form, tuple) and form[-1] is None:
    if value is None:
      return
    form = form[0]
  if isinstance(form, tuple):
    fine, wanted = value in form, ' | '.join(map(repr, form))
  else:
    wanted, is_kind = _KINDS[form if isinstance(form, type) else type(form)]
    fine = is_kind(value)
  if not fine:
    raise errors.DataError(
      f'{where or "the file"} is {errors.brief(value)}, not {wanted}'
    )
  if isinstance(form, list):
    for number, inner in enumerate(value):
      _require(inner, form[0], f'{where}.{number}')
  elif isinstance(form, dict):
    for key, inside in form.items():
      for name in value if key is str else [key.removesuffix('?')]:
        path = f'{where}.{name}' if where else name
        if name in value:
          _require(value[name], inside, path)
        elif not key.endswith('?'):
          raise errors.DataError(f'{path} is missing')


_KINDS = {
  str: ('a text', lambda value: isinstance(value, str)),
  float: ('a number', schema.is_number),
  int: ('a whole number', schema.is_whole),
  bool: ('true or false', lambda value: isinstance(value, bool)),
  list: ('a list', lambda value: isinstance(value, list)),
  dict: ('an object', lambda value: isinstance(value, dict)),
}


def by_length(arms: Mapping[str, Any]) -> dict[str, list[str]]:
  """Of a group whose only coordinate is called 'length', the arms."""
  found: dict[str, list[str]] = {}
  for name, arm in arms.items():
    if [*arm['label']] == ['length']:
      found.setdefault(arm['group'], []).append(name)
  return found


def compared(result: Result) -> list[str]:
  """Arms besides the reference and its lengths; those of a group together."""
  frontier = [result['reference'], *result['frontier']]
  groups: dict[str, list[str]] = {}
  for name, arm in result['arms'].items():
    if name not in frontier:
      groups.setdefault(arm['group'], []).append(name)
  return sum(groups.values(), [])
