"""Paired step times: dense, every SAT rung, its compact twin, and PyTorch.

All arms are in memory at once and take turns, in an order that is reversed
every second round, so that other load on the machine meets all of them. What
counts is the time of an arm over that of the dense arm in the same round. A
second dense arm shows how far such a ratio strays by chance: the noise floor,
below which nothing is claimed.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import os
import time
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from rich import console as rich_console
from rich import progress as rich_progress

from satjax import bench_table, bench_torch, flops
from satjax import config as config_lib
from satjax.interop import models
from satjax.train import phases, window, workdir
from satjax.train import setup as setup_lib

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

  @property
  def flops(self) -> float:
    """Of a step, as executed."""
    config = self.setup.config
    return config.tokens_per_step * flops.train_flops_per_token(
      config.model,
      config.data.seq_len,
      num_heads=self.phase.heads,
      mlp_dim=self.phase.channels,
    )

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
    self.window = window.open_window(self.setup, state, active)
    jax.block_until_ready((self.window.state, self.window.resting))

  def twin(self) -> Self:
    """The same program with a state of its own."""
    state = jax.tree.map(jnp.copy, self.window.state)
    return dataclasses.replace(self, window=window.dense(state))


def bench(
  config: config_lib.Config,
  *,
  rounds: int = 21,
  steps: int = 2,
  torch: bool | None = None,
  out: str | os.PathLike | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Times the train step of a configuration, dense and sparse.

  Weights and tokens are random. A model that grows is timed before it grows.

  Args:
    config: what to time.
    rounds: visits to each arm.
    steps: optimizer steps in a visit.
    torch: whether to time PyTorch too; None: if it is installed.
    out: JSON file for the result; its table goes beside it, as .md.
    devices: to run on; None: all.

  Returns:
    The result, as in the JSON file; `bench_table.render` makes the table.

  Raises:
    SatjaxError: arms that must compute the same loss do not.
    ConfigError: PyTorch is asked for and not installed.
    StorageError: `out` can not be written.
  """
  torch = bench_torch.is_wanted(torch)
  if out is not None:
    bench_table.write(out, {}, '')
  config = models.resolve(config)
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, init_from=''),
    growth=dataclasses.replace(config.growth, hops=()),
  )
  before = os.getloadavg()
  arms, losses, unavailable = _make_arms(
    config, devices, num_steps=rounds * steps, torch=torch
  )
  times, refreshes = _time(arms, rounds, steps)
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
  result['noise'] = bench_table.noise_floor(
    result['arms']['dense again']['ratio']
  )
  result = json.loads(json.dumps(result))
  if out is not None:
    bench_table.write(out, result, bench_table.render(result))
  return result


def _make_arms(config, devices, *, num_steps, torch):
  """Arms by name, their first losses, and why an arm is missing."""
  batches = bench_torch.random_batches(config)
  off = dataclasses.replace(config.sparsity, head_rate=0.0, channel_rate=0.0)
  dense = dataclasses.replace(config, sparsity=off)
  first = _arm(setup_lib.make_setup(dense, devices), batches)
  arms, unavailable = {'dense': first, 'dense again': first.twin()}, {}
  if torch:
    made, unavailable = bench_torch.make_arms(
      first.setup,
      jax.device_get(first.window.state.params),
      batches,
      1 + _WARMUP + num_steps,
    )
    arms |= made
  same = list(arms)
  setup = setup_lib.make_setup(config, devices)
  for phase in _sparse_phases(config):
    rate = f'{phases.omission_rate(config, phase):.4g}'
    arms[f'sat {rate}'] = _arm(setup, batches, phase)
    small = setup_lib.make_setup(_compact(dense, phase), devices)
    arms[f'twin {rate}'] = _arm(small, batches)
  losses = {}
  if config.sparsity.is_on:
    losses['sat 0'] = _whole_selection(first, setup, batches).steps(1)
    same.append('sat 0')
  losses |= {name: arm.steps(1) for name, arm in arms.items()}
  bench_torch.check_losses(
    losses['dense'], {n: losses[n] for n in same}, config.model.dtype
  )
  return arms, losses, unavailable


def _sparse_phases(config):
  """The shapes of the ladder, each once."""
  steps = (0, *phases.ladders(config)['mlp'].boundaries)
  found = (phases.phase_at(config, step) for step in steps)
  return {(p.heads, p.channels): p for p in found if p.is_sparse}.values()


def _arm(setup, batches, phase=None):
  """Compiles a step, and opens a window if the phase is sparse."""
  phase = phase or phases.phase_at(setup.config, 0)
  batches = [setup.put_batch(batch) for batch in batches]
  start = time.perf_counter()
  with bench_torch.cold_compiles():
    program = setup_lib.compile_step(setup, batches[0], phase)
  seconds = time.perf_counter() - start
  state = setup_lib.initial_state(setup)
  arm = Arm(setup, phase, batches, program, seconds, window.dense(state))
  if phase.is_sparse:
    arm.refresh()
  return arm


def _compact(config, phase):
  """A model that is natively as small as a sub-network of the dense one."""
  model, kv_heads = config.model, config.model.num_kv_heads
  if kv_heads == model.num_heads:
    kv_heads = phase.heads
  model = dataclasses.replace(
    model,
    num_heads=phase.heads,
    num_kv_heads=kv_heads,
    mlp_dim=phase.channels,
  )
  return dataclasses.replace(config, model=model)


def _whole_selection(dense, setup, batches):
  """An arm that gathers every neuron: the dense model by way of SAT."""
  model, arm = setup.config.model, dense.twin()
  if setup_lib.is_masked(setup.config):
    arm = _arm(setup, batches, dense.phase)
  counts = {'heads': model.num_heads, 'mlp': model.mlp_dim}
  if model.num_kv_heads == model.num_heads:
    counts['kv_heads'] = model.num_heads
  rows = {
    name: jnp.tile(jnp.arange(count), (model.num_layers, 1))
    for name, count in counts.items()
  }
  arm.window = window.open_window(setup, arm.window.state, rows)
  return arm


def _time(arms, rounds, steps):
  """Seconds of a step, by arm and round, and of a refresh."""
  refreshes = {
    name: arm.refresh for name, arm in arms.items() if name.startswith('sat')
  }
  for arm in arms.values():
    arm.steps(_WARMUP)
  for refresh in refreshes.values():
    for _ in range(_WARMUP):
      refresh()
  visits = {n: functools.partial(a.steps, steps) for n, a in arms.items()}
  seconds = _take_turns('steps', visits, rounds)
  return (
    {name: np.array(of_arm) / steps for name, of_arm in seconds.items()},
    _take_turns('refreshes', refreshes, rounds),
  )


def _take_turns(label, tasks, rounds):
  """Seconds of every task in every round; odd rounds go backwards."""
  console = rich_console.Console(stderr=True, highlight=False)
  seconds = {name: [] for name in tasks}
  start = time.perf_counter()
  for number in rich_progress.track(
    range(rounds), label, console=console, disable=not console.is_terminal
  ):
    for name in list(tasks)[:: -1 if number % 2 else 1]:
      begin = time.perf_counter()
      tasks[name]()
      seconds[name].append(time.perf_counter() - begin)
    if not console.is_terminal:
      left = (time.perf_counter() - start) * (rounds / (number + 1) - 1)
      console.print(f'{label}: {number + 1}/{rounds} rounds, {left:.0f} s left')
  return seconds


def _summarise(config, arms, seconds, refreshes):
  """Figures of each arm; a SAT step bears its share of a refresh."""
  refresh = {name: float(np.median(t)) for name, t in refreshes.items()}
  every = config.sparsity.refresh_every
  total = {n: t + refresh.get(n, 0.0) / every for n, t in seconds.items()}
  result = {}
  for name, arm in arms.items():
    ratio = bench_table.spread(total[name] / total['dense'])
    limit = arms['dense'].flops / arm.flops
    median = float(np.median(total[name]))
    result[name] = {
      'seconds': median,
      'tokens_per_second': config.tokens_per_step / median,
      'ratio': ratio,
      'flops': arm.flops,
      'limit': limit,
      'efficiency': 1 / ratio['median'] / limit,
      'compile_seconds': arm.compile_seconds,
      'step_seconds': seconds[name].tolist(),
    }
    if name in refresh:
      twin = bench_table.spread(
        total[name] / total[name.replace('sat', 'twin')]
      )
      result[name] |= {
        'refresh_seconds': refreshes[name],
        'overhead': twin['median'] - 1,
      }
  return result
