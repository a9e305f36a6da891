"""Where a run goes on, also one that is to be longer than it was.

A longer run (`train.num_steps` raised) reads the same batches in the same
order. It is what it would have been had it been that long from the start, if
what its steps so far have seen does not depend on the length: under 'constant',
and under 'wsd' before its decay begins. Once WSD has decayed, the run goes back
to the checkpoint from before, which is always kept; what came after it is moved
to `decayed/`. Under 'cosine', moments and data go on, and the rate jumps.
"""

from collections.abc import Iterable
import dataclasses
from typing import Any

from absl import logging

from satjax import errors
from satjax.config.run import Config
from satjax.train import phases, window
from satjax.train import setup as setup_lib
from satjax.train.checkpoint import DECAYED, Checkpoints
from satjax.train.setup import Setup
from satjax.train.window import Window


def decay_start(config: Config) -> int:
  """Completed steps up to which WSD does not know how long the run is."""
  # Other schedules have no steps of decay.
  return config.train.num_steps - config.optimizer.decay_steps


def is_longer(old: Config, new: Config) -> bool:
  return new.train.num_steps > old.train.num_steps


def refusal(old: Config, new: Config, steps: Iterable[int]) -> str | None:
  """Why a run cannot be longer, if it is; `steps`: of its checkpoints."""
  if not is_longer(old, new):
    return None
  done = max(steps, default=0)
  before = [s for s in steps if s <= decay_start(old)]
  if done > decay_start(old) and before:
    done = max(before)
  starts = {a for c in (old, new) for a, _, _ in phases.stretches(c)}
  for step in sorted(s for s in starts if s < done):
    if phases.phase_at(old, step) != phases.phase_at(new, step):
      return (
        f'config.train.num_steps {old.train.num_steps} ->'
        f' {new.train.num_steps}: the rungs of sparsity are shares of the run,'
        f' so that a longer one leaves out other neurons from step {step} on,'
        f' and this one has done {done} steps. Export it, and start another run'
        ' with the export as config.model.init_from'
      )
  return None


def restore(
  setup: Setup, checkpoints: Checkpoints, record: dict[str, Any]
) -> tuple[int, Window, dict[str, Any]]:
  """Completed steps, the window to go on with, the record of the checkpoint.

  `record`: what has to be the same in all checkpoints of the run.

  Raises:
    DataError: no checkpoint can be used, or text or tokenizer have changed.
  """
  if setup.config.optimizer.schedule == 'wsd':
    _take_back_decay(setup.config, checkpoints)
  found = checkpoints.restore(setup_lib.abstract_checkpoint(setup))
  if found is None:
    return 0, window.first(setup, setup_lib.initial_state(setup)), {}
  for name in ('data', 'tokenizer'):
    if found.record[name] != record[name]:
      raise errors.DataError(
        f'the {name} has changed since this run was started: the checkpoint has'
        f' {found.record[name]}, now it is {record[name]}; restore the old'
        ' files, or choose another workdir'
      )
  logging.info('restored step %d', found.step)
  now = window.restored(setup, **found.state, record=found.record)
  return found.step, now, found.record


def _take_back_decay(config: Config, checkpoints: Checkpoints) -> None:
  """Sets aside what a shorter run has decayed, if something is before that."""
  fine, decayed = [], []
  for step, kind in checkpoints.furthest_first():
    before = _as_saved(config, checkpoints.record(step, kind))
    is_other = before.train.num_steps != config.train.num_steps
    is_decayed = is_other and step > decay_start(before)
    (decayed if is_decayed else fine).append((step, kind))
  if fine:
    for step, kind in decayed:
      checkpoints.set_aside(step, kind, DECAYED)


def _as_saved(config: Config, record: dict[str, Any]) -> Config:
  """The run as long as it was when a checkpoint was saved."""
  saved = record['config'] if record else config.to_dict()
  steps, decay = saved['train']['num_steps'], saved['optimizer']['decay_steps']
  return dataclasses.replace(
    config,
    train=dataclasses.replace(config.train, num_steps=steps),
    optimizer=dataclasses.replace(config.optimizer, decay_steps=decay),
  )


def describe(setup: Setup, step: int, record: dict[str, Any]) -> str | None:
  """What to say of where a run goes on; None: nothing.

  `record`: of the checkpoint of `step` completed steps; empty: none.
  """
  total = setup.config.train.num_steps
  if not record:
    return None
  if step >= total:
    return (
      f'this run is finished: all of its {total} steps are done. To train'
      ' further, raise config.train.num_steps'
    )
  saved = _as_saved(setup.config, record)
  length, before = saved.train.num_steps, setup_lib.make_schedule(saved)
  if length == total:
    return None
  said = f'going on from step {step} to {total}, instead of {length}: '
  if float(before(step - 1)) == float(setup.schedule(step - 1)):
    return f'{said}so far the learning rate was that of a run of {total} steps'
  return (
    f'{said}the learning rate was {float(before(step - 1)):.3g} at step'
    f' {step}, and is {float(setup.schedule(step)):.3g} at the next, as in a'
    f' run of {total} steps'
  )
