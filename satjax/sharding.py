"""Device mesh, and the one table from logical axes to mesh axes."""

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from satjax import errors, tree
from satjax.config.groups import MeshConfig
from satjax.config.run import Config
from satjax.config.stages import Stage

# A parameter is split along embed_dim over `fsdp` and along its neurons or
# vocabulary over `tensor`; layers, head_dim and rank stay whole.
RULES: dict[str, str | None] = {
  'layers': None,
  'vocab': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'head_dim': None,
  'rank': None,
  'embed': 'fsdp',
}
BATCH = ('data', 'fsdp')  # mesh axes that share out the rows of a batch


def make_mesh(
  config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Mesh `(data, fsdp, tensor)` over all devices, or over those given.

  Of several TPU slices, each holds a whole copy of the model: only gradients,
  summed over `data`, cross the slower network between them.

  Raises:
    ConfigError: the axes do not multiply to the number of devices, or `data`
      cannot be shared out over the slices.
  """
  devices = list(devices or jax.devices())
  shape = data, *inside = mesh_shape(config, len(devices))
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if data % slices:
    raise errors.ConfigError(
      f'config.mesh.data {data} cannot be shared out over {slices} slices; use'
      f' a multiple of {slices}, so that fsdp and tensor stay within a slice'
    )
  if slices == 1:
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  else:
    grid = mesh_utils.create_hybrid_device_mesh(
      (data // slices, *inside),
      (slices, 1, 1),
      devices,
      allow_split_physical_axes=True,
    )
  axes = ('data', 'fsdp', 'tensor')
  return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def mesh_shape(config: MeshConfig, count: int) -> tuple[int, int, int]:
  """Sizes of `(data, fsdp, tensor)` on so many devices.

  Raises:
    ConfigError: they do not multiply to that number.
  """
  data = config.data
  if data == -1:
    data = max(1, count // (config.fsdp * config.tensor))
  shape = (data, config.fsdp, config.tensor)
  needed = math.prod(shape)
  if needed != count:
    raise errors.ConfigError(
      f'config.mesh {shape} (data, fsdp, tensor) needs {needed} devices and'
      f' there are {count}; change the axes so that their product is {count},'
      ' or set config.mesh.data=-1'
    )
  return shape


def check_divides(config: Config, stage: Stage, mesh: Mesh) -> None:
  """Refuses, in the user's words, what XLA would refuse in its own."""
  rows = mesh.shape['data'] * mesh.shape['fsdp']
  batch = config.train.microbatch_size or config.train.batch_size
  batch = batch * stage.batch_size // config.train.batch_size
  if batch % rows:
    raise errors.ConfigError(
      f'a batch of {batch} rows cannot be shared out evenly over'
      f' {rows} devices (mesh.data x mesh.fsdp); use a multiple of {rows}'
    )
  model = stage.model
  for name, size, axis in (
    ('embed_dim', model.embed_dim, 'fsdp'),
    ('num_heads', model.num_heads, 'tensor'),
    ('num_kv_heads', model.num_kv_heads, 'tensor'),
    ('mlp_dim', model.mlp_dim, 'tensor'),
    ('vocab_size', model.vocab_size, 'tensor'),
  ):
    if size % mesh.shape[axis]:
      raise errors.ConfigError(
        f'config.model.{name} {size} is not a multiple of config.mesh.{axis}'
        f' {mesh.shape[axis]}'
      )


@functools.cache
def leaf_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> Any:
  """Where one leaf of a train state lives; unnamed leaves are replicated.

  So are the gains of norms: they are few numbers, and a gather for each would
  cost more than it saves. A sub-network may keep fewer neurons than an axis has
  devices; such an axis is replicated.
  """
  axes = tree.axes_of(path, len(shape)) or ()
  spec = []
  if all(name in ('layers', 'embed') for name in axes):
    axes = ()
  for name, size in zip(axes, shape):
    axis = RULES[name]
    spec.append(axis if axis and size % mesh.shape[axis] == 0 else None)
  return NamedSharding(mesh, P(*spec))


def tree_sharding(mesh: Mesh, abstract: tree.PyTree) -> tree.PyTree:
  """Sharding of every leaf of a tree of arrays or ShapeDtypeStructs."""
  return tree.map_with_path(
    lambda path, leaf: leaf_sharding(mesh, path, leaf.shape), abstract
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over `data` and `fsdp`."""
  return NamedSharding(mesh, P(BATCH))


def put_rows(mesh: Mesh, batch: tree.PyTree) -> tree.PyTree:
  """Starts to move the rows of a batch to the devices.

  The whole batch is in every process; each moves the rows of its own devices.
  """
  where = batch_sharding(mesh)

  def put(x):
    if isinstance(x, jax.Array) or jax.process_count() == 1:
      return jax.device_put(x, where)
    return jax.make_array_from_callback(x.shape, where, x.__getitem__)

  return jax.tree.map(put, batch)


def is_away(x: jax.Array) -> bool:
  """Whether a traced array is in the memory of the host."""
  return jax.typeof(x).memory_space == jax.memory.Space.Host


def fetch(x: jax.Array) -> jax.Array:
  """A traced array in device memory, where it can be computed with.

  One that is there stays as it is, and leaves no trace in the program. Of an
  array that a scan goes through, one part at a time is fetched.
  """
  return jax.device_put(x, jax.memory.Space.Device) if is_away(x) else x


def constrain(x: jax.Array, *axes: Any) -> jax.Array:
  """Says which mesh axes split an activation; nothing on a single device.

  `axes`: for its first dimensions, a mesh axis, several, or None.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, P(*axes))
