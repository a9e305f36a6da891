"""metrics.jsonl and TensorBoard, and where the time of a run goes."""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import json
import math
import os
import pathlib
import time

from satjax import errors


class Writer:
  """Appends flat records to metrics.jsonl and to tensorboard/."""

  def __init__(self, workdir: pathlib.Path, step: int):
    """Opens the log of a run that has completed `step` steps.

    Lines of later steps, from before an interruption, are dropped: those steps
    are about to happen again.
    """
    from tensorboardX import SummaryWriter

    self._path = workdir / 'metrics.jsonl'
    try:
      _rewind(self._path, step)
      self._file = open(self._path, 'a')  # noqa: SIM115
      self._board = SummaryWriter(str(workdir / 'tensorboard'))
    except OSError as error:
      raise errors.StorageError(
        f'can not write metrics to {workdir}: {error.strerror}'
      ) from error

  def write(self, record: Mapping[str, float]) -> None:
    """One line; numbers that are not finite become null."""
    clean = {
      name: value if math.isfinite(value) else None
      for name, value in record.items()
    }
    self._file.write(json.dumps(clean) + '\n')
    self._file.flush()
    for name, value in record.items():
      if '/' in name:
        self._board.add_scalar(name, value, record['step'])

  def close(self) -> None:
    self._file.close()
    self._board.close()


def read(workdir: str | os.PathLike) -> list[dict[str, float]]:
  """The records of a run; a torn last line is left out."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    with contextlib.suppress(ValueError):
      records.append(json.loads(line))
  return records


def _rewind(path: pathlib.Path, step: int) -> None:
  kept = [r for r in read(path.parent) if r['step'] <= step]
  temporary = path.with_suffix('.tmp')
  temporary.write_text(''.join(json.dumps(r) + '\n' for r in kept))
  os.replace(temporary, path)


class Clock:
  """Seconds spent in each activity of a run.

  Whatever is not in a `with clock('name')` block counts as 'step'.
  """

  def __init__(self):
    self._start = time.perf_counter()
    self._spent = collections.Counter()

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
      yield
    finally:
      self._spent[name] += time.perf_counter() - start

  def totals(self) -> dict[str, float]:
    """Seconds by activity; their sum is the age of the clock."""
    age = time.perf_counter() - self._start
    return {'step': age - sum(self._spent.values()), **self._spent}
