"""A run in progress: what it holds, and what it writes."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from satjax import console, errors
from satjax.config.run import Config
from satjax.train import evaluation, metrics, phases, programs, window
from satjax.train import setup as setup_lib
from satjax.train import workdir as workdir_lib
from satjax.train.checkpoint import Checkpoints
from satjax.train.recovery import Recovery
from satjax.train.window import Window


@dataclasses.dataclass
class Run:
  """What the loop holds: the fixed pieces, and where it is."""

  setup: setup_lib.Setup
  path: pathlib.Path
  checkpoints: Checkpoints
  programs: programs.Programs
  evaluators: dict[str, evaluation.Evaluator]
  writer: metrics.Writer
  progress: console.Progress
  clock: metrics.Clock
  record: dict[str, Any]
  step: int
  window: Window
  recovery: Recovery
  is_new: bool
  pending: tuple[int, dict[str, jax.Array]] | None = None
  mark: tuple[float, int] = (0.0, 0)

  @property
  def config(self) -> Config:
    return self.setup.config


def evaluate(run: Run) -> None:
  """Losses to the metrics, and those of held-out text to the screen."""
  fetch(run)
  if not run.config.data.eval:
    return
  with run.clock('evaluation'):
    params = window.whole_params(run.setup, run.window, run.step)
    losses = {
      split: evaluator(run.window.stage, params)
      for split, evaluator in run.evaluators.items()
    }
  named = {
    f'{evaluation.NAMES[split]}/{source}/loss': loss
    for split, by_source in losses.items()
    for source, loss in by_source.items()
  }
  run.writer.write({'step': run.step, **named})
  for source, loss in losses['held_out'].items():
    run.progress.note(f'step {run.step}  {source}: held-out loss {loss:.4f}')


def save(run: Run, kind: str = 'checkpoints') -> None:
  """A checkpoint of `kind`, as far as the run is."""
  fetch(run)
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
        {**run.record, 'extra': shapes, 'recovery': run.recovery.as_dict()},
        kind,
      )
      workdir_lib.write_visits(run.path, run.window.visits)
    except OSError as error:
      raise errors.StorageError(
        f'cannot save step {run.step}: {error}; the checkpoints before it are'
        ' whole: make room and run the same command again'
      ) from error


def fetch(run: Run) -> None:
  """Waits for the pending step, checks it, and writes it down."""
  if run.pending is None:
    return
  step, scalars = run.pending
  run.pending = None
  values = {name: float(x) for name, x in jax.device_get(scalars).items()}
  if not np.isfinite([values['loss'], values['grad_norm']]).all():
    raise errors.NonFiniteError(
      f'step {step}: loss {values["loss"]}, gradient norm'
      f' {values["grad_norm"]}; the checkpoints before it are finite. Lower'
      ' optimizer.peak_lr, clip with optimizer.clip_norm, or warm up longer'
    )
  recovered = run.recovery.seen(step, values['loss'])
  if recovered is not None:
    run.writer.write({'step': step, 'growth/steps_to_recover': recovered})
  train = run.config.train
  if step % train.log_every == 0 or step == train.num_steps:
    record = _describe(run, step, values)
    run.writer.write(record)
    run.progress.advance(
      step - run.progress.done,
      f'loss {record["train/loss"]:.4f}'
      f'  {record["speed/tokens_per_second"]:,.0f} tok/s'
      f'  omitted {record["sparsity/omission_rate"]:.0%}',
    )


def _describe(run, step, values) -> dict[str, float]:
  config, spent = run.config, run.clock.totals()
  start, since = run.mark
  run.mark = (run.clock.training, step)
  flops = phases.flops_until(config, step)
  return {
    'step': step,
    'tokens': step * config.tokens_per_step,
    'flops': flops,
    **metrics.named(values),
    **metrics.speed(
      seconds=run.mark[0] - start,
      steps=step - since,
      tokens=(step - since) * config.tokens_per_step,
      flops=flops - phases.flops_until(config, since),
      devices=run.setup.mesh.devices.ravel(),
    ),
    **phases.describe(phases.phase_at(config, step - 1)),
    **{f'time/{name}': value for name, value in spent.items()},
  }


def loss(run: Run, rows: Any) -> float:
  """Of the model as it is now, on some rows."""
  length = rows['tokens'].shape[1]
  stage = dataclasses.replace(run.window.stage, seq_len=length)
  with run.clock('evaluation'):
    params = window.whole_params(run.setup, run.window, run.step)
    return evaluation.mean_loss(run.setup.mesh, stage, params, [rows])
