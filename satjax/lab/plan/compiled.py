"""The train step of a phase, compiled for devices that are not here."""

from collections.abc import Sequence
import dataclasses
import math
import re
import time

import jax
import jax.numpy as jnp

from satjax.config.run import Config
from satjax.lab.plan import collectives
from satjax.lab.plan.memory import batch_of
from satjax.train import phases, programs
from satjax.train import setup as setup_lib
from satjax.train.window import Window

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of a step; bytes are of one device."""

  seconds: float  # that it took
  # Bytes of state, batch and what the forward pass gets besides.
  arguments: float = 0
  temporaries: float = 0  # bytes that only live during the step, and its code
  parked: float = 0  # bytes that lie beside the step's own, in a window of SAT
  exchanged: tuple[collectives.Collective, ...] = ()  # its collectives
  # Why there is no program: it needs more memory than there is. Then
  # `temporaries` is what the compiler counted, and the rest unknown.
  refusal: str = ''

  @property
  def total(self) -> float:
    return self.arguments + self.temporaries + self.parked


def compile_at(
  config: Config, step: int, devices: Sequence[jax.Device]
) -> Compiled:
  """Compiles what a run compiles after `step` steps; nothing is allocated."""
  start = time.perf_counter()
  setup = setup_lib.make_setup(config, devices)
  # Of the setup's configuration: it names the kernels of these devices.
  phase = phases.phase_at(setup.config, step)
  batch = batch_of(setup.config)
  opened = programs.shapes(setup, batch, phase)
  try:
    program = programs.compile_step(setup, batch, phase, opened)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    needed = needed_bytes(str(error))
    text = str(error).partition('\n')[0]
    return Compiled(time.perf_counter() - start, 0, needed, refusal=text)
  return Compiled(
    time.perf_counter() - start,
    *step_bytes(program),
    parked_bytes(opened),
    tuple(collectives.read(program.as_text(), loop_rounds(phase))),
  )


def loop_rounds(phase: phases.Phase) -> float:
  """Of a loop over layers that count though they rest, in the mean.

  One is below each layer that trains, and one above the last of a stack
  (`model.resting`); how many layers lie there depends on the choice.
  """
  loops = phase.mean_kept['layers'] + len(phases.stacks(phase))
  return sum(phase.omitted) / loops


def step_bytes(program: jax.stages.Compiled) -> tuple[int, int]:
  """Bytes on a device of what a step gets, and of what it needs on top."""
  found = program.memory_analysis()
  made = max(0, found.output_size_in_bytes - found.alias_size_in_bytes)
  code = found.generated_code_size_in_bytes
  return found.argument_size_in_bytes, found.temp_size_in_bytes + code + made


def parked_bytes(opened: Window) -> int:
  """Bytes on a device that a window holds and its step does not see."""
  seen = {id(x) for x in jax.tree.leaves((opened.state, opened.forward_extra))}
  total = 0
  for leaf in jax.tree.leaves((opened.parked, opened.frozen_base)):
    where, shape = leaf.sharding, leaf.shape
    if id(leaf) in seen or (where and where.memory_kind == 'pinned_host'):
      continue
    seen.add(id(leaf))
    shard = where.shard_shape(shape) if where else shape
    total += math.prod(shard) * jnp.dtype(leaf.dtype).itemsize
  return total


def needed_bytes(message: str) -> float:
  """The memory that the compiler wanted, of its message; 0: it does not say."""
  found = re.search(
    r'(?:Used|temporaries \(|required[^(]*\()\s*([\d.]+)([KMGT]?)', message
  )
  return float(found[1]) * _UNITS[found[2]] if found else 0.0
