"""The pieces of a run: mesh, optimizer, first state, compiled steps."""

from collections.abc import Callable, Sequence
import contextlib
import ctypes
import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import optax

from satjax import config as config_lib
from satjax import errors, layer_maps, sharding, tree
from satjax.data import tokenizers
from satjax.growth import depth
from satjax.interop import models
from satjax.model import decoder
from satjax.sparsity import lors
from satjax.train import optimizer as optimizer_lib
from satjax.train import phases as phases_lib
from satjax.train import state as state_lib
from satjax.train import step as step_lib
from satjax.train.phases import Phase
from satjax.train.state import TrainState
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Setup:
  """What stays the same from the first step of a run to the last."""

  config: config_lib.Config
  mesh: jax.sharding.Mesh
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  tokenizer: tokenizers.ByteTokenizer

  def put_batch(self, batch: PyTree) -> PyTree:
    """Starts to move the rows of a batch to the devices."""
    return jax.device_put(batch, sharding.batch_sharding(self.mesh))

  def place(self, state: PyTree) -> PyTree:
    """Puts every leaf where the table of axes wants it."""
    return tree.map_with_path(self.place_leaf, state)

  def place_leaf(
    self, path: str, leaf: jax.Array, memory: str | None = None
  ) -> jax.Array:
    """The same for one leaf, or for its shape, in a kind of memory."""
    where = sharding.leaf_sharding(self.mesh, path, leaf.shape)
    return _put(leaf, where.with_memory_kind(memory) if memory else where)

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
  config: config_lib.Config, devices: Sequence[jax.Device] | None = None
) -> Setup:
  """Checks what can be checked before any work, and builds the pieces.

  Args:
    config: what to run.
    devices: to run on; None: all.

  Raises:
    ConfigError: the configuration does not fit its tokenizer or the devices.
  """
  keep_freed_memory()
  tokenizer = tokenizers.get_tokenizer(config.data.tokenizer)
  if tokenizer.vocab_size > config.model.vocab_size:
    raise errors.ConfigError(
      f'config.model.vocab_size {config.model.vocab_size} is below the'
      f' {tokenizer.vocab_size} tokens of tokenizer {config.data.tokenizer!r};'
      ' raise it'
    )
  mesh = sharding.make_mesh(config.mesh, devices)
  sharding.check_divides(config, mesh)
  use_compilation_cache()
  tx = optimizer_lib.make_optimizer(
    config.optimizer,
    per_neuron=config.sparsity.is_on
    and config.sparsity.bias_correction == 'per_neuron',
  )
  if is_masked(config):
    tx = lors.lors(
      tx,
      phases_lib.ladders(config),
      refresh_every=0,
      omitted=config.sparsity.omitted,
    )
  schedule = optimizer_lib.make_schedule(
    config.optimizer, config.train.num_steps
  )
  return Setup(config, mesh, tx, schedule, tokenizer)


def is_masked(config: config_lib.Config) -> bool:
  """Whether neurons are left out by zeros instead of by gathers."""
  return config.sparsity.is_on and config.sparsity.execution == 'masked'


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, unless JAX was told where to."""
  if jax.config.jax_compilation_cache_dir:
    return
  root = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
  path = root.expanduser() / 'satjax' / 'xla'
  try:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
  except OSError:
    return  # A home that can not be written costs time, not correctness.
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def keep_freed_memory() -> None:
  """Lets the C allocator keep what XLA frees, on a CPU with glibc.

  XLA's CPU client takes the buffers of every step from malloc, and by default
  glibc hands them back to the kernel, which zeroes them page by page for the
  next step: a fifth of the time of a small model's step.
  """
  if jax.config.jax_platforms not in (None, '', 'cpu'):
    return
  arena_max, mmap_max, trim_threshold, top_pad = -8, -4, -1, -2
  with contextlib.suppress(OSError, AttributeError):
    libc = ctypes.CDLL('libc.so.6')
    libc.mallopt(arena_max, 1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**26)


def initial_state(setup: Setup) -> TrainState:
  """Random or loaded parameters, created where they will live."""
  config = setup.config

  def create(key):
    params = decoder.init_params(config.model, key)
    return state_lib.new_state(params, setup.tx)

  key = jax.random.key(config.train.seed)
  if not config.model.init_from:
    abstract = jax.eval_shape(create, key)
    out = sharding.tree_sharding(setup.mesh, abstract)
    return jax.jit(create, out_shardings=out)(key)
  loaded = models.load(config.model.init_from).params
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), loaded)
  return setup.place(state_lib.new_state(setup.place(params), setup.tx))


def abstract_state(setup: Setup, phase: Phase) -> TrainState:
  """Shapes and shardings of the whole state in a phase."""
  model = dataclasses.replace(setup.config.model, num_layers=phase.num_layers)

  def create(key):
    params = decoder.init_params(model, key)
    return state_lib.new_state(params, setup.tx)

  abstract = jax.eval_shape(create, jax.random.key(0))
  return setup.place(abstract)


def abstract_checkpoint(setup: Setup) -> Callable[[dict[str, Any]], PyTree]:
  """From the record of a checkpoint to the shapes that it holds."""

  def abstract(record):
    phase = phases_lib.phase_at(setup.config, max(0, record['step'] - 1))
    extra = {
      path: jax.ShapeDtypeStruct(shape, dtype)
      for path, (shape, dtype) in record['extra'].items()
    }
    return {
      'state': abstract_state(setup, phase),
      'extra': setup.replicate(extra),
    }

  return abstract


def make_step(setup: Setup) -> Callable[..., Any]:
  """The train step, `(state, batch, rest) -> (state, metrics)`."""
  config = setup.config
  view = step_lib.whole
  if is_masked(config):
    exact = config.sparsity.omitted_forward == 'exact'
    view = functools.partial(_masked_view, exact=exact)
  micro = config.train.microbatch_size or config.train.batch_size
  return functools.partial(
    step_lib.train_step,
    model=config.model,
    tx=setup.tx,
    schedule=setup.schedule,
    num_microbatches=config.train.batch_size // micro,
    view=view,
  )


def compile_step(
  setup: Setup, batch: PyTree, state: PyTree, rest: PyTree
) -> jax.stages.Compiled:
  """The train step, compiled ahead of time for shapes and shardings."""
  out = jax.tree.map(lambda leaf: leaf.sharding, state)
  step = jax.jit(make_step(setup), donate_argnums=0, out_shardings=(out, None))
  with jax.sharding.set_mesh(setup.mesh):
    return step.lower(state, batch, rest).compile()


def _masked_view(params, state, rest, *, exact):
  """Omitted neurons are zeros; if they count, they do so without gradient."""
  if exact:
    blocks, masks = params['blocks'], state.mask['blocks']
    rest = {
      name: jax.tree.map(_omitted_part, blocks[name], masks[name])
      for name, writes in (('attention', 'output'), ('mlp', 'down'))
      if masks[name][writes].ndim
    }
  return lors.apply_mask(params, state.mask), rest


def _omitted_part(x, mask):
  """What takes no part; a matrix that is never cut serves both."""
  return jnp.where(mask, 0, x) if mask.ndim else x


def grow(setup: Setup, state: TrainState, factor: int) -> TrainState:
  """G_stack in a run: parameters, and moments unless they are reset."""
  num_layers = state.params['blocks']['attention_norm'].shape[0]
  layer_map = layer_maps.stack(num_layers, num_layers * factor)
  if setup.config.growth.opt_state == 'reset':
    params = _grow_depth(state.params, layer_map)
    grown = state.replace(params=params, opt_state=setup.tx.init(params))
  else:
    grown = _grow_depth(state, layer_map)
  return setup.place(grown)


_grow_depth = jax.jit(depth.grow_depth, static_argnums=1)
