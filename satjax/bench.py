"""Paired step times: dense, every SAT rung, its compact twin, and PyTorch.

All arms are in memory at once and take turns, in an order that is reversed
every second round, so that other load on the machine meets all of them. What
counts is the time of an arm over that of the dense arm in the same round. A
second dense arm shows how far such a ratio strays by chance: the noise floor,
below which nothing is claimed.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from satjax import bench_torch, errors, flops
from satjax import config as config_lib
from satjax.interop import models
from satjax.train import phases, window, workdir
from satjax.train import setup as setup_lib
from satjax.train.progress import Progress

_WARMUP = 3  # steps of an arm, and refreshes, before any counts


@dataclasses.dataclass
class Arm:
  """A JAX program with its own state, on its own walk through the batches."""

  setup: setup_lib.Setup
  phase: phases.Phase
  batches: Sequence[Any]
  program: Any
  compile_seconds: float
  window: window.Window
  done: int = 0

  def steps(self, count: int) -> float:
    """Trains `count` steps; the loss of the last one."""
    for _ in range(count):
      batch = self.batches[self.done % len(self.batches)]
      self.window.state, scalars = self.program(self.window.state, batch)
      self.done += 1
    jax.block_until_ready(self.window.state)
    return float(scalars['loss'])

  def refresh(self) -> None:
    """Changes the selection, as the training loop does."""
    config = self.setup.config
    state = window.close(config, self.window)
    key = jax.random.fold_in(jax.random.key(0), self.done)
    batch = self.batches[self.done % len(self.batches)]
    active = window.choose(config, state.params, batch, self.phase, key)
    self.open(state, active)

  def open(self, state: Any, active: Any) -> None:
    """Starts a window on a selection."""
    self.window = window.open_window(self.setup.config, state, active)
    self.window.state = self.setup.place(self.window.state)
    jax.block_until_ready((self.window.state, self.window.resting))


def bench(
  config: config_lib.Config,
  *,
  rounds: int = 21,
  steps: int = 2,
  torch: bool | None = None,
  out: str | os.PathLike | None = None,
) -> dict[str, Any]:
  """Times the train step of a configuration, dense and sparse.

  Weights and tokens are random. A model that grows is timed before it grows.

  Args:
    config: what to time.
    rounds: visits to each arm.
    steps: optimizer steps in a visit.
    torch: whether to time PyTorch too; None: if it is installed.
    out: JSON file for the result; its table goes beside it, as .md.

  Returns:
    The result, as in the JSON file; `render` makes the table.

  Raises:
    SatjaxError: arms that must compute the same loss do not.
    ConfigError: PyTorch is asked for and not installed.
    StorageError: `out` can not be written.
  """
  torch = bench_torch.is_wanted(torch)
  if out is not None:
    _write(out, {}, '')
  config = models.resolve(config)
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, init_from=''),
    growth=dataclasses.replace(config.growth, hops=()),
  )
  before = os.getloadavg()
  with bench_torch.cold_compiles():
    arms, losses, unavailable = _make_arms(config, rounds * steps, torch)
  times, refreshes = _time(config, arms, rounds, steps)
  result = {
    'environment': workdir.environment(),
    'torch': bench_torch.versions() if torch else {},
    'load_average': {'before': before, 'after': os.getloadavg()},
    'config': config.to_dict(),
    'rounds': rounds,
    'steps': steps,
    'losses': losses,
    'unavailable': unavailable,
    'arms': _summarise(config, arms, times, refreshes),
  }
  if out is not None:
    _write(out, result, render(result))
  return result


def _write(out, result, table):
  path = pathlib.Path(out)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, result)
    path.with_suffix('.md').write_text(table)
  except OSError as error:
    raise errors.StorageError(
      f'can not write {path}: {error.strerror}; choose another file'
    ) from error


def _make_arms(config, num_steps, torch):
  """Arms by name, their first losses, and why an arm is missing."""
  batches = bench_torch.random_batches(config)
  off = dataclasses.replace(config.sparsity, head_rate=0.0, channel_rate=0.0)
  dense = dataclasses.replace(config, sparsity=off)
  first = _arm(dense, batches)
  arms, unavailable = {'dense': first, 'dense again': _arm(dense, batches)}, {}
  if torch:
    count = jnp.arange(1 + _WARMUP + num_steps)
    made, unavailable = bench_torch.make_arms(
      dense,
      jax.device_get(first.window.state.params),
      batches,
      jax.vmap(first.setup.schedule)(count).tolist(),
    )
    arms |= {arm.name: arm for arm in made}
  for phase in _sparse_phases(config):
    rate = f'{phases.omission_rate(config, phase):.4g}'
    arms[f'sat {rate}'] = _arm(config, batches, phase)
    arms[f'twin {rate}'] = _arm(_twin(dense, phase), batches)
  losses = {name: arm.steps(1) for name, arm in arms.items()}
  equal = {name: losses[name] for name in ('dense again', *(a.name for a in made))}
  return arms, losses, unavailable
