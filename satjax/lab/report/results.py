"""Result files of experiments: found, read and checked.

A result is a JSON object that `satjax experiment` wrote. Whoever draws it may
rely on the forms below, and has only to ask for null.
"""

from collections.abc import Callable, Iterator, Mapping
import json
import os
import pathlib
from typing import Any
import zipfile

from satjax import errors
from satjax.config import forms

Result = Mapping[str, Any]

VERDICTS = ('holds', 'holds partly', 'does not hold', 'not tested')
EQUAL = {'steps': 'equal steps', 'time': 'equal time', 'flops': 'equal FLOPs'}
# What a reference is called in a sentence.
REFERENCES = {'sat': 'dense training', 'growth': 'training from scratch'}

# What is raised by reading a file whose content is broken.
_BROKEN = (ValueError, TypeError, EOFError, RecursionError, zipfile.BadZipFile)

# Of `forms`.
_NUMBER = (float, None)
_SPREAD = dict.fromkeys(('mean', 'low', 'high'), float)
_AGAINST = {
  'other': float,
  'difference': _SPREAD,
  'verdict': ('better', 'worse', 'no difference', 'one seed'),
  'validation?': _NUMBER,
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
  'loss': (_SPREAD, None),  # only of an arm that failed
  'early_stop': bool,
  'judged?': [int],
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
  'arms': {str: _ARM},
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
  found = sorted(path.glob('*.json'))
  return found or sorted(path.glob('results/*/*.json'))  # of a workdir


def parsed(
  path: pathlib.Path, parse: Callable[[pathlib.Path], Any], kind: str
) -> Any:
  """What `parse` makes of a file of some kind.

  Raises:
    DataError: its content is broken.
    StorageError: it cannot be read.
  """
  try:
    return parse(path)
  except OSError as error:
    raise errors.StorageError(
      f'cannot read {path}: {error.strerror}; name another, or make it readable'
    ) from error
  except _BROKEN as error:
    raise errors.DataError(
      f'{path} cannot be used as {kind}: {error}; write it anew with the'
      ' command that made it, repair it, or leave it out'
    ) from error


def from_json(path: pathlib.Path) -> dict[str, Any]:
  """The object of a JSON file, for `parsed`."""
  text = path.read_text(encoding='utf-8')
  value = json.loads(text, parse_constant=_refuse)
  if not isinstance(value, dict):
    raise ValueError(f'it is {errors.brief(value)}, not an object')
  return value


def _refuse(name: str) -> None:
  raise ValueError(f'{name} is no number of JSON; null is')


def check(values: dict[str, Any], file: str | os.PathLike = 'it') -> Result:
  """A result that has every key, and whose frontier has only arms of it.

  Raises:
    DataError: names the key, such as arms.dense.loss.mean, and its value.
  """
  for problem in _problems(values):
    raise errors.DataError(
      f'{file} cannot be used: {problem}; write it again with `satjax'
      ' experiment`'
    )
  return values


def _problems(values: dict[str, Any]) -> Iterator[str]:
  """What is wrong with a result; only the first may be asked for."""
  yield from forms.misfits(values, _RESULT, '')
  for name in (values['reference'], *values['frontier']):
    if name not in values['arms']:
      yield f'arms.{name} is missing'
  for name, arm in values['arms'].items():
    if arm['loss'] is None and arm['failed'] is None:
      yield f'arms.{name}.loss is None, not an object'


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
