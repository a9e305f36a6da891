"""Paired step times: dense, every SAT rung, its compact twin, and PyTorch.

All arms are in memory at once and take turns, in an order that is reversed
every second round, so that other load on the machine meets all of them. What
counts is the time of an arm over that of the dense arm in the same round. A
second dense arm shows how far such a ratio strays by chance: the noise floor,
below which nothing is claimed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
import pathlib
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console
from rich import progress as rich_progress

from satjax import bench_torch, errors, flops, tree
from satjax import config as config_lib
from satjax.interop import models
from satjax.train import phases, window, workdir
from satjax.train import setup as setup_lib

_WARMUP = 3  # steps, or refreshes, of each arm before any counts
_BATCHES = 4  # different ones, in turn
_FULL = 'sat 0'  # every neuron gathered: must be the dense model


@dataclasses.dataclass
class Arm:
  """A JAX program with its own state, in its own walk through the batches."""

  name: str
  kind: str
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
    """What a new selection costs: close, choose, open."""
    state = window.close(self.setup.config, self.window)
    key = jax.random.fold_in(jax.random.key(0), self.done)
    batch = self.batches[self.done % len(self.batches)]
    active = window.choose(
      self.setup.config, state.params, batch, self.phase, key
    )
    self.open(state, active)

  def open(self, state: Any, active: Any) -> None:
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

  Random weights and tokens: a step takes as long with them as with any. Before
  growth, if the configuration grows.

  Args:
    config: what to time.
    rounds: visits to each arm.
    steps: optimizer steps in a visit.
    torch: whether to time PyTorch as well; None: if it is installed.
    out: a JSON file for the result; the table goes beside it, as .md.

  Returns:
    The result, as it is written to `out`; `render` makes a table of it.

  Raises:
    SatjaxError: two arms that must compute the same loss do not.
    ConfigError: PyTorch was asked for and is not installed.
    StorageError: `out` can not be written.
  """
  if torch is None:
    torch = bench_torch.is_installed()
  if torch and not bench_torch.is_installed():
    raise errors.ConfigError(
      'PyTorch or transformers is not installed; install satjax[parity], or'
      ' leave the PyTorch arms out'
    )
  _write(out, '')
  environment = workdir.environment()
  if torch:
    environment['packages'] |= bench_torch.versions()
  before = os.getloadavg()
  config = _plain(config)
  with _cold_compiles():
    arms, losses, reasons = _make_arms(config, rounds * steps, torch)
  seconds, refreshes = _time(arms, rounds, steps)
  result = {
    'environment': environment,
    'load_average': {'before': before, 'after': os.getloadavg()},
    'config': config.to_dict(),
    'rounds': rounds,
    'steps': steps,
    'losses': losses,
    'arms': summarise(config, arms, seconds, refreshes),
    'unavailable': reasons,
  }
  result['noise'] = noise(result['arms']['dense again']['ratio'])
  _write(out, result)
  return result


def _plain(config):
  """Before growth, random weights, and the architecture spelled out."""
  config = models.resolve(config)
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, init_from=''),
    growth=dataclasses.replace(config.growth, hops=()),
  )
