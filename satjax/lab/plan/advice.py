"""The cheapest settings that fit: mesh, microbatch, remat, chunks, host rest.

All candidates are priced in closed form, which is what makes it possible to try
thousands of them; one compile then confirms the best.
"""

from collections.abc import Iterator
import dataclasses
import itertools
import math
from typing import Any

from satjax import errors
from satjax.config.run import Config
from satjax.lab.plan import memory as plan_memory
from satjax.lab.plan import step_time as plan_time
from satjax.lab.plan.devices import Topology

# Of the memory, for what the closed form does not see.
ROOM = 0.85
_CHUNK = 2048  # tokens; far below this the output matrix dominates


@dataclasses.dataclass(frozen=True)
class Advice:
  """Settings that fit.

  Attributes:
    config: with these settings.
    flags: to paste after the command.
    seconds: modelled, of an average step.
    total: bytes of a device, in closed form, of the phase that needs most.
  """

  config: Config
  flags: tuple[str, ...]
  seconds: float
  total: float


def cheapest(
  config: Config, topology: Topology, room: float = ROOM
) -> Advice | None:
  """The settings with the least modelled time among those that fit.

  Of settings within 2% of each other those that change less win.

  Args:
    config: to start from; batch size and method stay as they are.
    topology: what to run on.
    room: share of the memory to fill at most.

  Returns:
    None if nothing fits.
  """
  best, rank = None, None
  for candidate in candidates(config, topology):
    total, seconds = price(candidate, topology)
    if total > room * topology.chip.memory:
      continue
    flags = _flags(config, candidate)
    penalised = seconds * (1 + 0.02 * len(flags))
    if rank is None or penalised < rank:
      best, rank = Advice(candidate, flags, seconds, total), penalised
  return best


def price(config: Config, topology: Topology) -> tuple[float, float]:
  """Bytes of the phase that needs most, and seconds of an average step."""
  mesh = plan_memory.abstract_mesh(config, topology.count)
  total = seconds = 0.0
  for program in plan_memory.distinct(config):
    needed = plan_memory.memory(config, program.phase, mesh)
    total = max(total, needed.total)
    modelled = plan_time.step_time(config, program.phase, mesh, topology.chip)
    seconds += program.steps * modelled.total
  return total, seconds / config.train.num_steps


def candidates(config: Config, topology: Topology) -> Iterator[Config]:
  """Settings that are allowed and divide what they have to divide.

  Only copies of the model are on different slices.
  """
  batch = config.train.batch_size
  rows = {config.train.microbatch_size or batch, batch}
  rows |= {size for size in _powers(batch) if batch % size == 0}
  can_rest = config.sparsity.is_on and config.sparsity.execution == 'compact'
  axes = itertools.product(
    [m for m in _meshes(topology.count) if m[0] % topology.slices == 0],
    sorted(rows, reverse=True),
    dict.fromkeys((config.model.remat, 'none', 'minimal', 'full')),
    dict.fromkeys((config.sparsity.rest, *(['host'] if can_rest else []))),
    dict.fromkeys((config.train.loss_chunk, _CHUNK)),
  )
  for mesh, microbatch, remat, rest, chunk in axes:
    micro = 0 if microbatch == batch else microbatch
    changed = changed_by(
      config,
      {
        'mesh.data': -1 if config.mesh.data == -1 else mesh[0],
        'mesh.fsdp': mesh[1],
        'mesh.tensor': mesh[2],
        'train.microbatch_size': micro,
        'train.loss_chunk': chunk,
        'model.remat': remat,
        'sparsity.rest': rest,
        'sparsity.shards': math.lcm(config.sparsity.shards, mesh[2]),
      },
    )
    if changed is not None and _divides(changed, topology.count):
      yield changed


def changed_by(config: Config, changes: dict[str, Any]) -> Config | None:
  """The configuration with keys changed; None if that is not allowed."""
  values = config.to_dict()
  for key, value in changes.items():
    group, name = key.split('.')
    values[group][name] = value
  try:
    return Config.from_dict(values)
  except errors.ConfigError:
    return None


def _divides(config, count):
  try:
    plan_memory.abstract_mesh(config, count)
  except errors.ConfigError:
    return False
  return True


def _meshes(count):
  for tensor in _powers(min(count, 16)):
    for fsdp in _divisors(count // tensor) if count % tensor == 0 else ():
      yield count // tensor // fsdp, fsdp, tensor


def _divisors(number):
  return [n for n in range(1, number + 1) if number % n == 0]


def _powers(most):
  return [2**n for n in range(most.bit_length()) if 2**n <= most]


def _flags(config, candidate):
  """What the candidate changes, as arguments of the command line."""
  before, after = config.to_dict(), candidate.to_dict()
  return tuple(
    f'--config.{group}.{name}={value}'
    for group, values in after.items()
    for name, value in values.items()
    if value != before[group][name]
  )
