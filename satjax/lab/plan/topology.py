"""A run on accelerators that are not here: memory, traffic, modelled time.

Where there is a compiler, every phase of the run is compiled for real; where
there is none, or for settings that it has not been asked about, the closed form
of `memory` and `step_time` stands in, and every row says which it is.
"""

from collections.abc import Callable
import dataclasses

from satjax import errors
from satjax.config.run import Config
from satjax.interop import models
from satjax.lab.plan import advice as plan_advice
from satjax.lab.plan import collectives, stretches
from satjax.lab.plan import compiled as plan_compile
from satjax.lab.plan import devices as plan_devices
from satjax.lab.plan import memory as plan_memory
from satjax.lab.plan import step_time as plan_time
from satjax.lab.plan.compiled import Compiled
from satjax.lab.plan.devices import Topology
from satjax.lab.plan.memory import Memory, Program
from satjax.train import phases
from satjax.train.phases import Phase


@dataclasses.dataclass(frozen=True)
class Row:
  """One phase on one device."""

  program: Program  # the phase, and how many steps have it
  flops: float  # of a step, as executed, without what remat computes again
  closed: Memory  # bytes in closed form
  compiled: Compiled | None  # None: the compiler was not asked
  # Collectives by kind: how often, and bytes.
  exchanged: dict[str, tuple[int, int]]
  # Seconds of a step; None: there is no such program.
  modelled: plan_time.Modelled | None

  @property
  def name(self) -> str:
    return describe(self.program.phase)

  @property
  def total(self) -> float:
    """Bytes that it needs."""
    step = self.compiled.total if self.compiled else self.closed.total
    return max(step, self.closed.between)

  def fits(self, topology: Topology) -> bool:
    refused = self.compiled is not None and self.compiled.refusal
    return not refused and self.total <= topology.chip.memory


@dataclasses.dataclass(frozen=True)
class Result:
  """A run on a topology."""

  config: Config
  topology: Topology
  rows: tuple[Row, ...]  # its phases; none if the mesh does not match
  remarks: tuple[str, ...]  # what else there is to say
  # The configuration with settings that fit, if these do not.
  advice: Config | None = None
  # The phase of the advice that needs most, compiled.
  confirmed: Row | None = None


def plan(
  config: Config,
  topology: Topology,
  say: Callable[[str], None],
) -> Result:
  """Every phase of a run, compiled or in closed form, and advice.

  `say` gets a line whenever something takes long.

  Raises:
    ConfigError: there is no such topology, or tokenizer.
  """
  config = models.resolve(config)
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
    rows = ()
    remarks.append(f'No plan for these settings: {error}.')
  if rows and all(row.fits(topology) for row in rows):
    return Result(config, topology, rows, tuple(remarks))
  advice, confirmed = _advice(config, topology, devices, say)
  return Result(config, topology, rows, tuple(remarks), advice, confirmed)


def _rows(config, topology, devices, say):
  rows = []
  for program in plan_memory.distinct(config):
    row = _row(config, program, topology, devices, say)
    rows.append(row)
    if row.compiled and row.compiled.refusal:
      devices = None  # these settings are out: the other phases by closed form
  return tuple(rows)


def _row(config, program, topology, devices, say):
  phase = program.phase
  mesh = plan_memory.abstract_mesh(config, topology.count)
  lanes, compiled = topology.chip.lanes, None
  exchanged = plan_time.exchanges(config, phase, mesh, lanes)
  if devices is not None:
    say(f'compiling {describe(phase)} for {topology.label}')
    compiled = plan_compile.compile_at(config, program.step, devices)
    say(compiled.refusal or f'compiled in {compiled.seconds:.0f} s')
    exchanged = compiled.exchanged
  refused = compiled and compiled.refusal
  return Row(
    program=program,
    flops=phases.phase_flops(config, phase) / topology.count,
    closed=plan_memory.memory(config, phase, mesh),
    compiled=compiled,
    exchanged=collectives.total(exchanged),
    modelled=None
    if refused
    else plan_time.step_time(config, phase, mesh, topology.chip, exchanged),
  )


def _advice(config, topology, devices, say):
  """Settings that fit, confirmed if that is possible; with less, if not."""
  say('looking for settings that fit')
  room = plan_advice.ROOM
  for _ in range(3):
    advice = plan_advice.cheapest(config, topology, room)
    if advice is None:
      return None, None
    closed = _rows(advice, topology, None, say)
    most = max(closed, key=lambda row: row.total).program
    row = _row(advice, most, topology, devices, say)
    if row.fits(topology):
      return advice, row
    room *= 0.9 * min(1.0, topology.chip.memory / row.total)
  return None, None


def describe(phase: Phase) -> str:
  """A phase in a few words."""
  depth = f'{stretches.depth(phase)} layers'
  if not phase.is_sparse:
    return f'dense, {depth}'
  heads, channels = (stretches.kept(phase, x) for x in ('heads', 'mlp'))
  return f'{heads} heads, {channels} channels, {depth}'
