"""The training loop: windows, growth, evaluation, checkpoints, metrics.

Read `train` first. The device is always one step ahead: the metrics of a step
are fetched after the next one has been dispatched, and whatever must not see a
bad step (a checkpoint, the end) fetches first.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import math
import os
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from satjax import console, distributed, errors, flops
from satjax.config import stages
from satjax.config.run import Config
from satjax.config.stages import Stage
from satjax.data import pipeline
from satjax.train import (
  evaluation,
  kept,
  metrics,
  phases,
  programs,
  resume,
  samples,
  window,
)
from satjax.train import setup as setup_lib
from satjax.train import workdir as workdir_lib
from satjax.train.checkpoint import Checkpoints
from satjax.train.onset import Onset
from satjax.train.phases import Phase
from satjax.train.recovery import Recovery

MOST_DAMAGE = 1.0  # nats a token that leaving out may cost at once


class _Run:
  """A run in progress: the fixed pieces, and where it is."""

  pending: tuple[int, dict[str, jax.Array]] | None = None
  held_out: tuple[int, float | None] = (0, None)  # a step, its mean loss

  def __init__(
    self,
    setup: setup_lib.Setup,
    path: pathlib.Path,
    checkpoints: Checkpoints,
    given: Config,
  ):
    """Reads the data, restores or creates the state, starts to compile.

    `given`: the configuration with its paths as they were given.
    """
    self.setup, self.config, self.path = setup, setup.config, path
    self.checkpoints, self.clock = checkpoints, metrics.Clock()
    with self.clock('init'):
      # Rows of the last stage: growth in length cuts what comes before.
      last = stages.stages(self.config)[-1]
      data = dataclasses.replace(self.config.data, seq_len=last.seq_len)
      self.batches = pipeline.make_batches(
        data,
        split='train',
        batch_size=last.batch_size,
        tokenizer=setup.tokenizer,
        vocab_size=self.config.model.vocab_size,
      )
      self.record = {
        'config': given.to_dict(),
        'data': self.batches.fingerprint,
        'tokenizer': setup.tokenizer.fingerprint,
      }
      self.step, self.window, saved = resume.restore(
        setup, checkpoints, self.record
      )
      self.is_new = not saved
      since = self.step if saved else None
      self.programs = programs.Programs(setup, self.batches[0])
      self.evaluators = evaluation.evaluators(
        self.config, data, setup.mesh, last.batch_size // setup.num_microbatches
      )
      self.sampler = samples.Sampler(path, setup, self.batches, since)
      self.writer = metrics.Writer(path, since, saved.get('grown', True))
      self.recovery = Recovery(**saved.get('recovery', {}))
      self.onset = Onset(self.config.optimizer.warmup_steps)
      self.is_warned = not self.is_new
      self.progress = console.Progress(
        'step',
        self.config.train.num_steps,
        self.step,
        counts=True,
        quiet=not distributed.is_first(),
      )
      for line in self.evaluators['held_out'].counts():
        self.progress.note(line)
      if note := resume.describe(setup, self.step, saved):
        self.progress.note(note)
      if self.step < self.config.train.num_steps:
        self.programs.prepare(phases.phase_at(self.config, self.step))


def train(config: Config, workdir: str | os.PathLike) -> list[dict[str, float]]:
  """Trains to the end, from the newest checkpoint in `workdir` if there is one.

  Returns the records of metrics.jsonl.

  Raises:
    ConfigError: settings that cannot work together or with this machine.
    DataError: no text, or no usable checkpoint among those there.
    StorageError: a folder that cannot be written.
    NonFiniteError: the loss or the gradient is no longer a number.
    Preempted: asked to stop by SIGTERM or SIGINT; the state is saved.
    PeerLost: another process of the run has ended.
  """
  has_begun = workdir_lib.has_begun(workdir)
  config, located = workdir_lib.settled(workdir, config)
  setup = setup_lib.make_setup(located)
  base = '' if has_begun else located.model.init_from
  files = kept.contents(setup.tokenizer, base)
  train, always = config.train, (resume.decay_start(config),)
  keep = train.keep_checkpoints, always, train.keep_best
  with (
    workdir_lib.claim(workdir, config, files) as path,
    Checkpoints(path, *keep) as checkpoints,
    distributed.stop_signals() as stop,
    distributed.together(),
  ):
    run = _Run(setup, path, checkpoints, config)
    try:
      with run.progress:
        _steps(run, stop)
    finally:
      run.writer.close()
      run.programs.close()
    checkpoints.wait()
  return metrics.read(path)


def _steps(run: _Run, stop: dict[str, bool]) -> None:
  config, first, total = run.config, run.step, run.config.train.num_steps
  if run.is_new and config.train.eval_every:
    _evaluate(run)
  source = run.batches.iterate(run.step)
  batch, is_learned = _next_batch(run, source)
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
      with run.clock('compile'):  # what opens a window may be compiling
        run.programs.get(phase)
    before = run.window.chosen
    with outer:
      run.window = window.turn_over(
        run.setup, run.window, run.step, batch, timer
      )
    if run.window.chosen is not before:
      with run.clock('evaluation'):
        _warn_of_damage(run, phase)
    with run.clock('compile'):
      program = run.programs.get(phase)
      ahead = phases.next_phase(config, run.step)
      if ahead:
        run.programs.prepare(ahead)
    now = run.window
    if is_learned:
      now.state, scalars = program(now.state, batch, now.forward_extra)
    else:
      window.pass_over(run.setup, now, run.step)
      scalars = {}
    if now.chosen:
      scalars |= now.chosen.telemetry
    run.step += 1
    _fetch(run)
    run.pending = (run.step, scalars)
    if run.step < total:
      batch, is_learned = _next_batch(run, source)
    _look(run, stop)


def _warn_of_damage(run: _Run, phase: Phase) -> None:
  """Says once that what is left out ruins the model, and what to do."""
  telemetry = run.window.chosen.telemetry if run.window.chosen else {}
  if run.is_warned or not float(telemetry.get('damage', 0.0)) > MOST_DAMAGE:
    return
  run.is_warned = True
  config, length = run.config, phase.stage.seq_len
  dense = flops.train_flops_per_token(phase.stage.model, length)
  spent = phases.phase_flops(config, phase) / config.tokens_per_step / dense
  better = (
    f'satjax probe --workdir={run.path} --saving={1 - spent:.3g}'
    f' --seq_len={length} --channel_multiple={config.channel_step}'
    ' --out=allocation.json looks for rates by layer that cost less, and'
    ' --allocation=allocation.json takes them'
  )
  if not run.config.lora.is_on:
    exact = "config.sparsity.omitted_forward 'exact' costs nothing at once; or"
    better = f'{exact} {better}'
  logging.warning(
    f'step {run.step}: leaving out so much raises the loss by'
    f' {float(telemetry["damage"]):.2f} nats a token at once; {better}'
  )


def _enter_stage(run: _Run, stage: Stage, batch: Any) -> None:
  """The next stage; if it grows the model, with a checkpoint on either side."""
  before = run.window.stage
  if stage.operators:
    _save(run, 'before_growth')
    rows = stages.cut(batch, before)
    losses = {'growth/loss_before': _loss(run, rows)}
  with run.clock('growth'):
    run.window = window.next_stage(run.setup, run.window, run.step)
  if not stage.operators:
    return
  losses['growth/loss_after'] = _loss(run, rows)
  run.writer.write(
    {
      'step': run.step,
      **losses,
      'model/num_params': flops.num_params(stage.model),
    }
  )
  # The line first: whoever finds the checkpoint finds it written.
  run.recovery.grown(run.step)
  _save(run, 'after_growth')
  run.progress.note(
    f'step {run.step}  grown to {stage.model.num_layers} layers, width'
    f' {stage.model.embed_dim}: loss {losses["growth/loss_before"]:.4f} ->'
    f' {losses["growth/loss_after"]:.4f}'
  )


def _look(run: _Run, stop: dict[str, bool]) -> None:
  """After a step: evaluate, save, stop, as the configuration asks."""
  train, step = run.config.train, run.step
  is_last = step == train.num_steps
  decays = step == resume.decay_start(run.config)
  if is_last or (train.eval_every and step % train.eval_every == 0):
    _evaluate(run)
  stops = distributed.is_time_to_stop(stop['asked'], step)
  if (
    is_last
    or stops
    or decays
    or (train.checkpoint_every and step % train.checkpoint_every == 0)
  ):
    _save(run)
  if stops and not is_last:
    run.checkpoints.wait()
    raise errors.Preempted(
      f'stopped after step {step} of {train.num_steps} and saved; run the same'
      ' command again to go on'
    )


def _next_batch(run: _Run, source: Iterator[Any]) -> tuple[Any, bool]:
  """A batch on the devices, and whether the loss counts any token of it."""
  with run.clock('data'):
    stage = stages.stage_at(run.config, run.step)
    batch = next(source)
    is_learned = bool(batch['weights'].any())
    return run.setup.put_batch(stages.cut(batch, stage)), is_learned


def _evaluate(run: _Run) -> None:
  """Losses to the metrics; those of held-out text, and samples, to a person."""
  _fetch(run)
  config, step, said = run.config, run.step, run.progress.note
  if not config.data.eval and not config.train.sample_prompts:
    return
  with run.clock('evaluation'):
    params = window.whole_params(run.setup, run.window, step)
    losses = {
      split: evaluator(run.window.stage, params)
      for split, evaluator in run.evaluators.items()
    }
    texts = run.sampler(step, run.window.stage, params)
  if config.data.eval:
    given = run.record['config']['data']['eval']
    named = evaluation.named(losses, config.data.eval, given)
    run.writer.write({'step': step, **named})
    run.onset.evaluated(step, losses['held_out'])
    run.held_out = step, evaluation.mean_of_sources(losses['held_out'])
  for source, loss in losses['held_out'].items():
    said(f'step {step}  {source}: held-out loss {loss:.4f}')
  for prompt, text in texts.items():
    said(f'step {step}  {prompt!r}: {text!r}')


def _save(run: _Run, kind: str = 'checkpoints') -> None:
  """A checkpoint of `kind`, as far as the run is."""
  _fetch(run)
  step, loss = run.held_out
  with run.clock('checkpoint'):
    extra = run.window.extra
    shapes = {n: (x.shape, x.dtype.name) for n, x in extra.items()}
    state = window.whole(run.setup, run.window, run.step)
    run.checkpoints.save(
      run.step,
      {'state': state, 'extra': extra},
      {
        **run.record,
        'extra': shapes,
        'recovery': dataclasses.asdict(run.recovery),
        'held_out_loss': loss if step == run.step else None,
      },
      kind,
    )
    workdir_lib.write_visits(run.path, run.window.visits)


def _fetch(run: _Run) -> None:
  """Waits for the pending step, checks it, and writes it down."""
  if run.pending is None:
    return
  step, scalars = run.pending
  run.pending = None
  values = {name: float(x) for name, x in jax.device_get(scalars).items()}
  if 'loss' not in values:
    said = 'step %d: the loss counts no token of its batch, so it has no loss'
    said += ' and trains nothing; so it is at every such step'
    logging.log_first_n(logging.WARNING, said, 1, step)
    values |= dict.fromkeys(metrics.OF_STEP, math.nan)
  elif not np.isfinite([values['loss'], values['grad_norm']]).all():
    raise errors.NonFiniteError(
      f'step {step}: loss {values["loss"]}, gradient norm'
      f' {values["grad_norm"]}; the checkpoints before it are finite. Lower'
      ' optimizer.peak_lr, clip with optimizer.clip_norm, or warm up longer'
    )
  else:
    run.onset.trained(step, values['loss'])
    recovered = run.recovery.seen(step, values['loss'])
    if recovered is not None:
      run.writer.write({'step': step, 'growth/steps_to_recover': recovered})
  train = run.config.train
  if step % train.log_every == 0 or step == train.num_steps:
    record = _describe(run, step, values)
    run.writer.write(record)
    loss = record['train/loss']
    said = 'no loss' if math.isnan(loss) else f'loss {loss:.4f}'
    said += f'  {record["speed/tokens_per_second"]:,.0f} tok/s'
    if run.config.sparsity.is_on:
      said += f'  omitted {record["sparsity/omission_rate"]:.0%}'
    run.progress.advance(step - run.progress.done, said)


def _describe(run, step, values) -> dict[str, float]:
  """The record of a step, with the rates since the one before it."""
  config, spent = run.config, run.clock.totals()
  start, since = run.mark
  run.mark = (run.clock.training, step)
  seconds, steps = run.mark[0] - start, step - since
  done = phases.flops_until(config, step)
  # Those executed: what was left out earns nothing.
  per_second = (done - phases.flops_until(config, since)) / seconds
  record = {
    'step': step,
    'tokens': step * config.tokens_per_step,
    'flops': done,
    **{
      f'{"train" if name in metrics.OF_STEP else "sparsity"}/{name}': value
      for name, value in values.items()
    },
    'speed/step_seconds': seconds / steps,
    'speed/tokens_per_second': steps * config.tokens_per_step / seconds,
    'speed/flops_per_second': per_second,
  }
  devices = run.setup.mesh.devices.ravel()
  if peak := flops.peak_flops(devices[0].device_kind):
    record['speed/mfu'] = per_second / (peak * len(devices))
  record |= phases.describe(phases.phase_at(config, step - 1))
  return record | {f'time/{name}': value for name, value in spent.items()}


def _loss(run: _Run, rows: Any) -> float:
  """Of the model as it is now, on some rows."""
  length = rows['tokens'].shape[1]
  stage = dataclasses.replace(run.window.stage, seq_len=length)
  with run.clock('evaluation'):
    params = window.whole_params(run.setup, run.window, run.step)
    return evaluation.mean_loss(run.setup.mesh, stage, params, [rows])
