"""The cheapest settings that fit: mesh, microbatch, remat, chunks, host rest.

All candidates are priced in closed form, which is what makes it possible to try
thousands of them; one compile then confirms the best.
"""

from collections.abc import Iterator
import itertools
import math

from satjax import errors
from satjax.config.run import Config
from satjax.lab.plan import memory as plan_memory
from satjax.lab.plan import step_time as plan_time
from satjax.lab.plan.devices import Topology

# Of the memory, for what the closed form does not see.
ROOM = 0.85
_CHUNK = 2048  # tokens; far below this the output matrix dominates


def cheapest(
  config: Config, topology: Topology, room: float = ROOM
) -> Config | None:
  """The settings with the least modelled time that fit; None: nothing does.

  Of settings within 2% of each other those that change less win. Batch size
  and method stay as they are, and at most a share of `room` is filled.
  """
  ranks = {}
  for candidate in candidates(config, topology):
    total, seconds = price(candidate, topology)
    if total <= room * topology.chip.memory:
      ranks[candidate] = seconds * (1 + 0.02 * len(flags(config, candidate)))
  return min(ranks, key=ranks.get, default=None)


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
  meshes = [
    (topology.count // tensor // fsdp, fsdp, tensor)
    for tensor in _powers(min(topology.count, 16))
    for fsdp in range(1, topology.count // tensor + 1)
    if topology.count % (tensor * fsdp * topology.slices) == 0
  ]
  axes = itertools.product(
    meshes,
    sorted(rows, reverse=True),
    dict.fromkeys((config.model.remat, 'none', 'minimal', 'full')),
    dict.fromkeys((config.sparsity.rest, *(['host'] if can_rest else []))),
    dict.fromkeys((config.train.loss_chunk, _CHUNK)),
  )
  for mesh, microbatch, remat, rest, chunk in axes:
    micro = 0 if microbatch == batch else microbatch
    values = config.to_dict()
    values['mesh'] |= {'fsdp': mesh[1], 'tensor': mesh[2]}
    if config.mesh.data != -1:
      values['mesh']['data'] = mesh[0]
    values['train'] |= {'microbatch_size': micro, 'loss_chunk': chunk}
    values['model']['remat'] = remat
    shards = math.lcm(config.sparsity.shards, mesh[2])
    values['sparsity'] |= {'rest': rest, 'shards': shards}
    try:
      changed = Config.from_dict(values)
      plan_memory.abstract_mesh(changed, topology.count)
    except errors.ConfigError:
      continue
    yield changed


def _powers(most):
  return [2**n for n in range(most.bit_length())]


def flags(config: Config, candidate: Config) -> list[str]:
  """What the candidate changes, as arguments of the command line."""
  return [
    f'--config.{key}={value}'
    for key, (_, value) in config.changes(candidate).items()
  ]
