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

from satjax import console, distributed, errors, flops
from satjax.config import stages
from satjax.config.run import Config
from satjax.config.stages import Stage
from satjax.data import pipeline
from satjax.interop import models
from satjax.train import (
  evaluation,
  metrics,
  phases,
  programs,
  signals,
  turnover,
  window,
)
from satjax.train import run as run_lib
from satjax.train import setup as setup_lib
from satjax.train import workdir as workdir_lib
from satjax.train.checkpoint import Checkpoints
from satjax.train.recovery import Recovery
from satjax.train.run import Run
from satjax.train.window import Window


def train(config: Config, workdir: str | os.PathLike) -> list[dict[str, float]]:
  """Trains to the end, from the newest checkpoint in `workdir` if there is one.

  Args:
    config: what to run; a workdir that was begun with other settings refuses.
    workdir: folder of the run, made if need be.

  Returns:
    The records of metrics.jsonl.

  Raises:
    ConfigError: settings that cannot work together or with this machine.
    DataError: no text, or no usable checkpoint among those there.
    StorageError: a folder that cannot be written.
    NonFiniteError: the loss or the gradient is no longer a number.
    Preempted: asked to stop by SIGTERM or SIGINT; the state is saved.
    PeerLost: another process of the run has ended.
  """
  config = models.resolve(config)
  setup = setup_lib.make_setup(config)
  with (
    workdir_lib.claim(workdir, config) as path,
    _checkpoints(path, config.train.keep_checkpoints) as checkpoints,
    signals.stop_signals() as stop,
    distributed.together(),
  ):
    run, batches = _begin(setup, path, checkpoints)
    try:
      with run.progress:
        _steps(run, batches, stop)
    finally:
      run.writer.close()
      run.programs.close()
    checkpoints.wait()
  return metrics.read(path)


@contextlib.contextmanager
def _checkpoints(path: pathlib.Path, keep: int) -> Iterator[Checkpoints]:
  """Those of a run, closed at its end.

  Not if a process has gone: a save under way would wait for it.
  """
  checkpoints = Checkpoints(path, keep=keep)
  try:
    yield checkpoints
  except errors.PeerLost:
    raise
  except BaseException:
    checkpoints.close()
    raise
  checkpoints.close()


def _begin(
  setup: setup_lib.Setup, path: pathlib.Path, checkpoints: Checkpoints
) -> tuple[Run, Iterator[Any]]:
  """Reads the data, restores or creates the state, starts to compile."""
  config = setup.config
  clock = metrics.Clock()
  with clock('init'):
    # Rows of the last stage: growth in length cuts what comes before.
    last = stages.stages(config)[-1]
    data = dataclasses.replace(config.data, seq_len=last.seq_len)
    batches = pipeline.make_batches(
      data,
      split='train',
      batch_size=last.batch_size,
      tokenizer=setup.tokenizer,
      vocab_size=config.model.vocab_size,
    )
    record = {
      'config': config.to_dict(),
      'data': batches.fingerprint,
      'tokenizer': setup.tokenizer.fingerprint,
    }
    step, first, saved = _restore(setup, checkpoints, record)
    run = Run(
      setup=setup,
      path=path,
      checkpoints=checkpoints,
      programs=programs.Programs(setup, batches[0]),
      evaluators=_evaluators(setup, data, last),
      writer=metrics.Writer(
        path, step if saved else None, saved.get('grown', True)
      ),
      progress=console.Progress(
        'step',
        config.train.num_steps,
        step,
        counts=True,
        quiet=not distributed.is_first(),
      ),
      clock=clock,
      record=record,
      step=step,
      window=first,
      recovery=Recovery.from_dict(saved.get('recovery')),
      is_new=not saved,
    )
    if step < config.train.num_steps:
      run.programs.prepare(phases.phase_at(config, step))
  return run, batches


def _evaluators(setup, data, last: Stage) -> dict[str, evaluation.Evaluator]:
  """Of the held-out documents, and of the test if there is one."""
  config = setup.config
  return {
    split: evaluation.Evaluator(
      data,
      vocab_size=config.model.vocab_size,
      mesh=setup.mesh,
      batch_size=last.batch_size // setup.num_microbatches,
      max_batches=config.train.eval_batches,
      split=split,
    )
    for split in evaluation.NAMES
    if split != 'test' or data.test
  }


def _restore(setup, checkpoints, record) -> tuple[int, Window, dict[str, Any]]:
  """Completed steps, the window to go on with, the record of the checkpoint."""
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
  now = turnover.restored(setup, **found.state, record=found.record)
  return found.step, now, found.record


def _steps(run: Run, batches: Any, stop: dict[str, bool]) -> None:
  config, first, total = run.config, run.step, run.config.train.num_steps
  if run.is_new and config.train.eval_every:
    run_lib.evaluate(run)
  source = batches.iterate(run.step)
  batch = _next_batch(run, source)
  run.mark = (run.clock.training, run.step)
  while run.step < total:
    phase = phases.phase_at(config, run.step)
    is_new_stage = phase.stage != run.window.stage
    if is_new_stage:
      _enter_stage(run, phase.stage, batch)
    if run.step == first or is_new_stage:
      timer, outer = contextlib.nullcontext, run.clock('compile')
    else:
      timer, outer = run.clock, contextlib.nullcontext()
    with outer:
      run.window = turnover.turn_over(
        run.setup, run.window, run.step, batch, timer
      )
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
    run_lib.fetch(run)
    run.pending = (run.step, scalars)
    if run.step < total:
      batch = _next_batch(run, source)
    _look(run, stop)


def _enter_stage(run: Run, stage: Stage, batch: Any) -> None:
  """The next stage; if it grows the model, with a checkpoint on either side."""
  before = run.window.stage
  if stage.operators:
    run_lib.save(run, 'before_growth')
    rows = stages.cut(batch, before)
    losses = {'growth/loss_before': run_lib.loss(run, rows)}
  with run.clock('growth'):
    run.window = turnover.next_stage(run.setup, run.window, run.step)
  if not stage.operators:
    return
  losses['growth/loss_after'] = run_lib.loss(run, rows)
  run.writer.write(
    {
      'step': run.step,
      **losses,
      'model/num_params': flops.num_params(stage.model),
    }
  )
  # The line first: whoever finds the checkpoint finds it written.
  run.recovery.grown(run.step)
  run_lib.save(run, 'after_growth')
  run.progress.note(
    f'step {run.step}  grown to {stage.model.num_layers} layers, width'
    f' {stage.model.embed_dim}: loss {losses["growth/loss_before"]:.4f} ->'
    f' {losses["growth/loss_after"]:.4f}'
  )


def _look(run: Run, stop: dict[str, bool]) -> None:
  """After a step: evaluate, save, stop, as the configuration asks."""
  train, step = run.config.train, run.step
  is_last = step == train.num_steps
  if is_last or (train.eval_every and step % train.eval_every == 0):
    run_lib.evaluate(run)
  stops = distributed.is_time_to_stop(stop['asked'], step)
  if (
    is_last
    or stops
    or (train.checkpoint_every and step % train.checkpoint_every == 0)
  ):
    run_lib.save(run)
  if stops and not is_last:
    run.checkpoints.wait()
    raise errors.Preempted(
      f'stopped after step {step} of {train.num_steps} and saved; run the same'
      ' command again to go on'
    )


def _next_batch(run: Run, source: Iterator[Any]) -> Any:
  with run.clock('data'):
    stage = stages.stage_at(run.config, run.step)
    return run.setup.put_batch(stages.cut(next(source), stage))
