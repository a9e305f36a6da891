"""The disk that an experiment takes: said before, checked, and given back.

Of a trial that is done its figures stay (metrics, log, visits), of a base the
model directory that trials start from. Checkpoints are there while a run, or
one that was stopped, may still need them. Sizes are counts of parameters, so
that nothing here touches a device: on an accelerator the workers need all of
its memory.
"""

from collections.abc import Iterable
import heapq
import itertools
import pathlib
import shutil
from typing import NamedTuple

from satjax import errors, flops
from satjax.config import stages
from satjax.config.run import Config
from satjax.lab.experiment.trials import Trial
from satjax.train import checkpoint

_FLOAT = 4  # bytes of a number in a checkpoint or a model directory
_SLACK = 1.05  # selections and what the file system rounds up
_FIXED = 200_000  # bytes of the small files of a checkpoint, a run, a directory
_RECORD = 4000  # of a line of metrics.jsonl, with what TensorBoard has of it
_RESULTS = 2_000_000  # tables and plots


class Disk(NamedTuple):
  """Bytes, at most."""

  peak: float  # at a time
  lasting: float  # when all is done

  def __str__(self) -> str:
    return (
      f'{_size(self.peak)} of disk at most, of which {_size(self.lasting)} stay'
    )


def _size(count: float) -> str:
  large = count >= 1e9
  return f'{count / 1e9:,.1f} GB' if large else f'{count / 1e6:.0f} MB'


def needed(trials: Iterable[Trial], jobs: int) -> Disk:
  """For trials and their bases, `jobs` at a time; what is there takes none."""
  runs, models = {}, {}
  for trial in trials:
    if trial.is_done:
      continue
    runs[trial.path] = trial.config
    if trial.base and not trial.base.model.exists():
      whole = trial.base.whole
      models[trial.base.model] = trial.config.model
      if not whole.model.exists():
        models[whole.model] = whole.config.model
        runs[whole.path] = whole.config
  lasting = _RESULTS + sum(map(_model, models.values()))
  lasting += sum(map(_figures, runs.values()))
  most = heapq.nlargest(jobs, map(_checkpoints, runs.values(), runs))
  return Disk(lasting + sum(most), lasting)


def check(need: Disk, folder: pathlib.Path) -> None:
  """Raises StorageError if the disk of `folder` has less than that free."""
  there = next(p for p in (folder, *folder.parents) if p.exists())
  free = shutil.disk_usage(there).free
  if need.peak > free:
    raise errors.StorageError(
      f'{folder} has {_size(free)} of disk free, and the experiment takes up to'
      f' {_size(need.peak)}; make room, or choose another --workdir, fewer'
      ' --jobs or a smaller --scale'
    )


def give_back(path: pathlib.Path) -> None:
  """Removes the checkpoints of a run that nothing goes on from."""
  for kind in checkpoint.KINDS:
    shutil.rmtree(path / kind, ignore_errors=True)


def _checkpoints(config: Config, path: pathlib.Path) -> float:
  """Of a run, at most: the regular ones, and both sides of every hop.

  Without what is there already, if it was stopped.
  """
  there = (
    file for kind in checkpoint.KINDS for file in (path / kind).rglob('*')
  )
  held = sum(file.stat().st_size for file in there)
  train, found = config.train, stages.stages(config)
  sizes = [_state(stage) for stage in found]
  every = train.checkpoint_every
  saved = -(-train.num_steps // every) if every else 1
  # The oldest goes when the next one is whole.
  regular = min(saved + (held > 0), train.keep_checkpoints + 1) * max(sizes)
  hops = sum(
    before + after
    for (before, after), stage in zip(itertools.pairwise(sizes), found[1:])
    if stage.operators
  )
  return max(0.0, regular + hops - held)


def _state(stage: stages.Stage) -> float:
  """Parameters and two moments; of adapters or maps, beside a whole model."""
  numbers = (4 if stage.has_frozen_base else 3) * flops.num_params(stage.model)
  return _SLACK * _FLOAT * numbers + _FIXED


def _model(model) -> float:
  return _SLACK * _FLOAT * flops.num_params(model) + _FIXED


def _figures(config: Config) -> float:
  train, model = config.train, stages.stages(config)[-1].model
  lines = train.num_steps / train.log_every
  if train.eval_every:
    lines += train.num_steps / train.eval_every
  visits = _FLOAT * model.num_layers * (model.num_heads + model.mlp_dim)
  return _RECORD * lines + visits + _FIXED
