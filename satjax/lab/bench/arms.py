"""The JAX arms of a benchmark: dense, sparse, and natively small ones."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from satjax import errors
from satjax.config.run import Config
from satjax.interop import models
from satjax.lab.bench import machine as bench_machine
from satjax.lab.plan import compiled as plan_compile
from satjax.train import phases, programs, refresh, window
from satjax.train import setup as setup_lib


@dataclasses.dataclass
class CompiledStep:
  """A train step, ready to run; nothing of it is on the device yet."""

  setup: setup_lib.Setup  # of the configuration that it trains
  phase: phases.Phase  # with the shapes of the step
  program: jax.stages.Compiled  # the step
  # 'cold', with no cache, and 'warm', with one on disk.
  compile_seconds: Mapping[str, float]

  @property
  def bytes(self) -> tuple[int, int]:
    """On a device between two steps, and on top of that in a step."""
    return plan_compile.step_bytes(self.program)


@dataclasses.dataclass
class TrainArm(CompiledStep):
  """A compiled step with its own state, on its own walk through batches."""

  batches: Sequence[Any]
  window: window.Window
  done: int = 0

  @property
  def refreshes(self) -> bool:
    return self.window.chosen is not None

  @property
  def flops(self) -> float:
    """Of a step, as executed."""
    return phases.phase_flops(self.setup.config, self.phase)

  @property
  def memory(self) -> dict[str, int]:
    """Bytes on the device: at the peak of a step, and of what rests there."""
    parked = plan_compile.parked_bytes(self.window)
    return {'memory': sum(self.bytes) + parked}

  def steps(self, count: int) -> float:
    """Trains `count` steps; the loss of the last one."""
    now = self.window
    for _ in range(count):
      batch = self.batches[self.done % len(self.batches)]
      now.state, scalars = self.program(now.state, batch, now.forward_extra)
      self.done += 1
    jax.block_until_ready(now.state)
    return float(scalars['loss'])

  def refresh(self, count: int = 1) -> None:
    """Changes the selection, as the training loop does."""
    for _ in range(count):
      batch = self.batches[self.done % len(self.batches)]
      if self.window.chosen:
        state = window.close(self.setup, self.window, self.done)
        self.window = window.dense(state, self.window)
      self.window = window.turn_over(self.setup, self.window, 0, batch)
      jax.block_until_ready((self.window.state, self.window.parked))

  def probe(self, params: Any) -> None:
    """Scores the neurons of dense parameters, as a refresh does."""
    batch = self.batches[self.done % len(self.batches)]
    config, model = self.setup.config, self.phase.stage.model
    # In this context a refresh has compiled it.
    with jax.sharding.set_mesh(self.setup.mesh):
      jax.block_until_ready(refresh.measure(config, model, params, batch))


def fresh(config: Config) -> Config:
  """The configuration with random weights, and before it grows.

  Its sizes are those of the model that it would begin with.

  Raises:
    ConfigError: adapters train, which no other arm has.
  """
  config = models.resolve(config)
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


def random_batches(config: Config) -> list[dict[str, np.ndarray]]:
  """Four batches of random tokens, as in training; one document a row."""
  rows, length = config.train.batch_size, config.data.seq_len
  positions = np.arange(length, dtype=np.int32)
  same = {
    'positions': np.tile(positions, (rows, 1)),
    'weights': np.ones((rows, length), np.float32),
  }
  if config.data.attend != 'row':
    same['segments'] = np.ones((rows, length), np.int32)
  ids = np.random.default_rng(0).integers(
    config.model.vocab_size, size=(4, rows, length + 1), dtype=np.int32
  )
  return [{'tokens': x[:, :-1], 'targets': x[:, 1:], **same} for x in ids]


# What a rate is of: heads and channels, or whole layers.
UNITS = {'neurons': ('head_rate', 'channel_rate'), 'layers': ('layer_rate',)}


def with_rate(
  config: Config, rate: float, forward: str, unit: str = 'neurons'
) -> Config:
  """The configuration with a rate that is constant from the first step on.

  It is that of one of `UNITS`; of the others nothing is left out.
  """
  values = config.to_dict()
  values['sparsity'] |= {
    **dict.fromkeys(sum(UNITS.values(), ()), 0.0),
    **dict.fromkeys(UNITS[unit], rate),
    'omitted_forward': forward,
    'shape': 'ladder',
    'split': 1.0,
    'warm_start': 0.0,
  }
  return Config.from_dict(values)


def compact(dense: Config, sparse: Config) -> Config:
  """A model that is natively as small as a sub-network of the dense one."""
  phase = phases.phase_at(sparse, 0)
  layer = phase.layers[-1]
  model = dataclasses.replace(
    dense.model,
    num_layers=phase.mean_kept['layers'],
    num_heads=layer.heads,
    num_kv_heads=layer.kv_heads,
    mlp_dim=layer.channels,
  )
  # What they say is of the layers of the dense model.
  sparsity = dataclasses.replace(
    dense.sparsity, layer_scale=(), dense_layers=(0, 0)
  )
  return dataclasses.replace(dense, model=model, sparsity=sparsity)


def compile_arm(setup: setup_lib.Setup, batch: Any) -> CompiledStep:
  """Compiles the first step of a run, twice: without a cache and with one."""
  phase = phases.phase_at(setup.config, 0)
  program, seconds = bench_machine.compile_seconds(
    lambda: programs.compile_phase(setup, batch, phase)
  )
  return CompiledStep(setup, phase, program, seconds)


def make_arm(
  compiled: CompiledStep, batches: Sequence[Any], refreshes: bool = True
) -> TrainArm:
  """A new state on the device, with a window if the phase is sparse.

  One that never `refreshes` keeps what takes part, and nothing else.
  """
  setup = compiled.setup
  batches = [setup.put_batch(batch) for batch in batches]
  state = setup_lib.initial_state(setup)
  opened = window.first(setup, state)
  arm = TrainArm(**vars(compiled), batches=batches, window=opened)
  if arm.phase.is_sparse:
    arm.refresh()
  if not refreshes:
    now = arm.window
    arm.window = window.Window(
      now.state, now.stage, forward_extra=now.forward_extra
    )
  return arm


def open_arm(setup: setup_lib.Setup) -> TrainArm:
  """The same from nothing: compiled once, random batches."""
  batches = random_batches(setup.config)
  phase = phases.phase_at(setup.config, 0)
  program = programs.compile_phase(setup, batches[0], phase)
  return make_arm(CompiledStep(setup, phase, program, {}), batches)
