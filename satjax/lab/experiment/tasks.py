"""What workers do: train a base or a trial, prune a base."""

import dataclasses
import gc
import os
import pathlib
import shutil
from typing import Any

import jax

from satjax import errors, files
from satjax.data import pipeline
from satjax.interop import models
from satjax.lab.experiment import disk
from satjax.lab.experiment.trials import FAILED, Base, Trial
from satjax.model import decoder
from satjax.sparsity import subnetwork
from satjax.train import loop, phases, refresh, saved
from satjax.train import setup as setup_lib


def train(trial: Trial) -> None:
  """Trains, or goes on; a trial that diverges says so in its folder."""
  try:
    loop.train(trial.final_config, trial.path)
  except errors.NonFiniteError as error:
    files.write_json(trial.path / FAILED, {'reason': str(error)})
  disk.give_back(trial.path)
  jax.clear_caches()
  gc.collect()  # TensorBoard's queue has semaphores of the system


def make_base(base: Base) -> None:
  """Trains the base and writes it as a model directory."""
  if base.model.exists():
    return
  loop.train(base.config, base.path)
  found = saved.restore(base.path)
  _save(found.model, base.model, tokenizer=found.tokenizer)


def make_pruned(base: Base) -> None:
  """Cuts the heads and channels off a base that matter least, by maxip."""
  if base.model.exists():
    return
  sparsity = dataclasses.replace(
    base.config.sparsity,
    head_rate=base.prune,
    channel_rate=base.prune,
    importance='maxip',
    selection='top_k',
    probe=1.0,
  )
  config = dataclasses.replace(base.config, sparsity=sparsity)
  setup = setup_lib.make_setup(config)
  whole = models.load(base.whole.model, setup.tokenizer)
  params = setup.place(jax.device_put(whole.params))
  batches = pipeline.make_batches(
    config.data,
    split='train',
    batch_size=config.train.batch_size,
    tokenizer=setup.tokenizer,
    vocab_size=config.model.vocab_size,
  )
  phase, model = phases.phase_at(config, 0), config.model
  measured = refresh.measure(config, model, params, batches[0])
  before, _ = refresh.blank(measured)
  key = jax.random.key(0)
  chosen = refresh.choose(config, params, measured, phase, before, key)
  kept, _ = subnetwork.split(
    params,
    subnetwork.orders(chosen.kept),
    phases.stacks(phase),
    place=setup.place_leaf,
  )
  pruned = models.Model(decoder.fit(model, kept), kept)
  _save(pruned, base.model, tokenizer=setup.tokenizer)


def _save(model: models.Model, path: pathlib.Path, **options: Any) -> None:
  """All of a directory or nothing."""
  temporary = path.with_name(f'{path.name}.tmp')
  shutil.rmtree(temporary, ignore_errors=True)
  models.save(model, temporary, **options)
  os.replace(temporary, path)
