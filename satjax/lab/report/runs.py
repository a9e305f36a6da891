"""What the workdirs of runs say: files, checked; columns, fit for a plot.

What a run did not record is left out; what cannot be read is an error.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any
import zipfile

import numpy as np

from satjax import errors
from satjax.config import schema

# Activities that training consists of; the others prepare, look or save.
_TRAINING = tuple(
  f'time/{name}' for name in ('step', 'data', 'probe', 'gather', 'write_back')
)
_TOTALS = ('tokens', 'flops')  # so far, as time/* are


@dataclasses.dataclass(frozen=True)
class Run:
  """What a workdir says.

  Attributes:
    name: the end of its path, as long as it takes to tell the runs apart.
    config: config.json, or empty.
    environment: environment.json, or empty.
    columns: metrics.jsonl by name, float64 [records], NaN where a record says
      nothing; `tokens`, `flops` and `time/*` are filled in, and `seconds` is
      the training time.
    visits: arrays of visits.npz, or empty.
  """

  name: str
  config: Mapping[str, Any]
  environment: Mapping[str, Any]
  columns: Mapping[str, np.ndarray]
  visits: Mapping[str, np.ndarray]

  def known(self, column: str) -> np.ndarray:
    """The finite values of a column, in order; empty if it is absent."""
    values = self.columns.get(column, np.empty(0))
    return values[np.isfinite(values)]


def sources(columns: Iterable[str]) -> list[str]:
  """Names of held-out sources among the names of columns, each once."""
  found = (name for name in columns if name.startswith('eval/'))
  return list(dict.fromkeys(n[5:-5] for n in found if n.endswith('/loss')))


def read(workdirs: Sequence[str | os.PathLike]) -> list[Run]:
  """Reads runs, in the order given.

  Raises:
    ConfigError: no folder, one given twice, or one that is no workdir.
    DataError: a file of a workdir that is empty or broken.
    StorageError: a file that cannot be read.
  """
  paths = [pathlib.Path(workdir).resolve() for workdir in workdirs]
  if not paths or len(set(paths)) < len(paths):
    raise errors.ConfigError(
      f'workdirs {[str(path) for path in workdirs]}: name one or more folders'
      ' of runs, each once'
    )
  length = 1
  while len({path.parts[-length:] for path in paths}) < len(paths):
    length += 1
  return [
    Run(
      name='/'.join(path.parts[-length:]),
      columns=_columns(_records(path)),
      config=_read_json(path / 'config.json'),
      environment=_read_json(path / 'environment.json'),
      visits=_read_visits(path / 'visits.npz'),
    )
    for path in paths
  ]


def _broken(path: pathlib.Path, what: str) -> errors.DataError:
  return errors.DataError(
    f'{path} cannot be used: {what}; repair it, or leave {path.parent} out'
  )


def _read_text(path: pathlib.Path) -> str | None:
  try:
    return path.read_text(encoding='utf-8')
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as error:
    raise errors.StorageError(
      f'cannot read {path}: {error.strerror}; make it readable'
    ) from error
  except UnicodeDecodeError as error:
    raise _broken(path, 'it is not text') from error


def _records(workdir: pathlib.Path) -> list[dict[str, float | None]]:
  """The lines of metrics.jsonl; a last one that was cut short is left out."""
  path = workdir / 'metrics.jsonl'
  text = _read_text(path)
  if text is None:
    below = ' '.join(
      sorted(str(p.parent) for p in workdir.glob('*/' + path.name))
    )
    raise errors.ConfigError(
      f'{workdir} is not a workdir: it has no metrics.jsonl; name'
      f' {below or "a folder that `satjax train --workdir=...` wrote"}'
    )
  records, step = [], 0
  lines = text.split('\n')
  for number, line in enumerate(lines, 1):
    record = _parse(line)
    if record and record['step'] >= step:
      records.append(record)
      step = record['step']
    elif number < len(lines):
      raise _broken(
        path,
        f'line {number}, {line[:60]!r}, is not an object of numbers with a'
        f' "step" of at least {step}',
      )
  if not records:
    raise _broken(path, 'it has no records')
  return records


def _parse(line: str) -> dict[str, float | None] | None:
  """A record: numbers or null by name, and a step; None if it is not one."""
  try:
    record = json.loads(line)
  except ValueError:
    return None
  if not isinstance(record, dict) or not schema.is_number(record.get('step')):
    return None
  fine = all(v is None or schema.is_number(v) for v in record.values())
  return record if fine else None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  text = _read_text(path)
  try:
    value = {} if text is None else json.loads(text)
  except ValueError as error:
    raise _broken(path, f'it is not valid JSON ({error})') from error
  if not isinstance(value, dict):
    raise _broken(path, 'it is not a JSON object')
  return value


def _read_visits(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      visits = dict(file)
  except FileNotFoundError:
    return {}
  except (
    ValueError,
    EOFError,
    OSError,
    TypeError,
    zipfile.BadZipFile,
  ) as error:
    raise _broken(path, f'it is not an .npz of numbers ({error})') from error
  ranks = {n: a.ndim for n, a in visits.items() if a.dtype.kind in 'iu'}
  expected = {'heads': 2, 'mlp': 2, 'selections': 0}
  if {
    'selections',
    *visits,
  } != ranks.keys() or not ranks.items() <= expected.items():
    raise _broken(path, f'its integers have ranks {ranks}, not {expected}')
  return visits if len(visits) > 1 and visits['selections'] > 0 else {}


def _columns(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  names = list(dict.fromkeys(name for record in records for name in record))
  columns = {
    name: np.array([record.get(name) for record in records], np.float64)
    for name in names
  }
  step = columns['step']
  times = [name for name in names if name.startswith('time/')]
  if times:
    table = np.stack([columns[name] for name in times], axis=1)
    logged = np.isfinite(table).any(axis=1)
    # An activity that is not named has not happened yet.
    whole = _unwind(np.nan_to_num(table[logged]))
    for name, values in zip(times, whole.T):
      columns[name] = _fill(step, step[logged], values)
    spent = [columns[name] for name in _TRAINING if name in columns]
    columns['seconds'] = np.sum(spent, axis=0) if spent else 0 * step
  for name in _TOTALS:
    if name in columns:
      known = np.isfinite(columns[name])
      columns[name] = _fill(step, step[known], columns[name][known])
  return columns


def _unwind(seconds: np.ndarray) -> np.ndarray:
  """Totals [records, activities] of a run whose clock may start anew."""
  before, after = seconds[:-1], seconds[1:]
  is_new = (after < before).any(axis=1, keepdims=True)
  lost = np.cumsum(np.where(is_new, before, 0), axis=0)
  return seconds + np.concatenate([np.zeros_like(seconds[:1]), lost])


def _fill(step, known, values) -> np.ndarray:
  """Totals at every record, as of a run that begins with 0 of everything."""
  return np.interp(step, [0, *known], [0, *values])


def smooth(y: np.ndarray) -> np.ndarray:
  """Running mean over 5% of the values, at least 5; the first from fewer."""
  number = np.arange(len(y))
  reach = np.minimum(max(len(y) // 40, 2), number)
  low, high = number - reach, np.minimum(number + reach + 1, len(y))
  total = np.concatenate([[0], np.cumsum(y)])
  return (total[high] - total[low]) / (high - low)


def thin(
  x: np.ndarray, y: np.ndarray, stretches: int
) -> tuple[np.ndarray, np.ndarray]:
  """The ends of a line, and the lowest and highest value of each stretch."""
  if len(y) <= 2 * stretches:
    return x, y
  parts = np.array_split(np.arange(len(y)), stretches)
  extremes = [p[[y[p].argmin(), y[p].argmax()]] for p in parts]
  kept = np.unique([0, len(y) - 1, *np.ravel(extremes)])
  return x[kept], y[kept]


def sort_into_bins(values: np.ndarray, limit: int) -> tuple[np.ndarray, int]:
  """Sorts each row [L, F], the most first, and averages neighbours.

  Returns:
    [L, at most `limit`], and how many values are averaged; the last of a row
    has the rest.
  """
  ordered = -np.sort(-values.astype(np.float64), axis=1)
  size = -(-ordered.shape[1] // limit)
  starts = np.arange(0, ordered.shape[1], size)
  sizes = np.diff([*starts, ordered.shape[1]])
  return np.add.reduceat(ordered, starts, axis=1) / sizes, size


def activities(
  runs: Mapping[str, Mapping[str, np.ndarray]],
) -> tuple[list[str], dict[str, np.ndarray]]:
  """Runs that logged time/*, and by activity the seconds of each, so far."""
  names = dict.fromkeys(
    name for run in runs.values() for name in run if name.startswith('time/')
  )
  timed = [name for name, run in runs.items() if run.keys() & names]
  return timed, {
    name.removeprefix('time/'): np.array(
      [runs[r][name][-1] if name in runs[r] else 0 for r in timed]
    )
    for name in names
  }
