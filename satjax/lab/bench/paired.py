"""Paired step times: dense, every SAT rung, its compact twin, and PyTorch.

Arms that fit in memory together take turns, in an order that is reversed every
second round, so that other load on the machine meets all of them. What counts
is the time of an arm over that of the dense arm in the same round. A second
dense arm shows how far such a ratio strays by chance: the noise floor, below
which nothing is claimed.
"""

from collections.abc import Sequence
import dataclasses
import functools
import gc
import itertools
import math
import os
import tempfile
from typing import Any

import jax
import numpy as np

from satjax import errors
from satjax.config.run import Config
from satjax.interop import huggingface
from satjax.lab.bench import arms as bench_arms
from satjax.lab.bench import groups as bench_groups
from satjax.lab.bench import machine as bench_machine
from satjax.lab.bench import table as bench_table
from satjax.lab.bench import torch_arms as bench_torch
from satjax.train import setup as setup_lib
from satjax.train import workdir

_WARMUP = 3  # steps of an arm, and refreshes, before any counts
RATES = (0.25, 0.5, 0.75)
FORWARDS = ('skip', 'exact')
# Beginnings of names of arms whose forward pass is that of the dense one.
_SAME = ('dense again', 'torch', 'exact', 'through')


def bench(
  config: Config,
  *,
  rates: Sequence[float] = RATES,
  forwards: Sequence[str] = FORWARDS,
  layers: Sequence[float] = (),
  rounds: int = 21,
  steps: int = 2,
  torch: Sequence[str] | None = None,
  memory: float | None = None,
  out: str | os.PathLike | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Times the train step of a configuration, dense and sparse.

  Weights and tokens are random. A model that grows is timed before it grows.

  Args:
    rates: omission rates of heads and channels.
    forwards: what the omitted part does in the forward pass, for each rate.
    layers: omission rates of layers, for each of `forwards` but 'mean'.
    rounds: visits to each arm.
    steps: optimizer steps in a visit.
    torch: beginnings of names of PyTorch arms; (): none; None: all there are.
    memory: bytes of a device that arms may take together; None: what it has.
    out: JSON file for the result; its table goes beside it, as .md.
    devices: None: all.

  Returns:
    The result, as in the JSON file; `bench_table.render` makes the table.

  Raises:
    SatjaxError: arms that must compute the same loss do not.
    ConfigError: PyTorch arms are asked for that cannot be, adapters train, or
      the dense arm does not fit twice.
    StorageError: `out` cannot be written.
  """
  config = bench_arms.fresh(config)
  bench_table.check(out)
  before = os.getloadavg(), bench_machine.clocks()
  device = (devices or jax.devices())[0]
  variants = bench_torch.wanted(torch, device.platform, config.model.dtype)
  cases = _cases(rates, layers, forwards)
  with tempfile.TemporaryDirectory() as weights:
    run = _Run(config, cases, rounds, steps, devices, variants, weights)
    run.time(memory)
  result = {
    'config': run.config.to_dict(),
    'rounds': rounds,
    'steps': steps,
    'losses': run.losses,
    'unavailable': run.unavailable,
    'arms': run.figures,
    'noise': bench_table.noise_floor(run.figures['dense again']['ratio']),
    'environment': workdir.environment(),
    'torch': bench_torch.versions() if variants else {},
    'load_average': {'before': before[0], 'after': os.getloadavg()},
    'clocks': {'before': before[1], 'after': run.clocks},
  }
  return bench_table.publish(out, result, bench_table.render)


def _cases(rates, layers, forwards):
  """What is left out of each arm, at which rate, and what that does."""
  neurons = itertools.product(('neurons',), rates, forwards)
  others = [forward for forward in forwards if forward != 'mean']
  return [*neurons, *itertools.product(('layers',), layers, others)]


class _Run:
  """The arms of a benchmark, and what is known of them so far."""

  def __init__(self, config, cases, rounds, steps, devices, variants, weights):
    """Compiles every step, while the memory is free.

    `cases`: what is left out of each arm, at which rate, and what that does;
    `weights`: a folder for those of PyTorch's `variants`.
    """
    self.rounds, self.num_steps = rounds, steps
    self.variants, self.weights = variants, weights
    self.batches = bench_arms.random_batches(config)
    self.losses, self.unavailable, self.figures = {}, {}, {}
    self.clocks = []
    with_rate = bench_arms.with_rate
    dense = with_rate(config, 0.0, 'skip')
    wanted = {'dense': dense}
    for unit, rate, forward in cases:
      name = f'{forward} {rate:g}'
      if unit == 'layers':
        name = f'{forward} layers {rate:g}'
      wanted[name] = changed = with_rate(config, rate, forward, unit)
      if forward == 'skip':
        wanted[f'{name}, twin'] = bench_arms.compact(dense, changed)
    # All of them are checked before any is compiled.
    setups = {n: setup_lib.make_setup(c, devices) for n, c in wanted.items()}
    self.compiled = {
      name: bench_arms.compile_arm(setup, self.batches[0])
      for name, setup in setups.items()
    }
    first = setups['dense']
    if variants and (obstacle := bench_torch.obstacle(first)):
      self.variants, self.unavailable = {}, dict.fromkeys(variants, obstacle)
    self.device = first.mesh.devices.flat[0]
    # What the configuration leaves open is settled in a setup.
    self.config = dataclasses.replace(config, model=first.config.model)

  def time(self, memory):
    """All groups of arms that fit in the `memory`."""
    base, limit = self.compiled['dense'], memory
    if limit is None:
      limit = bench_machine.memory_limit(self.device)
    alone = limit < math.inf
    units = [*self._units()]
    units += [bench_groups.Unit((n,), alone=alone) for n in self.variants]
    groups, reasons = bench_groups.pack(units, base.bytes, limit)
    self.unavailable |= reasons
    self._check_noise()
    dense = self._make('dense')
    if self.variants:
      params = jax.device_get(dense.window.state.params)
      length = self.config.data.seq_len
      huggingface.save(self.weights, self.config.model, params, seq_len=length)
    self.losses['dense'] = dense.steps(1)
    dense.steps(_WARMUP)
    # Nothing but this arm has been on the device so far.
    peak = bench_machine.peak_memory(self.device)
    for number, group in enumerate(groups):
      self._time_group(dense, number, group)
      gc.collect()
      if any(unit.alone for unit in group):
        bench_torch.free()
    self.figures = {
      name: self.figures[name]
      for name in ('dense', *(n for u in units for n in u.names))
      if name in self.figures
    }
    if peak:
      self.figures['dense']['peak_memory'] = peak

  def _units(self):
    """All JAX arms but the dense one; a sparse arm with its twin."""
    base = self.compiled['dense'].bytes
    yield bench_groups.Unit(('dense again',), *base)
    for name, sat in self.compiled.items():
      if not sat.phase.is_sparse:
        continue
      twin = self.compiled.get(f'{name}, twin', sat)
      (rests, works), (twin_rests, twin_works) = sat.bytes, twin.bytes
      yield bench_groups.Unit(
        (name, f'{name}, twin'),
        # The rows in training and those at rest are all that dense has.
        max(base[0], rests) + twin_rests,
        max(works, twin_works),
      )

  def _make(self, name):
    """An arm, with its state on the device."""
    if name in self.variants:
      setup, variant = self.compiled['dense'].setup, self.variants[name]
      steps = 1 + _WARMUP + self.rounds * self.num_steps
      return bench_torch.TorchArm(
        setup, self.weights, variant, self.batches, steps
      )
    # The same program where there is none of that name.
    original = name.removesuffix(', twin').removesuffix(' again')
    compiled = self.compiled.get(name, self.compiled[original])
    return bench_arms.make_arm(compiled, self.batches, name == original)

  def _time_group(self, dense, number, group):
    arms = {'dense': dense}
    for unit in group:
      try:
        made = {name: self._make(name) for name in unit.names}
        self.losses |= {name: arm.steps(1) for name, arm in made.items()}
      except (RuntimeError, OSError) as error:
        reason = ' '.join(str(error).split())[:200]
        self.unavailable |= dict.fromkeys(unit.names, reason)
      else:
        arms |= made
    self._check_noise()
    same = {
      name: loss for name, loss in self.losses.items() if name.startswith(_SAME)
    }
    dtype, platform = self.config.model.dtype, self.device.platform
    bench_table.check_losses(self.losses['dense'], same, dtype, platform)
    if len(arms) > 1:
      for name, of_arm in self._visit(arms).items():
        self.figures.setdefault(name, {'group': number, **of_arm})
      self.clocks = bench_machine.clocks()

  def _visit(self, arms):
    """Figures of arms, from steps, refreshes and probes that take turns."""
    sat = {name: arm for name, arm in arms.items() if arm.refreshes}
    for name, arm in arms.items():
      if name != 'dense':
        arm.steps(_WARMUP)
    for arm in sat.values():
      arm.refresh(_WARMUP)
    turns = functools.partial(bench_groups.take_turns, rounds=self.rounds)
    seconds = turns(
      'steps',
      {n: functools.partial(a.steps, self.num_steps) for n, a in arms.items()},
    )
    refreshes = {name: arm.refresh for name, arm in sat.items()}
    # After the steps, which give every parameter a new place.
    params = arms['dense'].window.state.params
    probes = {n: functools.partial(a.probe, params) for n, a in sat.items()}
    return bench_table.figures(
      self.config,
      arms,
      {n: np.array(x) / self.num_steps for n, x in seconds.items()},
      turns('refreshes', refreshes),
      turns('probes', probes),
    )

  def _check_noise(self):
    if 'dense again' in self.unavailable:
      raise errors.ConfigError(
        'the dense arm has to fit twice, to tell noise from a difference:'
        f' {self.unavailable["dense again"]}'
      )
