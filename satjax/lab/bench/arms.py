"""The JAX arms of a benchmark: dense, sparse, and natively small ones."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
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
  # Of the compile, 'cold' with no cache, and 'warm' with one on disk.
  seconds: Mapping[str, float]

  @property
  def bytes(self) -> tuple[int, int]:
    """On a device between two steps, and on top of that in a step."""
    return plan_compile.step_bytes(self.program)


@dataclasses.dataclass
class TrainArm:
  """A compiled step with its own state, on its own walk through batches."""

  compiled: CompiledStep
  batches: Sequence[Any]
  window: window.Window
  done: int = 0

  @property
  def setup(self) -> setup_lib.Setup:
    return self.compiled.setup

  @property
  def refreshes(self) -> bool:
    return self.window.chosen is not None

  @property
  def flops(self) -> float:
    """Of a step, as executed."""
    return phases.phase_flops(self.setup.config, self.compiled.phase)

  @property
  def compile_seconds(self) -> Mapping[str, float]:
    return self.compiled.seconds

  @property
  def memory(self) -> dict[str, int]:
    """Bytes on the device: at the peak of a step, and of what rests there."""
    parked = plan_compile.parked_bytes(self.window)
    return {'memory': sum(self.compiled.bytes) + parked}

  def steps(self, count: int) -> float:
    """Trains `count` steps; the loss of the last one."""
    now = self.window
    for _ in range(count):
      batch = self.batches[self.done % len(self.batches)]
      now.state, scalars = self.compiled.program(
        now.state, batch, now.forward_extra
      )
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
    config, model = self.setup.config, self.compiled.phase.stage.model
    # In this context a refresh has compiled it.
    with jax.sharding.set_mesh(self.setup.mesh):
      jax.block_until_ready(refresh.measure(config, model, params, batch))

  def twin(self) -> Self:
    """The same program with a state of its own, that never refreshes."""
    now = self.window
    state, rest = jax.tree.map(jnp.copy, (now.state, now.forward_extra))
    now = window.Window(state, self.compiled.phase.stage, forward_extra=rest)
    return dataclasses.replace(self, window=now)


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


def random_batches(
  config: Config, count: int = 4
) -> list[dict[str, np.ndarray]]:
  """Batches of random tokens with the keys of training; one document a row."""
  rng = np.random.default_rng(0)
  shape = rows, length = config.train.batch_size, config.data.seq_len
  batches = []
  for _ in range(count):
    ids = rng.integers(config.model.vocab_size, size=(rows, length + 1))
    ids = ids.astype(np.int32)
    batches.append(
      {
        'tokens': ids[:, :-1],
        'targets': ids[:, 1:],
        'positions': np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        'segments': np.ones(shape, np.int32),
        'weights': np.ones(shape, np.float32),
      }
    )
    if config.data.attend == 'row':
      del batches[-1]['segments']
  return batches


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


def make_arm(compiled: CompiledStep, batches: Sequence[Any]) -> TrainArm:
  """A new state on the device, with a window if the phase is sparse."""
  setup = compiled.setup
  batches = [setup.put_batch(batch) for batch in batches]
  state = setup_lib.initial_state(setup)
  arm = TrainArm(compiled, batches, window.first(setup, state))
  if compiled.phase.is_sparse:
    arm.refresh()
  return arm


def open_arm(setup: setup_lib.Setup) -> TrainArm:
  """The same from nothing: compiled once, random batches."""
  batches = random_batches(setup.config)
  phase = phases.phase_at(setup.config, 0)
  program = programs.compile_phase(setup, batches[0], phase)
  return make_arm(CompiledStep(setup, phase, program, {}), batches)
