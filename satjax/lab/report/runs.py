"""What the workdirs of runs say: files, checked; columns, fit for a plot.

What a run did not record is left out; what cannot be read is an error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from satjax import errors
from satjax.config import schema
from satjax.lab.report import results

# Activities that training consists of; the others prepare, look or save.
_TRAINING = tuple(
  f'time/{name}' for name in ('step', 'data', 'probe', 'gather', 'write_back')
)
_TOTALS = ('tokens', 'flops')  # so far, as time/* are


@dataclasses.dataclass(frozen=True)
class Run:
  """What a workdir says."""

  name: str  # the end of its path, as long as it takes to tell the runs apart
  config: Mapping[str, Any]  # config.json, or empty
  environment: Mapping[str, Any]  # environment.json, or empty
  # The columns of metrics.jsonl, float64 [records], NaN where a record says
  # nothing; `tokens`, `flops` and `time/*` are filled in, and `seconds` is
  # the training time.
  columns: Mapping[str, np.ndarray]
  visits: Mapping[str, np.ndarray]  # arrays of visits.npz, or empty
  hops: Sequence[Mapping[str, Any]]  # where it grew: see `hops`

  def known(self, column: str, where: Any = slice(None)) -> np.ndarray:
    """The finite values of some records; none where the column is absent."""
    if column not in self.columns:
      return np.empty(0)
    values = self.columns[column][where]
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
      columns=columns(records),
      config=_read(path / 'config.json', results.from_json),
      environment=_read(path / 'environment.json', results.from_json),
      visits=_read(path / 'visits.npz', _counts),
      hops=hops(records),
    )
    for path, records in zip(paths, map(_records, paths))
  ]


def hops(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Where a run grew: losses before and after, steps until the loss is back."""
  found = []
  wanted = ('loss_before', 'loss_after', 'steps_to_recover')
  for record in records:
    if 'growth/loss_before' in record:
      hop = {name: record.get(f'growth/{name}') for name in wanted}
      found.append({'step': record['step'], **hop})
    elif found and 'growth/steps_to_recover' in record:
      found[-1]['steps_to_recover'] = record['growth/steps_to_recover']
  return found


def _read(path: pathlib.Path, parse: Callable[[pathlib.Path], Any]) -> Any:
  """What `parse` makes of a file of a run; empty where there is none."""
  kind = f'{path.name} of a run'
  return results.parsed(path, parse, kind) if path.exists() else {}


def _records(workdir: pathlib.Path) -> list[dict[str, float | None]]:
  records = _read(workdir / 'metrics.jsonl', _lines)
  if not records:
    below = sorted(str(p.parent) for p in workdir.glob('*/metrics.jsonl'))
    wanted = ' '.join(below) or 'a folder that `satjax train` wrote'
    raise errors.ConfigError(
      f'{workdir} is not a workdir: it has no metrics.jsonl; name {wanted}'
    )
  return records


def _lines(path: pathlib.Path) -> list[dict[str, float | None]]:
  """Records of lines; a last one that was cut short is left out."""
  records, step = [], 0
  lines = path.read_text(encoding='utf-8').split('\n')
  for number, line in enumerate(lines, 1):
    with contextlib.suppress(ValueError):
      record = json.loads(line)
      if _is_record(record) and record['step'] >= step:
        records.append(record)
        step = record['step']
        continue
    if number < len(lines):
      raise ValueError(
        f'line {number}, {line[:60]!r}, is not an object of numbers with a'
        f' "step" of at least {step}'
      )
  if not records:
    raise ValueError('it has no records')
  return records


def _is_record(value: Any) -> bool:
  """Whether it is an object of numbers or null, with a step."""
  if not isinstance(value, dict) or not schema.is_number(value.get('step')):
    return False
  return all(v is None or schema.is_number(v) for v in value.values())


def _counts(path: pathlib.Path) -> dict[str, np.ndarray]:
  """How often neurons took part; empty if nobody selected any."""
  with np.load(path, allow_pickle=False) as file:
    visits = dict(file)
  ranks = {n: a.ndim for n, a in visits.items() if a.dtype.kind in 'iu'}
  expected = {'heads': 2, 'mlp': 2, 'layers': 1, 'selections': 0}
  fine = {'selections', *visits} == ranks.keys()
  if not fine or not ranks.items() <= expected.items():
    raise ValueError(f'its integers have ranks {ranks}, not {expected}')
  return visits if len(visits) > 1 and visits['selections'] > 0 else {}


def columns(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Of some records, one at least: see `Run.columns`."""
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
