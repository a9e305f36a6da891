"""A run on accelerators that are not here: memory, traffic, modelled time.

Where there is a compiler, every phase of the run is compiled for real; where
there is none, or for settings that it has not been asked about, the closed form
of `memory` and `step_time` stands in, and every row says which it is.
"""

from collections.abc import Callable
import dataclasses
from importlib import metadata
from typing import Any

from satjax import errors
from satjax.config.run import Config
from satjax.lab.plan import advice as plan_advice
from satjax.lab.plan import collectives, stretches
from satjax.lab.plan import compiled as plan_compile
from satjax.lab.plan import devices as plan_devices
from satjax.lab.plan import memory as plan_memory
from satjax.lab.plan import step_time as plan_time
from satjax.lab.plan.devices import Topology
from satjax.train import phases, workdir
from satjax.train.phases import Phase


def plan(
  config: Config,
  topology: Topology,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Every phase of a run, compiled or in closed form, and advice.

  `say` gets a line whenever something takes long.

  Returns:
    What `satjax plan --out` writes: bytes, FLOPs and seconds of one device and
    one step. 'phases' is empty where the mesh does not match. 'advice' has
    settings that fit, as flags, and their largest phase; it is None where the
    phases fit, or nothing that was tried does.

  Raises:
    ConfigError: there is no such topology.
  """
  remarks, devices = [], None
  try:
    devices = plan_devices.compiler_devices(topology)
  except plan_devices.NoCompiler as error:
    remarks.append(f'Closed form: {error}.')
  if topology.slices > 1:
    remarks.append('The network between slices is modelled as within one.')
  try:
    rows = _rows(config, topology, devices, say)
  except errors.ConfigError as error:
    rows = []
    remarks.append(f'No plan for these settings: {error}.')
  fits = rows and all(row['fits'] for row in rows)
  compilers = (x.version for x in metadata.distributions(name='libtpu'))
  return {
    'topology': topology.label,
    'chip': {**dataclasses.asdict(topology.chip), 'flops': topology.chip.flops},
    'chips': topology.count,
    'environment': workdir.environment(),
    'libtpu': next(compilers, None),
    'config': config.to_dict(),
    'remarks': remarks,
    'phases': rows,
    'advice': None if fits else _advice(config, topology, devices, say),
  }


def _rows(config, topology, devices, say):
  rows = []
  for program in plan_memory.distinct(config):
    row = _row(config, program, topology, devices, say)
    rows.append(row)
    if row['compiler'] and row['compiler']['refusal']:
      devices = None  # these settings are out: the other phases by closed form
  return rows


def _row(config, program, topology, devices, say):
  """A phase on one device; without `devices` the compiler is not asked."""
  phase, chip, compiled = program.phase, topology.chip, None
  mesh = plan_memory.abstract_mesh(config, topology.count)
  closed = plan_memory.memory(config, phase, mesh)
  exchanged = plan_time.exchanges(config, phase, mesh, chip.lanes)
  total, refusal = closed.total, ''
  if devices is not None:
    say(f'compiling {describe(phase)} for {topology.label}')
    compiled, exchanged = plan_compile.compile_at(config, program.step, devices)
    refusal = compiled['refusal']
    say(refusal or f'compiled in {compiled["seconds"]:.0f} s')
    sizes = (n for key, n in compiled.items() if key.endswith('_bytes'))
    total = max(sum(sizes), closed.between)
  modelled = None  # there is no such program
  if not refusal:
    found = plan_time.step_time(config, phase, mesh, chip, exchanged)
    modelled = dataclasses.asdict(found)
    modelled |= {'total': found.total, 'bound': found.bound}
  return {
    'phase': describe(phase),
    'steps': program.steps,
    # As executed, without what remat computes again.
    'flops': phases.phase_flops(config, phase) / topology.count,
    'fits': not refusal and total <= chip.memory,
    'total_bytes': total,
    'closed_form_bytes': dataclasses.asdict(closed)
    | {'temporaries': closed.temporaries, 'total': closed.total},
    'exchanged': collectives.total(exchanged),
    'compiler': compiled,
    'modelled_seconds': modelled,
  }


def _advice(config, topology, devices, say):
  """Settings that fit, confirmed if that is possible; with less, if not."""
  say('looking for settings that fit')
  room = plan_advice.ROOM
  for _ in range(3):
    advice = plan_advice.cheapest(config, topology, room)
    if advice is None:
      return None
    mesh = plan_memory.abstract_mesh(advice, topology.count)
    most = max(
      plan_memory.distinct(advice),
      key=lambda program: plan_memory.memory(advice, program.phase, mesh).total,
    )
    row = _row(advice, most, topology, devices, say)
    if row['fits']:
      flags = plan_advice.flags(config, advice)
      return {'flags': flags, 'largest_phase': row}
    room *= 0.9 * min(1.0, topology.chip.memory / row['total_bytes'])
  return None


def describe(phase: Phase) -> str:
  """A phase in a few words."""
  depth = f'{stretches.depth(phase)} layers'
  if not phase.is_sparse:
    return f'dense, {depth}'
  heads, channels = (stretches.kept(phase, x) for x in ('heads', 'mlp'))
  return f'{heads} heads, {channels} channels, {depth}'
