"""The training loop: windows, growth, evaluation, checkpoints, metrics.

Read `train` first. The device is always one step ahead: the metrics of a step
are fetched after the next one has been dispatched, and whatever must not see a
bad step (a checkpoint, the end) fetches first.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from satjax import config as config_lib
from satjax import errors
from satjax.data import pipeline
from satjax.interop import models
from satjax.train import (
  evaluation,
  metrics,
  phases,
  programs,
  signals,
  window,
)
from satjax.train import setup as setup_lib
from satjax.train import workdir as workdir_lib
from satjax.train.checkpoint import Checkpoints
from satjax.train.progress import Progress
from satjax.train.window import Window


@dataclasses.dataclass
class Run:
  """What the loop holds: the fixed pieces, and where it is."""

  setup: setup_lib.Setup
  path: pathlib.Path
  checkpoints: Checkpoints
  programs: programs.Programs
  evaluator: evaluation.Evaluator
  writer: metrics.Writer
  progress: Progress
  clock: metrics.Clock
  record: dict[str, Any]
  step: int
  window: Window
  pending: tuple[int, float, dict[str, jax.Array]] | None = None
  flops: float = 0.0
  mark: tuple[float, int] = (0.0, 0)

  @property
  def config(self) -> config_lib.Config:
    return self.setup.config


def train(
  config: config_lib.Config, workdir: str | os.PathLike
) -> list[dict[str, float]]:
  """Trains to the end, from the newest checkpoint in `workdir` if there is one.

  Args:
    config: what to run; a workdir that was begun with other settings refuses.
    workdir: folder of the run, made if need be.

  Returns:
    The records of metrics.jsonl.

  Raises:
    ConfigError: settings that can not work together or with this machine.
    DataError: no text, or no usable checkpoint among those there.
    StorageError: a folder that can not be written.
    NonFiniteError: the loss or the gradient is no longer a number.
    Preempted: asked to stop by SIGTERM or SIGINT; the state is saved.
  """
  config = models.resolve(config)
  setup = setup_lib.make_setup(config)
  with (
    workdir_lib.claim(workdir, config) as path,
    contextlib.closing(
      Checkpoints(path / 'checkpoints', keep=config.train.keep_checkpoints)
    ) as checkpoints,
    signals.stop_signals() as stop,
  ):
    run, batches = _begin(setup, path, checkpoints)
    try:
      _steps(run, batches, stop)
    finally:
      run.progress.close()
      run.writer.close()
      run.programs.close()
    checkpoints.wait()
  return metrics.read(path)


def _begin(
  setup: setup_lib.Setup, path: pathlib.Path, checkpoints: Checkpoints
) -> tuple[Run, Iterator[Any]]:
  """Reads the data, restores or creates the state, starts to compile."""
  config = setup.config
  clock = metrics.Clock()
  with clock('init'):
    batches = pipeline.make_batches(
      config.data,
      split='train',
      batch_size=config.train.batch_size,
      tokenizer=setup.tokenizer,
      vocab_size=config.model.vocab_size,
    )
    record = {
      'config': config.to_dict(),
      'data': batches.fingerprint,
      'tokenizer': setup.tokenizer.fingerprint,
    }
    step, first = _restore(setup, checkpoints, record)
    example = jax.eval_shape(lambda: setup.put_batch(batches[0]))
    run = Run(
      setup=setup,
      path=path,
      checkpoints=checkpoints,
      programs=programs.Programs(setup, example),
      evaluator=evaluation.Evaluator(
        config.model,
        config.data,
        mesh=setup.mesh,
        batch_size=config.train.microbatch_size or config.train.batch_size,
        max_batches=config.train.eval_batches,
      ),
      writer=metrics.Writer(path, step),
      progress=Progress(config.train.num_steps, step),
      clock=clock,
      record=record,
      step=step,
      window=first,
      flops=sum(phases.step_flops(config, s) for s in range(step)),
    )
    if step < config.train.num_steps:
      run.programs.prepare(phases.phase_at(config, step))
  return run, batches


def _restore(setup, checkpoints, record) -> tuple[int, Window]:
  """Completed steps and the window to go on with."""
  found = checkpoints.restore(setup_lib.abstract_checkpoint(setup))
  if found is None:
    return 0, window.dense(setup_lib.initial_state(setup))
  for name in ('data', 'tokenizer'):
    if found.record[name] != record[name]:
      raise errors.DataError(
        f'the {name} has changed since this run was started: the checkpoint has'
        f' {found.record[name]}, now it is {record[name]}; restore the old'
        ' files, or choose another workdir'
      )
  logging.info('restored step %d', found.step)
  return found.step, window.restored(setup, **found.state, step=found.step)


def _steps(run: Run, batches: Any, stop: dict[str, bool]) -> None:
  config, first, total = run.config, run.step, run.config.train.num_steps
  if run.step == 0 and config.train.eval_every:
    _evaluate(run)
  source = batches.iterate(run.step)
  batch = _next_batch(run, source)
  run.mark = (run.clock.training, run.step)
  while run.step < total:
    phase = phases.phase_at(config, run.step)
    if run.step == first or phases.hop_at(config, run.step):
      timer, outer = contextlib.nullcontext, run.clock('compile')
    else:
      timer, outer = run.clock, contextlib.nullcontext()
    with outer:
      run.window = window.turn_over(
        run.setup, run.window, run.step, batch, timer
      )
    if phases.hop_at(config, run.step):
      run.progress.note(f'grown to {phase.num_layers} layers')
    with run.clock('compile'):
      program = run.programs.get(phase)
      ahead = phases.next_phase(config, run.step)
      if ahead:
        run.programs.prepare(ahead)
    now = run.window
    now.state, scalars = program(now.state, batch, now.rest)
    if now.chosen:
      scalars |= now.chosen.telemetry
    run.step += 1
    _fetch(run)
    run.flops += phases.step_flops(config, run.step - 1)
    run.pending = (run.step, run.flops, scalars)
    if run.step < total:
      batch = _next_batch(run, source)
    _look(run, stop)


def _look(run: Run, stop: dict[str, bool]) -> None:
  """After a step: evaluate, save, stop, as the configuration asks."""
  train, step = run.config.train, run.step
  is_last = step == train.num_steps
  if is_last or (train.eval_every and step % train.eval_every == 0):
    _evaluate(run)
  if (
    is_last
    or stop['asked']
    or (train.checkpoint_every and step % train.checkpoint_every == 0)
  ):
    _save(run)
  if stop['asked'] and not is_last:
    run.checkpoints.wait()
    raise errors.Preempted(
      f'stopped after step {step} of {train.num_steps} and saved; run the same'
      ' command again to go on'
    )


def _evaluate(run: Run) -> None:
  _fetch(run)
  if not run.config.data.eval:
    return
  with run.clock('evaluation'):
    losses = run.evaluator(window.whole_params(run.setup, run.window, run.step))
  named = {f'eval/{source}/loss': loss for source, loss in losses.items()}
  run.writer.write({'step': run.step, **named})
  for source, loss in losses.items():
    run.progress.note(f'step {run.step}  {source}: held-out loss {loss:.4f}')


def _save(run: Run) -> None:
  _fetch(run)
  with run.clock('checkpoint'):
    extra = run.window.extra
    shapes = {n: (x.shape, x.dtype.name) for n, x in extra.items()}
    try:
      run.checkpoints.save(
        run.step,
        {
          'state': window.whole(run.setup, run.window, run.step),
          'extra': extra,
        },
        {**run.record, 'extra': shapes},
      )
      workdir_lib.write_visits(run.path, run.window.visits)
    except OSError as error:
      raise errors.StorageError(
        f'can not save step {run.step}: {error}; the checkpoints before it are'
        ' whole: make room and run the same command again'
      ) from error


def _fetch(run: Run) -> None:
  """Waits for the pending step, checks it, and writes it down."""
  if run.pending is None:
    return
  step, flops, scalars = run.pending
  run.pending = None
  values = {name: float(x) for name, x in jax.device_get(scalars).items()}
  if not np.isfinite([values['loss'], values['grad_norm']]).all():
    raise errors.NonFiniteError(
      f'step {step}: loss {values["loss"]}, gradient norm'
      f' {values["grad_norm"]}; the checkpoints before it are finite. Lower'
      ' optimizer.peak_lr, clip with optimizer.clip_norm, or warm up longer'
    )
  train = run.config.train
  if step % train.log_every == 0 or step == train.num_steps:
    record = _describe(run, step, flops, values)
    run.writer.write(record)
    run.progress.update(step, record)


def _describe(run, step, flops, values) -> dict[str, float]:
  config, spent = run.config, run.clock.totals()
  start, since = run.mark
  run.mark = (run.clock.training, step)
  done = sum(phases.step_flops(config, s) for s in range(since, step))
  return {
    'step': step,
    'tokens': step * config.tokens_per_step,
    'flops': flops,
    **metrics.named(values),
    **metrics.speed(
      seconds=run.mark[0] - start,
      steps=step - since,
      tokens=(step - since) * config.tokens_per_step,
      flops=done,
      devices=run.setup.mesh.devices.ravel(),
    ),
    **phases.describe(config, phases.phase_at(config, step - 1)),
    **{f'time/{name}': value for name, value in spent.items()},
  }


def _next_batch(run: Run, source: Iterator[Any]) -> Any:
  with run.clock('data'):
    return run.setup.put_batch(next(source))
