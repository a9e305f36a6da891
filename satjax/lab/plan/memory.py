"""Bytes on a device and between devices in closed form: no compiler needed.

The state is exact: its shapes and shardings are the run's own. The rest is
counted by hand from what a fused compiler has to keep: a compute copy of the
matrices and their gradients, what remat saves of each layer, the larger of one
layer at work and the logits, and the gradient of the embedding.
`tests/lab/plan/test_tpu.py` compares it with the TPU compiler.
"""

import collections
import dataclasses
import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from satjax import sharding, tree
from satjax.config import stages
from satjax.config.run import Config
from satjax.lab.plan.share import shares
from satjax.sparsity import subnetwork
from satjax.train import phases, programs
from satjax.train import setup as setup_lib
from satjax.train.phases import Phase

# Names and dtypes of a batch; sizes come with the stage.
BATCH = {
  **dict.fromkeys(
    ('tokens', 'targets', 'positions', 'segments'),
    jax.ShapeDtypeStruct((1, 1), jnp.int32),
  ),
  'weights': jax.ShapeDtypeStruct((1, 1), jnp.float32),
}


def batch_of(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
  """`BATCH` as the data of a run have it."""
  row = config.data.attend == 'row'
  return {name: x for name, x in BATCH.items() if name != 'segments' or not row}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a device.

  Attributes:
    state: parameters and moments that train.
    parked: what rests beside them on the device.
    gradients: of the state, and the copy of it that computes; that of what
      counts though it rests too.
    activations: what the forward pass leaves for the backward pass.
    work: of one layer in the backward pass, its gathered weights among it.
    logits: and the whole output matrix.
    embedding: float32 gradient of the table, and its sum over devices.
    exchange: of the largest array that a refresh, a save or an evaluation puts
      together, whole and in its parts; no step runs meanwhile.
  """

  state: float
  parked: float
  gradients: float
  activations: float
  work: float
  logits: float
  embedding: float
  exchange: float

  @property
  def other(self) -> float:
    """A layer or the logits, whichever is at work, and the embedding."""
    return max(self.work, self.logits) + self.embedding

  @property
  def temporaries(self) -> float:
    """What only lives during a step."""
    return self.gradients + self.activations + self.other

  @property
  def between(self) -> float:
    """At most, between two steps."""
    return self.state + self.parked + self.exchange

  @property
  def total(self) -> float:
    """At most, ever."""
    return max(self.state + self.parked + self.temporaries, self.between)


class Leaf(NamedTuple):
  """One array that a run holds: on all devices, before it is split."""

  path: str
  shape: tuple[int, ...]
  itemsize: int
  role: str  # 'state', 'parked' (may go to the host) or 'fixed' (may not)


def abstract_mesh(config: Config, count: int) -> AbstractMesh:
  """The mesh of a configuration on `count` devices that need not exist.

  Raises:
    ConfigError: it needs another number of devices, or does not divide the
      batch or the model.
  """
  mesh = AbstractMesh(
    sharding.mesh_shape(config.mesh, count),
    ('data', 'fsdp', 'tensor'),
    axis_types=(AxisType.Auto,) * 3,
  )
  for stage in stages.stages(config):
    sharding.check_divides(config, stage, mesh)
  return mesh


def _anywhere(config):
  """Without what no phase depends on, so that phases are found once."""
  replace = dataclasses.replace
  return replace(
    config,
    mesh=replace(config.mesh, data=1, fsdp=1, tensor=1),
    train=replace(config.train, microbatch_size=0, loss_chunk=0),
    sparsity=replace(config.sparsity, rest='device'),
  )


def _plain(config, phase):
  """Without what changes no array's shape either: these are made once."""
  replace = dataclasses.replace
  config = _anywhere(config)
  config = replace(
    config,
    model=replace(config.model, remat='none'),
    sparsity=replace(config.sparsity, shards=1),
  )
  model = replace(phase.stage.model, remat='none')
  return config, replace(phase, stage=replace(phase.stage, model=model))


@functools.cache
def _leaves(config, phase):
  """What a phase holds on its devices, whatever the mesh."""
  setup = setup_lib.make_setup(config, jax.local_devices(backend='cpu')[:1])
  opened = programs.shapes(setup, batch_of(setup.config), phase)
  in_use = any(map(config.sparsity.sees, ('heads', 'mlp')))
  parked = opened.parked or subnetwork.Parked(None)
  found, seen = [], set()
  for role, node in (
    ('state', opened.state),
    ('fixed' if in_use else 'parked', getattr(parked.rows, 'params', None)),
    ('fixed', getattr(parked.tables, 'params', None)),
    *(('parked', part) for part in parked),
    ('fixed', opened.forward_extra),  # which shows some of what is parked
    ('fixed', opened.frozen_base),
  ):
    for path, leaf in tree.flatten(node).items():
      if id(leaf) in seen:
        continue
      seen.add(id(leaf))
      size = jnp.dtype(leaf.dtype).itemsize
      found.append(Leaf(path, leaf.shape, size, role))
  return tuple(found)


def sizes(config: Config, phase: Phase, mesh: AbstractMesh) -> dict[str, int]:
  """Bytes of a device by role, and the 'numbers' of parameters that train."""
  return _by_role(*_plain(config, phase), mesh)


@functools.cache
def _by_role(config, phase, mesh):
  sums = dict.fromkeys(('state', 'parked', 'fixed', 'numbers'), 0)
  leaves, whole = _leaves(config, phase), collections.Counter()
  for leaf in leaves:
    where = sharding.leaf_sharding(mesh, leaf.path, leaf.shape)
    size = math.prod(where.shard_shape(leaf.shape)) * leaf.itemsize
    sums[leaf.role] += size
    if leaf.role == 'state' and leaf.path.startswith('params/'):
      sums['numbers'] += size // leaf.itemsize
    # The stacks of a sub-network, and what rests, are one array when put back.
    whole[re.sub(r'blocks/\d+/', 'blocks/', leaf.path)] += size
  cut = {leaf.path for leaf in leaves if leaf.role == 'parked'}
  sums['largest'] = max(whole.values()) if cut else 0
  return sums


def memory(config: Config, phase: Phase, mesh: AbstractMesh) -> Memory:
  """Bytes of one device of a mesh, the step of a phase running."""
  sums = sizes(config, phase, mesh)
  parked = sums['parked'] if config.sparsity.rest == 'device' else 0
  part, rest, passes, beside = shares(config, phase, mesh)
  size, is_split = part.itemsize, mesh.shape['fsdp'] > 1
  copies = size if size < 4 else 0
  copies += 4 if part.microbatches > 1 else 0
  at_rest = 0.0
  for of in (rest, beside) if size < 4 else ():  # their copy
    if of is beside or config.sparsity.rest == 'device':
      at_rest += of.layers * of.layer_weights * size / mesh.shape['fsdp']
  matrix = part.vocab * part.width
  logits = part.predicted * part.vocab * (4 + size)
  logits += matrix * size if is_split else 0
  logits += matrix * 4 if config.train.loss_chunk else 0  # its whole gradient
  activations = part.layers * part.saved(config.model.remat)
  if passes == 2:
    remat = config.model.remat
    activations += rest.layers * rest.saved(
      'minimal' if remat == 'none' else remat
    )
  wide = rest if rest.layers else part
  gathered = wide.layer_weights * size if is_split else 0
  return Memory(
    state=sums['state'],
    parked=parked + sums['fixed'],
    gradients=sums['numbers'] * (4 + copies) + at_rest,
    activations=part.tokens * activations,
    work=part.tokens * wide.layer_values + gathered,
    logits=logits,
    embedding=matrix * 4 * (2 if mesh.size > 1 else 1),
    exchange=2 * sums['largest'],
  )


class Program(NamedTuple):
  """A phase that needs a program of its own."""

  phase: Phase  # its shapes
  step: int  # completed steps before its first
  steps: int  # how many there are


def distinct(config: Config) -> tuple[Program, ...]:
  """The programs of a run, in order."""
  return _distinct(_anywhere(config))


@functools.cache
def _distinct(config):
  found = {}
  for start, stop, phase in phases.stretches(config):
    key = programs.key_of(config, phase)
    program = found.get(key, Program(phase, start, 0))
    found[key] = program._replace(steps=program.steps + stop - start)
  return tuple(found.values())
