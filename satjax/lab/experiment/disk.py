"""The disk that an experiment takes: said before, checked, and given back.

Of a trial that is done its figures stay, of a base the model directory that
trials start from. Checkpoints are there while a run, or one that was stopped,
may still need them. Sizes are counts of parameters, so that nothing here
touches a device.
"""

from collections.abc import Iterable
import heapq
import pathlib
import shutil

from satjax import errors, flops
from satjax.config import stages
from satjax.config.run import Config
from satjax.lab.experiment.trials import Trial
from satjax.train import checkpoint

_FIGURES = 3e6  # bytes of a run that is done


def needed(trials: Iterable[Trial], jobs: int) -> float:
  """Bytes at most: checkpoints of `jobs` runs, models of bases, figures."""
  todo = {trial.path: trial for trial in trials if not trial.is_done}
  bases = {
    trial.base.model: 4 * flops.num_params(trial.config.model)
    for trial in todo.values()
    if trial.base and not trial.base.model.exists()
  }
  each = (_checkpoints(trial.config) for trial in todo.values())
  most = sum(heapq.nlargest(jobs, each))
  return 1.1 * (most + sum(bases.values())) + _FIGURES * len(todo)


def _checkpoints(config: Config) -> float:
  """Parameters and two moments: those kept, one more, both sides of a hop."""
  last = stages.stages(config)[-1].model
  many = config.train.keep_checkpoints + 1 + 2 * len(config.growth.hops)
  return 12 * many * flops.num_params(last)


def in_words(need: float) -> str:
  return f'{need / 1e9:.3g} GB of disk at most'


def check(need: float, folder: pathlib.Path) -> None:
  """Raises StorageError if the disk of `folder` has less than that free."""
  there = next(p for p in (folder, *folder.parents) if p.exists())
  free = shutil.disk_usage(there).free
  if need > free:
    raise errors.StorageError(
      f'{folder} has {free / 1e9:.3g} GB free, and the experiment takes'
      f' {in_words(need)}; make room, or choose another --workdir, fewer --jobs'
      ' or a smaller --scale'
    )


def give_back(path: pathlib.Path) -> None:
  """Removes the checkpoints of a run that nothing goes on from."""
  for kind in checkpoint.KINDS:
    shutil.rmtree(path / kind, ignore_errors=True)
