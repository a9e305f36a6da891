"""The pieces of a run: mesh, optimizer, first state, compiled steps."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax

from satjax import errors, sharding, tree
from satjax.config import stages
from satjax.config.run import Config
from satjax.config.stages import Stage
from satjax.data import tokenizers
from satjax.data.encode import Encoder
from satjax.growth import learned
from satjax.interop import models, vocabulary
from satjax.model import attention, decoder, lora
from satjax.sparsity import lors
from satjax.train import optimizer as optimizer_lib
from satjax.train import phases as phases_lib
from satjax.train import state as state_lib
from satjax.train import step as step_lib
from satjax.train import views
from satjax.train.state import TrainState
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Setup:
  """What stays the same from the first step of a run to the last."""

  config: Config
  mesh: jax.sharding.Mesh
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  tokenizer: tokenizers.Tokenizer

  @property
  def num_microbatches(self) -> int:
    return self.config.num_microbatches

  def put_batch(self, batch: PyTree) -> PyTree:
    """Starts to move the rows of a batch to the devices."""
    return sharding.put_rows(self.mesh, batch)

  def batch_shapes(self, batch: PyTree, stage: Stage) -> PyTree:
    """Shapes and shardings of a batch of a stage; `batch`: one of any."""
    where = sharding.batch_sharding(self.mesh)
    shape = stage.batch_size, stage.seq_len
    return {
      name: jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)
      for name, x in batch.items()
    }

  def place(self, state: PyTree) -> PyTree:
    """Puts every leaf where the table of axes wants it."""
    return tree.map_with_path(self.place_leaf, state)

  def place_leaf(
    self, path: str, leaf: jax.Array, memory: str | None = None
  ) -> jax.Array:
    """The same for one leaf, or for its shape, in a kind of memory."""
    where = sharding.leaf_sharding(self.mesh, path, leaf.shape)
    return _put(leaf, where.with_memory_kind(memory) if memory else where)

  def park_leaf(self, path: str, leaf: jax.Array) -> jax.Array:
    """Puts a leaf where neurons live that take no part (`sparsity.rest`).

    Returns when it is there, so that leaves that follow each other never pile
    up on the device.
    """
    if not self.parks_on_host(path):
      return self.place_leaf(path, leaf)
    parked = self.place_leaf(path, leaf, 'pinned_host')
    return jax.block_until_ready(parked)

  def parks_on_host(self, path: str) -> bool:
    """Whether a leaf goes to the host, with `rest` 'host'.

    Of blocks, and moments of tables that rest: the forward pass needs these.
    """
    sparsity, name = self.config.sparsity, tree.param_of(path) or ''
    if sparsity.rest != 'host':
      return False
    is_moment = path not in (name, f'params/{name}')
    rests = sparsity.embed == 'rest' and name in views.TABLES
    return name.startswith('blocks/') or (rests and is_moment)

  def replicate(self, values: PyTree) -> PyTree:
    """Puts every leaf, whole, on every device."""
    where = NamedSharding(self.mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _put(leaf, where), values)


def _put(leaf, where):
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  # A quick way out, since most leaves are where they belong.
  if leaf.sharding == where and leaf.committed:
    return leaf
  return jax.device_put(leaf, where)


def make_setup(
  config: Config, devices: Sequence[jax.Device] | None = None
) -> Setup:
  """Checks what can be checked before any work, and builds the pieces.

  On all devices, or on those given.

  Raises:
    ConfigError: the configuration does not fit its tokenizer or the devices.
  """
  tokenizer = tokenizers.get_tokenizer(config.data.tokenizer)
  if tokenizer.vocab_size > config.model.vocab_size:
    raise errors.ConfigError(
      f'config.model.vocab_size {config.model.vocab_size} is below the'
      f' {tokenizer.vocab_size} tokens of tokenizer {config.data.tokenizer!r};'
      ' raise it, or add rows until a number divides them, such as'
      ' --config.model.vocab_multiple=64'
    )
  mesh = sharding.make_mesh(config.mesh, devices)
  kind = attention.resolve(
    config.model.attention, mesh.devices.flat[0].platform
  )
  model = dataclasses.replace(config.model, attention=kind)
  config = dataclasses.replace(config, model=model)
  for stage in stages.stages(config):
    sharding.check_divides(config, stage, mesh)
  tx = optimizer_lib.make_optimizer(
    config.optimizer,
    per_neuron=config.sparsity.is_on
    and config.sparsity.bias_correction == 'per_neuron',
  )
  if views.is_masked(config):
    tx = lors.lors(
      tx,
      phases_lib.ladders(config),
      refresh_every=0,
      omitted=config.sparsity.omitted,
    )
  return Setup(config, mesh, tx, make_schedule(config), tokenizer)


def make_schedule(config: Config) -> optax.Schedule:
  """The learning rate of a run by completed steps."""
  restarts = config.growth.learning_rate == 'restart'
  return optimizer_lib.make_schedule(
    config.optimizer,
    config.train.num_steps,
    stages.restarts(config) if restarts else (),
  )


def initial_state(setup: Setup) -> TrainState:
  """Random or loaded parameters, created where they will live.

  Parameters that will stand still have no moments.
  """
  config = setup.config
  has_frozen_base = stages.stages(config)[0].has_frozen_base
  tx = optax.identity() if has_frozen_base else setup.tx

  init = functools.partial(decoder.init_params, config.model)
  key = jax.random.key(config.train.seed)
  parks = config.sparsity.rest == 'host'
  if not config.model.init_from:
    if parks:
      return _parked_state(setup, tx, _parked(setup, init, key))
    return placed(setup, lambda key: state_lib.new_state(init(key), tx), key)

  def place(path, shape, read):
    where = sharding.leaf_sharding(setup.mesh, path, shape)
    if setup.parks_on_host(path):
      where = where.with_memory_kind('pinned_host')
    return jax.make_array_from_callback(
      shape, where, lambda index: read(index).astype(np.float32)
    )

  model = models.load(
    config.model.init_from,
    setup.tokenizer,
    place=place,
    vocab_size=config.model.vocab_size,
  )
  data = config.data
  encoder = Encoder(setup.tokenizer, data.template, data.reasoning)
  vocabulary.warn_of_markers(config, encoder)
  if parks:
    return _parked_state(setup, tx, model.params)
  create = functools.partial(state_lib.new_state, tx=tx)
  return placed(setup, create, model.params, donate=(0,))


def _parked_state(setup, tx, params):
  step = setup.replicate(jnp.zeros((), jnp.int32))
  return TrainState(step, params, _parked(setup, tx.init, params))


def _parked(setup, program, *args):
  """Like `placed`, but no two leaves of blocks are on the device at a time."""

  def create(path, shape):
    def one(*args):
      return sharding.fetch(tree.flatten(program(*args))[path])

    where = sharding.leaf_sharding(setup.mesh, path, shape.shape)
    leaf = jax.jit(one, out_shardings=where)(*args)
    return setup.park_leaf(path, leaf)

  return tree.map_with_path(create, jax.eval_shape(program, *args))


def placed(
  setup: Setup,
  program: Callable[..., PyTree],
  *args: Any,
  donate: Sequence[int] = (),
  **kwargs: Any,
) -> PyTree:
  """Runs a program once, its results where the table of axes wants them."""
  shapes = jax.eval_shape(program, *args, **kwargs)
  out = sharding.tree_sharding(setup.mesh, shapes)
  program = jax.jit(program, out_shardings=out, donate_argnums=tuple(donate))
  return program(*args, **kwargs)


def fresh_state(setup: Setup, stage: Stage, key: jax.Array) -> TrainState:
  """A state of the kind that trains in a stage, from random numbers alone."""
  if stage.mode == 'learn':
    maps = learned.init(stage.operators[-1], key)
    # No neurons, so no masks.
    tx = optimizer_lib.make_optimizer(setup.config.optimizer)
    return state_lib.new_state(maps, tx)
  if stage.mode == 'lora':
    params = lora.init(stage.lora, stage.model, key)
  else:
    params = decoder.init_params(stage.model, key)
  return state_lib.new_state(params, setup.tx)


def abstract_state(setup: Setup, stage: Stage) -> TrainState:
  """Shapes and shardings of the state of a stage, as checkpoints hold it."""
  create = functools.partial(fresh_state, setup, stage)
  return setup.place(jax.eval_shape(create, jax.random.key(0)))


def abstract_checkpoint(setup: Setup) -> Callable[[dict[str, Any]], PyTree]:
  """From the record of a checkpoint to the shapes that it holds."""

  def abstract(record):
    extra = {
      path: jax.ShapeDtypeStruct(shape, dtype)
      for path, (shape, dtype) in record['extra'].items()
    }
    return {
      'state': tree.map_with_path(
        setup.park_leaf, abstract_state(setup, stage_of(setup.config, record))
      ),
      'extra': setup.place(extra),
    }

  return abstract


def stage_of(config: Config, record: dict[str, Any]) -> Stage:
  """The stage that a checkpoint was saved in.

  One of the step of a hop is of the model before, unless its record says that
  it has grown.
  """
  step = record['step'] if record['grown'] else record['step'] - 1
  return stages.stage_at(config, step)


def make_step(setup: Setup, stage: Stage | None = None) -> Callable[..., Any]:
  """The train step of a stage, `(state, batch, extra) -> (state, metrics)`."""
  config = setup.config
  stage = stage or stages.stages(config)[0]
  tx, schedule = setup.tx, setup.schedule
  if stage.mode == 'learn':
    tx = optimizer_lib.make_optimizer(config.optimizer)
    schedule = optax.constant_schedule(stage.operators[-1].learning_rate)
  return functools.partial(
    step_lib.train_step,
    model=stage.model,
    tx=tx,
    schedule=schedule,
    num_microbatches=setup.num_microbatches,
    loss_chunk=config.train.loss_chunk,
    seed=config.train.seed,
    view=views.view_of(config, stage),
  )
