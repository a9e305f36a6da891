"""The JAX arms of a benchmark: dense, sparse, and natively small ones."""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any, Self

import jax
import jax.numpy as jnp

from satjax import bench_torch
from satjax import config as config_lib
from satjax.sparsity import subnetwork
from satjax.train import phases, programs, refresh, turnover, window
from satjax.train import setup as setup_lib


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
    return phases.phase_flops(self.setup.config, self.phase)

  @property
  def memory(self) -> int:
    """Bytes on the device: at the peak of a step, and of what rests there."""
    m = self.program.memory_analysis()
    step = m.argument_size_in_bytes + m.output_size_in_bytes
    step += m.temp_size_in_bytes - m.alias_size_in_bytes
    used = {id(leaf) for leaf in jax.tree.leaves(self.window.rest)}
    resting = (
      leaf.nbytes
      for leaf in jax.tree.leaves(self.window.resting)
      if leaf.sharding.memory_kind == 'device' and id(leaf) not in used
    )
    return step + sum(resting)

  def steps(self, count: int) -> float:
    """Trains `count` steps; the loss of the last one."""
    now = self.window
    for _ in range(count):
      batch = self.batches[self.done % len(self.batches)]
      now.state, scalars = self.program(now.state, batch, now.rest)
      self.done += 1
    jax.block_until_ready(now.state)
    return float(scalars['loss'])

  def refresh(self) -> None:
    """Changes the selection, as the training loop does."""
    batch = self.batches[self.done % len(self.batches)]
    if self.window.chosen:
      state = window.close(self.setup, self.window, self.done)
      self.window = window.dense(state, self.window)
    self.window = turnover.turn_over(self.setup, self.window, 0, batch)
    jax.block_until_ready((self.window.state, self.window.resting))

  def probe(self, params: Any) -> None:
    """Scores the neurons of dense parameters, as a refresh does."""
    batch = self.batches[self.done % len(self.batches)]
    config, model = self.setup.config, self.phase.stage.model
    jax.block_until_ready(refresh.measure(config, model, params, batch))

  def twin(self) -> Self:
    """The same program with a state of its own, that never refreshes."""
    now = self.window
    state, rest = jax.tree.map(jnp.copy, (now.state, now.rest))
    now = window.Window(state, self.phase.stage, rest=rest)
    return dataclasses.replace(self, window=now)


def with_rate(config, rate, forward):
  """The configuration with a rate that is constant from the first step on."""
  values = config.to_dict()
  values['sparsity'] |= {
    'head_rate': rate,
    'channel_rate': rate,
    'omitted_forward': forward,
    'shape': 'ladder',
    'split': 1.0,
    'warm_start': 0.0,
  }
  return config_lib.Config.from_dict(values)


def make_arm(setup, batches):
  """Compiles a step, and opens a window if the phase is sparse."""
  phase = phases.phase_at(setup.config, 0)
  batches = [setup.put_batch(batch) for batch in batches]
  start = time.perf_counter()
  with bench_torch.cold_compiles():
    program = programs.compile_phase(setup, batches[0], phase)
  seconds = time.perf_counter() - start
  state = setup_lib.initial_state(setup)
  now = window.first(setup, state)
  arm = Arm(setup, phase, batches, program, seconds, now)
  if phase.is_sparse:
    arm.refresh()
  return arm


def compact(dense, sparse):
  """A model that is natively as small as a sub-network of the dense one."""
  layer = phases.phase_at(sparse, 0).layers[-1]
  model = dataclasses.replace(
    dense.model,
    num_heads=layer.heads,
    num_kv_heads=layer.kv_heads,
    mlp_dim=layer.channels,
  )
  return dataclasses.replace(dense, model=model)


def whole_selection(dense, setup):
  """An arm that gathers every neuron: the dense model by way of SAT."""
  arm, layers = dense.twin(), dense.setup.config.model.num_layers
  counts = {
    name: size
    for name, size in zip(
      ('heads', 'kv_heads', 'mlp'), dataclasses.astuple(dense.phase.layers[0])
    )
  }
  order = {
    name: jnp.tile(jnp.arange(size, dtype=jnp.int32), (layers, 1))
    for name, size in counts.items()
  }
  stacks = (subnetwork.Stack(0, layers, tuple(counts.items())),)
  arm.window.state, _ = subnetwork.split(
    arm.window.state, order, stacks, place=setup.place_leaf
  )
  return arm
