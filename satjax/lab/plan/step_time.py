"""Modelled time of a step: what FLOPs, memory and network would need at least.

A model, not a measurement: each of the three at a share of the data sheet, and
the largest of them, as if the others were hidden behind it.
"""

from collections.abc import Sequence
import dataclasses

from jax.sharding import AbstractMesh

from satjax.config.run import Config
from satjax.lab.plan import collectives
from satjax.lab.plan import memory as plan_memory
from satjax.lab.plan.collectives import Collective
from satjax.lab.plan.devices import BETWEEN_GROUPS, Chip
from satjax.lab.plan.share import shares
from satjax.train import phases
from satjax.train.phases import Phase

# Shares of the data sheet. Matmuls of public runs reach 0.45 to 0.65 of it
# (MaxText, LLM-Foundry); a ring along one axis of a torus uses some links.
COMPUTE_SHARE = 0.6
MEMORY_SHARE = 0.8
NETWORK_SHARE = 0.5
_HOST_LINK = 25e9  # bytes a second between a device and its host


@dataclasses.dataclass(frozen=True)
class Modelled:
  """Seconds of a step that each would need; `host`: of windows, spread out."""

  compute: float
  memory: float
  network: float
  host: float = 0.0

  @property
  def total(self) -> float:
    return max(self.compute, self.memory, self.network) + self.host

  @property
  def bound(self) -> str:
    """What the step waits for."""
    names = ('compute', 'memory', 'network')
    return max(names, key=lambda name: getattr(self, name))


def step_time(
  config: Config,
  phase: Phase,
  mesh: AbstractMesh,
  chip: Chip,
  exchanged: Sequence[Collective] | None = None,
) -> Modelled:
  """Modelled time of a step; `exchanged`: None is the closed form."""
  if exchanged is None:
    exchanged = exchanges(config, phase, mesh, chip.lanes)
  model = phase.stage.model
  # One forward pass more, to the forward and the backward pass (of two).
  recomputed = 4 / 3 if model.remat == 'full' else 1
  executed = recomputed * phases.phase_flops(config, phase) / mesh.size
  peak = chip.flops if model.dtype == 'bfloat16' else chip.flops / 2
  near = chip.group or mesh.size
  network = sum(
    collectives.sent(x) / (chip.network if x.group <= near else BETWEEN_GROUPS)
    for x in exchanged
  )
  return Modelled(
    compute=executed / (COMPUTE_SHARE * peak),
    memory=_traffic(config, phase, mesh) / (MEMORY_SHARE * chip.bandwidth),
    network=network / NETWORK_SHARE,
    host=_host_bytes(config, phase, mesh) / _HOST_LINK,
  )


def exchanges(
  config: Config, phase: Phase, mesh: AbstractMesh, lanes: int = 1
) -> tuple[Collective, ...]:
  """What a step exchanges, in closed form.

  Over fsdp every microbatch gathers the matrices twice, for its two passes, and
  scatters their gradients once; over data it sums gradients; over tensor it
  sums activations after attention and MLP, in both passes. What rests takes
  part in the passes that it has.

  Gradients are summed whole over fsdp, as the TPU compiler does it, where
  shards along embed_dim are no multiple of the chip's `lanes`, or where copies
  of the model take part too.
  """
  part, rest, passes, beside = shares(config, phase, mesh)
  data, fsdp, tensor = (mesh.shape[x] for x in ('data', 'fsdp', 'tensor'))
  layers, times = part.layers, part.microbatches
  ends = 2 * part.vocab * part.width
  is_narrow = part.width % (fsdp * lanes) != 0
  sums_whole = lanes > 1 and (is_narrow or data > 1)
  found = []

  def exchange(kind, numbers, count, group):
    size = int(numbers * part.itemsize)
    if group > 1 and count:
      found.append(Collective(kind, (int(numbers),), '', size, count, group))

  for of, count in ((rest, passes * rest.layers), (beside, beside.layers)):
    exchange('all-gather', of.layer_weights, count * times, fsdp)
  for numbers, count in ((part.layer_weights, layers), (ends / 2, 2)):
    exchange('all-gather', numbers, 2 * count * times, fsdp)
    if sums_whole:
      exchange('all-reduce', numbers, count * times, fsdp * data)
      continue
    exchange('reduce-scatter', numbers, count * times, fsdp)
    exchange('all-reduce', numbers / fsdp, count * times, data)
  sums = 4 + 2 * (phase.stage.model.remat == 'full')
  numbers = part.tokens * part.width
  sums = sums * layers + 2 * (passes * rest.layers + beside.layers)
  exchange('all-reduce', numbers, sums * times, tensor)
  return tuple(found)


def _traffic(config, phase, mesh):
  """Bytes between a chip and its memory in a step."""
  part, rest, passes, beside = shares(config, phase, mesh)
  recomputed = phase.stage.model.remat == 'full'
  state = plan_memory.sizes(config, phase, mesh)['state']
  logits = 5 * part.tokens * part.vocab * part.itemsize
  layers = sum(
    of.layers
    * (
      of.layer_weights * of.itemsize * (count + recomputed)
      # Every intermediate value is written, read, and has a gradient.
      + 3.2 * count / 3 * of.tokens * of.layer_values
    )
    for of, count in ((part, 3), (rest, passes), (beside, 1))
  )
  return 2 * state + part.microbatches * (layers + logits)


def _host_bytes(config, phase, mesh):
  """Bytes a step to the host and back, where omitted rows rest there.

  A window brings all of them back; layers that count though they rest come for
  each pass.
  """
  if config.sparsity.rest != 'host' or not phase.is_sparse:
    return 0.0
  rows = plan_memory.sizes(config, phase, mesh)['parked']
  _, rest, passes, _ = shares(config, phase, mesh)
  layers = 4 * rest.layer_weights * rest.layers / mesh.shape['fsdp']
  fetched = passes * rest.microbatches * layers
  return 2 * rows / config.sparsity.refresh_every + fetched
