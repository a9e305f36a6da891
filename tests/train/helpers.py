"""A run without files: what the train-step tests share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import tiny
from satjax import tree
from satjax.config import stages
from satjax.config.run import Config
from satjax.model import decoder
from satjax.train import phases, views, window
from satjax.train import setup as setup_lib
from satjax.train.state import TrainState, new_state


def make_config(**overrides) -> Config:
  """The tiny configuration, dense and without growth, then overrides.

  Args:
    **overrides: `group__key=value`.
  """
  values = tiny.get_config().to_dict()
  values['sparsity'] |= {'head_rate': 0.0, 'channel_rate': 0.0}
  values['growth'] |= {'hops': ()}
  values['train'] |= {'num_steps': 20}
  values['data'] |= {'seq_len': 32}
  values['model'] |= {'scan': False}  # two layers compile faster so
  values['optimizer'] |= {'warmup_steps': 2}
  for name, value in overrides.items():
    group, key = name.split('__')
    assert key in values[group], name
    values[group][key] = value
  return Config.from_dict(values)


def in_float64(config: Config) -> Config:
  """The configuration with float64 activations (for `jax.enable_x64`)."""
  model = dataclasses.replace(config.model, dtype='float64')
  return dataclasses.replace(config, model=model)


def random_batch(config: Config, step: int, dtype=np.float32):
  """Random tokens with uneven weights and two documents a row."""
  rng = np.random.default_rng(step)
  last = stages.stages(config)[-1]
  shape = (last.batch_size, last.seq_len)
  half = shape[1] // 2
  return {
    'tokens': rng.integers(0, 256, shape, dtype=np.int32),
    'targets': rng.integers(0, 256, shape, dtype=np.int32),
    'positions': np.tile(
      np.arange(shape[1], dtype=np.int32) % half, (shape[0], 1)
    ),
    'segments': np.tile(
      np.arange(shape[1], dtype=np.int32) // half + 1, (shape[0], 1)
    ),
    'weights': (rng.random(shape) < rng.random((shape[0], 1))).astype(dtype),
  }


def one_device(config: Config) -> setup_lib.Setup:
  return setup_lib.make_setup(config, jax.devices()[:1])


def initial_state(setup: setup_lib.Setup) -> TrainState:
  """`setup.initial_state`, its random weights drawn once for all tests."""
  config = setup.config
  if config.model.init_from or config.sparsity.rest == 'host':
    return setup_lib.initial_state(setup)
  is_base = stages.stages(config)[0].has_frozen_base
  tx = optax.identity() if is_base else setup.tx
  params = _random_params(
    dataclasses.replace(config.model, remat='none', dropout=0.0),
    config.train.seed,
  )
  create = functools.partial(new_state, tx=tx)
  return setup_lib.placed(setup, create, params)


@functools.cache
def _random_params(model, seed):
  """As `decoder.init_params` draws them, without a program to compile."""
  init = functools.partial(decoder.init_params, model)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path.rpartition('/')[2]
    if name.endswith(('_norm', '_bias')):
      return np.full(leaf.shape, name.endswith('_norm'), leaf.dtype)
    fan_in = model.embed_dim
    if path in tree.WRITES.values():
      fan_in = np.prod(leaf.shape[1:-1]) * 2 * model.num_layers
    return rng.normal(0, fan_in**-0.5, leaf.shape).astype(leaf.dtype)

  return tree.map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))


def compiled_step(setup, stage):
  """The train step; states are used up."""
  return jax.jit(setup_lib.make_step(setup, stage), donate_argnums=0)


def run(config, *, steps=None, dtype=np.float32, setup=None, start=None):
  """Trains on random batches as the loop does.

  Returns:
    The full final state, the losses, and how often the step was traced.
  """
  setup = setup or one_device(config)
  state = start or initial_state(setup)
  state = jax.tree.map(
    lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
    state,
  )
  now = window.first(setup, setup.place(state))
  traces = []

  @functools.cache
  def step_of(stage):
    train_step = setup_lib.make_step(setup, stage)

    def traced(state, batch, rest):
      traces.append(1)
      return train_step(state, batch, rest)

    return jax.jit(traced, donate_argnums=0)

  losses, steps = [], steps or config.train.num_steps
  for step in range(steps):
    phase = phases.phase_at(config, step)
    batch = stages.cut(random_batch(config, step, dtype), phase.stage)
    batch = setup.put_batch(batch)
    now = window.turn_over(setup, now, step, batch, weighs=False)
    with jax.sharding.set_mesh(setup.mesh):
      now.state, metrics = step_of(phase.stage)(
        now.state, batch, now.forward_extra
      )
    losses.append(float(metrics['loss']))
    assert_sizes(config, phase, now)
  return window.whole(setup, now, steps), losses, len(traces)


def assert_sizes(config, phase, now):
  """The state has as many channels as the phase keeps."""
  if phase.stage.mode != 'all' or views.is_masked(config):
    return
  stacks = tree.stacks(now.state.params)
  kept = sum(s['mlp']['up'].shape[1] * len(s['mlp']['up']) for s in stacks)
  wanted = (x.channels * (size - omitted) for x, size, omitted in phase.runs)
  assert kept == sum(wanted)
