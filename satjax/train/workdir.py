"""The folder of a run: claimed by one process, with a record of what it is."""

from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np

from satjax import distributed, errors, files
from satjax.config import file as config_file
from satjax.config.run import Config
from satjax.interop import models
from satjax.train import checkpoint, kept, resume

# Settings that do not change what a step computes, but for its rounding; a run
# may go on with others.
_FREE = (
  *('model.attention', 'model.scan', 'model.remat', 'data.eval'),
  *('train.loss_chunk', 'train.log_every', 'train.eval_every'),
  *('train.eval_batches', 'train.checkpoint_every', 'train.keep_checkpoints'),
  *('train.keep_best', 'train.sample_prompts', 'train.sample_tokens'),
  *('mesh.data', 'mesh.fsdp', 'mesh.tensor'),
)
_PACKAGES = (
  'satjax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
)


@contextlib.contextmanager
def claim(
  workdir: str | os.PathLike, config: Config, keep: Mapping[str, bytes] = {}
) -> Iterator[pathlib.Path]:
  """Opens the workdir of a run, new or begun, for this run alone.

  Of several processes the first one claims it, and the others wait. `keep`: of
  `kept.contents`.

  Raises:
    StorageError: the folder cannot be written, or another run has it.
    ConfigError: the folder holds a run with other settings, or the processes
      have different ones.
  """
  path = pathlib.Path(workdir)
  with contextlib.ExitStack() as stack:
    problem = None
    if distributed.is_first():
      try:
        stack.enter_context(_claim(path, config, keep))
      except errors.SatjaxError as error:
        problem = error
    claimed = distributed.agree(problem is None)
    if problem:
      raise problem
    if not claimed:
      raise errors.StorageError(
        f'the first process could not claim workdir {path}; it says why'
      )
    if not distributed.all_same(json.dumps(config.to_dict())):
      raise errors.ConfigError(
        'the processes of this run have different configurations; start all of'
        ' them with the same command'
      )
    yield path


@contextlib.contextmanager
def _claim(
  path: pathlib.Path, config: Config, keep: Mapping[str, bytes]
) -> Iterator[None]:
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock = open(path / 'lock', 'w')  # noqa: SIM115
  except OSError as error:
    raise errors.StorageError(
      f'cannot write to workdir {path}: {error.strerror}; choose another with'
      ' --workdir'
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise errors.StorageError(
        f'another process is training in {path}; wait for it to end, or choose'
        ' another --workdir'
      ) from error
    _record(path, config, keep)
    yield


def read_config(workdir: str | os.PathLike) -> Config:
  """The configuration that a run was started with."""
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    raise errors.ConfigError(
      f'{workdir} is not a workdir: it has no config.json; name the folder that'
      ' `satjax train --workdir=...` wrote'
    )
  return config_file.read_json(path, errors.DataError)


def settled(
  workdir: str | os.PathLike, config: Config
) -> tuple[Config, Config]:
  """The configuration as the run has it, and with paths that lead there now.

  Its architecture is that of `model.init_from`, which is read at the first
  start alone.
  """
  if has_begun(workdir):
    return kept.resumed(workdir, read_config(workdir), config)
  config = models.resolve(config)
  return config, config


def _record(path, config, keep) -> None:
  if has_begun(path):
    old = read_config(path)
    changes = _changes(old, config)
    if changes:
      raise errors.ConfigError(
        f'{path} holds a run with other settings:\n'
        + '\n'.join(changes)
        + '\nGo on with the old settings, or choose another --workdir.'
      )
    steps = checkpoint.steps_on_disk(path)
    if refused := resume.refusal(old, config, steps):
      raise errors.ConfigError(refused)
  try:
    config_file.write_json(path / 'config.json', config)
    files.write_json(path / 'environment.json', environment())
    is_new = not checkpoint.steps_on_disk(path)
    kept.write(path, keep, config, is_new)
  except OSError as error:
    raise errors.StorageError(
      f'cannot write to workdir {path}: {error.strerror}; make room, or choose'
      ' another --workdir'
    ) from error


def has_begun(workdir: str | os.PathLike) -> bool:
  """Whether there is a step to lose: one that was logged or saved."""
  path = pathlib.Path(workdir)
  is_logged = (path / 'metrics.jsonl').exists()
  return is_logged or bool(checkpoint.steps_on_disk(path))


def _changes(old: Config, new: Config) -> list[str]:
  free = _FREE
  if resume.is_longer(old, new):
    free += ('train.num_steps', 'optimizer.decay_steps')
  return [
    f'  config.{key}: {before!r} -> {after!r}'
    for key, (before, after) in old.changes(new).items()
    if key not in free and not kept.is_moved(key, before, after)
  ]


def environment() -> dict[str, object]:
  """Versions, devices and commit, for whoever reads the results later."""
  versions = {}
  for package in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  devices = jax.devices()
  return {
    'command': command(),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'packages': versions,
    'devices': f'{len(devices)} x {devices[0].device_kind}',
    'cpu_count': os.cpu_count(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'commit': _commit(),
  }


def command() -> list[str]:
  """What was typed, without folders of this machine: results are published."""
  name = pathlib.Path(sys.argv[0]).name
  return ['satjax' if name == '__main__.py' else name, *sys.argv[1:]]


def _commit() -> str | None:
  """Commit of the source tree, with a + if it has changes."""
  here = pathlib.Path(__file__).parent
  command = ['git', '-C', str(here), 'describe', '--always', '--dirty=+']
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() or None


def write_visits(path: pathlib.Path, visits: Mapping[str, jax.Array]) -> None:
  """`visits.npz`: in how many selections each neuron took part, by unit."""
  if not visits or not distributed.is_first():
    return
  content = io.BytesIO()
  np.savez_compressed(content, **jax.device_get(dict(visits)))
  files.write(path / 'visits.npz', content.getvalue())
