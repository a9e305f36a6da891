"""The train step of a phase, compiled for devices that are not here."""

from collections.abc import Sequence
import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from satjax.config.run import Config
from satjax.lab.plan import collectives
from satjax.lab.plan.memory import batch_of
from satjax.train import phases, programs
from satjax.train import setup as setup_lib
from satjax.train.window import Window

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def compile_at(
  config: Config, step: int, devices: Sequence[jax.Device]
) -> tuple[dict[str, Any], list[collectives.Collective]]:
  """Compiles what a run compiles after `step` steps; nothing is allocated.

  Returns:
    What the compiler says of the step, as JSON has it: the 'seconds' that it
    took; bytes of one device, of state, batch and what the forward pass gets
    besides ('argument'), of what only lives during the step, and its code
    ('temporary'), and of what lies beside the step's own in a window of SAT
    ('parked'); the 'largest' of its collectives. 'refusal' is why there is no
    program: it needs more memory than there is. Then 'temporary' is what the
    compiler counted, and the rest unknown.

    And its collectives.
  """
  start = time.perf_counter()
  setup = setup_lib.make_setup(config, devices)
  # Of the setup's configuration: it names the kernels of these devices.
  phase = phases.phase_at(setup.config, step)
  batch = batch_of(setup.config)
  opened = programs.shapes(setup, batch, phase)
  sizes, refusal, exchanged = (0, 0, 0), '', []
  try:
    program = programs.compile_step(setup, batch, phase, opened)
    sizes = *step_bytes(program), parked_bytes(opened)
    exchanged = collectives.read(program.as_text(), loop_rounds(phase))
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    refusal = str(error).partition('\n')[0]
    sizes = 0, needed_bytes(str(error)), 0
  largest = collectives.largest(exchanged)
  found = {
    'seconds': time.perf_counter() - start,
    **dict(zip(('argument_bytes', 'temporary_bytes', 'parked_bytes'), sizes)),
    'refusal': refusal,
    'largest': [dataclasses.asdict(one) for one in largest],
  }
  return found, exchanged


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
