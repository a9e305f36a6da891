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
from typing import Any

import jax
import numpy as np
from rich import console as rich_console
from rich import progress as rich_progress

from satjax import bench_arms, bench_table, bench_torch, errors
from satjax import config as config_lib
from satjax.interop import models
from satjax.train import setup as setup_lib
from satjax.train import workdir

_WARMUP = 3  # steps of an arm, and refreshes, before any counts
RATES = (0.25, 0.5, 0.75)
FORWARDS = ('skip', 'exact')


def bench(
  config: config_lib.Config,
  *,
  rates: Sequence[float] = RATES,
  forwards: Sequence[str] = FORWARDS,
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
    rates: omission rates of heads and channels.
    forwards: what the omitted part does in the forward pass, for each rate.
    rounds: visits to each arm.
    steps: optimizer steps in a visit.
    torch: whether to time PyTorch too; None: if it is installed.
    out: JSON file for the result; its table goes beside it, as .md.
    devices: to run on; None: all.

  Returns:
    The result, as in the JSON file; `bench_table.render` makes the table.

  Raises:
    SatjaxError: arms that must compute the same loss do not.
    ConfigError: PyTorch is asked for and not installed, or adapters train.
    StorageError: `out` can not be written.
  """
  torch = bench_torch.is_wanted(torch)
  config = _fresh(models.resolve(config))
  if out is not None:
    bench_table.write(out, {}, '')
  before = os.getloadavg()
  arms, losses, unavailable = _make_arms(
    config, devices, rates, forwards, num_steps=rounds * steps, torch=torch
  )
  times, refreshes, probes = _time(arms, rounds, steps)
  result = {
    'environment': workdir.environment(),
    'torch': bench_torch.versions() if torch else {},
    'load_average': {'before': before, 'after': os.getloadavg()},
    'config': config.to_dict(),
    'rounds': rounds,
    'steps': steps,
    'losses': losses,
    'unavailable': unavailable,
    'arms': _summarise(config, arms, times, refreshes, probes),
  }
  result['noise'] = bench_table.noise_floor(
    result['arms']['dense again']['ratio']
  )
  result = json.loads(json.dumps(result))
  if out is not None:
    bench_table.write(out, result, bench_table.render(result))
  return result


def _fresh(config):
  """The configuration with random weights, and before it grows.

  Raises:
    ConfigError: adapters train, which no other arm has.
  """
  if config.lora.is_on:
    raise errors.ConfigError(
      f'config.lora.rank {config.lora.rank}: a benchmark compares ways to train'
      ' all weights; set it to 0'
    )
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, init_from=''),
    growth=dataclasses.replace(config.growth, hops=()),
  )


def _make_arms(config, devices, rates, forwards, *, num_steps, torch):
  """Arms by name, their first losses, and why an arm is missing."""
  batches = bench_torch.random_batches(config)
  dense = bench_arms.with_rate(config, 0.0, 'skip')
  sparse = {
    (rate, forward): bench_arms.with_rate(config, rate, forward)
    for rate in rates
    for forward in forwards
  }
  first = bench_arms.make_arm(setup_lib.make_setup(dense, devices), batches)
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
  for (rate, forward), changed in sparse.items():
    setup = setup_lib.make_setup(changed, devices)
    sat = arms[f'{forward} {rate:g}'] = bench_arms.make_arm(setup, batches)
    if forward != 'skip':
      arms[f'{forward} {rate:g}, twin'] = sat.twin()
    else:
      small = bench_arms.compact(dense, changed)
      small = setup_lib.make_setup(small, devices)
      arms[f'skip {rate:g}, twin'] = bench_arms.make_arm(small, batches)
    if f'whole {forward}' not in same:
      arms[f'whole {forward}'] = bench_arms.whole_selection(first, setup)
      same.append(f'whole {forward}')
  losses = {name: arm.steps(1) for name, arm in arms.items()}
  bench_torch.check_losses(
    losses['dense'], {n: losses[n] for n in same}, config.model.dtype
  )
  timed = {n: arm for n, arm in arms.items() if not n.startswith('whole')}
  return timed, losses, unavailable


def _time(arms, rounds, steps):
  """Seconds of a step, by arm and round, of a refresh, and of its probe."""
  refreshes = {
    name: arm.refresh
    for name, arm in arms.items()
    if isinstance(arm, bench_arms.Arm) and arm.window.chosen
  }
  for arm in arms.values():
    arm.steps(_WARMUP)
  for refresh in refreshes.values():
    for _ in range(_WARMUP):
      refresh()
  visits = {n: functools.partial(a.steps, steps) for n, a in arms.items()}
  seconds = _take_turns('steps', visits, rounds)
  dense = arms['dense'].window.state.params
  probes = {n: functools.partial(arms[n].probe, dense) for n in refreshes}
  return (
    {name: np.array(of_arm) / steps for name, of_arm in seconds.items()},
    _take_turns('refreshes', refreshes, rounds),
    _take_turns('probes', probes, rounds),
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


def _summarise(config, arms, seconds, refreshes, probes):
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
    if isinstance(arm, bench_arms.Arm):
      result[name]['memory'] = arm.memory
    if name in refresh:
      result[name]['refresh_seconds'] = refreshes[name]
      result[name]['probe_seconds'] = probes[name]
      result[name]['refresh_share'] = refresh[name] / every / median
    if f'{name}, twin' in arms:
      ratio = total[name] / total[f'{name}, twin']
      result[name]['twin'] = bench_table.spread(ratio)
  return result
