"""metrics.jsonl and TensorBoard, and where the time of a run goes."""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import json
import math
import os
import pathlib
import time
from typing import Any

from satjax import distributed, errors, files

# Activities that count as training; the others prepare, look or save.
TRAINING = ('step', 'data', 'probe', 'gather', 'write_back')
# Scalars of every train step.
OF_STEP = ('loss', 'grad_norm', 'learning_rate')


class Writer:
  """Appends flat records to metrics.jsonl and to tensorboard/.

  Of several processes the first one writes.
  """

  def __init__(
    self, workdir: pathlib.Path, step: int | None = None, grown: bool = True
  ):
    """Opens the log of a run.

    What an interrupted process wrote of steps that are about to happen again is
    dropped, from the lines and from TensorBoard.

    `step`: completed ones of the checkpoint that it goes on from; None: it
    begins. `grown`: whether the growth after `step` has happened as well.
    """
    from tensorboardX import SummaryWriter

    self._writes = distributed.is_first()
    if not self._writes:
      return

    self._path = workdir / 'metrics.jsonl'
    with self._writing():
      kept = rewind(self._path, step, grown)
      self._file = open(self._path, 'a')  # noqa: SIM115
      # TensorBoard hides what older files say of this step and of later ones.
      # Files of the same second are told apart by their ends.
      self._board = SummaryWriter(
        str(workdir / 'tensorboard'),
        purge_step=step or 0,
        filename_suffix=f'.{step or 0:09}.{os.getpid()}',
      )
      for record in kept:
        if record['step'] == step:
          self._show(record)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise errors.StorageError(
        f'cannot write metrics to {self._path.parent}: {error.strerror}; make'
        ' room and run the same command again'
      ) from error

  def write(self, record: Mapping[str, float]) -> None:
    """One line; numbers that are not finite become null."""
    if not self._writes:
      return
    clean = {
      name: value if math.isfinite(value) else None
      for name, value in record.items()
    }
    with self._writing():
      self._file.write(json.dumps(clean) + '\n')
      self._file.flush()
      self._show(clean)

  def _show(self, record: Mapping[str, float | None]) -> None:
    # Its queue would fill up, and wait for ever for a thread that has failed.
    if not self._board.file_writer.event_writer._worker.is_alive():
      raise OSError(0, 'TensorBoard events could not be written')
    for name, value in record.items():
      if '/' in name and value is not None:
        self._board.add_scalar(name, value, record['step'])

  def close(self) -> None:
    if not self._writes:
      return
    with self._writing():
      try:
        self._file.close()
      finally:
        self._board.close()


def read(workdir: str | os.PathLike) -> list[dict[str, float]]:
  """The records of a run; a torn last line is left out."""
  return _lines(pathlib.Path(workdir) / 'metrics.jsonl')


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    with contextlib.suppress(ValueError):
      records.append(json.loads(line))
  return records


def rewind(
  path: pathlib.Path, step: int | None, grown: bool = True
) -> list[dict[str, Any]]:
  """Drops lines of what will happen again; returns the records that stay.

  `step`, `grown`: as `Writer`.
  """
  kept = []
  if step is not None:
    kept = [
      r
      for r in _lines(path)
      if r['step'] < step
      or (r['step'] == step and (grown or 'growth/loss_before' not in r))
    ]
  files.write(path, ''.join(json.dumps(r) + '\n' for r in kept))
  return kept


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

  @property
  def training(self) -> float:
    """Seconds in steps, refreshes and waiting for data."""
    spent = self.totals()
    return sum(spent.get(name, 0.0) for name in TRAINING)
