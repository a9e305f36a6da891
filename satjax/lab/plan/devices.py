"""Accelerators by the names that people use: `v5e:4x4`, `h200:8`."""

from collections.abc import Sequence
import dataclasses
import math
import os
import re

import jax

from satjax import errors, flops

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator."""

  kind: str  # of `flops.PEAK`, which has the FLOPs
  # Bytes that a program may use: of TPUs what the compiler allows, of GPUs
  # 0.92 of the data sheet, the rest is the driver's and the allocator's.
  memory: float
  bandwidth: float  # of the memory, bytes a second
  network: float  # bytes a second that leave a chip, over all its links
  # Chips that `network` connects; 0: all. Between groups it is 400 Gb/s.
  group: int = 0
  # Numbers that lie side by side. The TPU compiler sends shards whose last
  # dimension is no multiple of them as sums of whole arrays.
  lanes: int = 128

  @property
  def flops(self) -> float:
    """Dense bfloat16 FLOPs a second."""
    return flops.peak_flops(self.kind)


# TPU: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e ("System architecture"):
# HBM bandwidth and interchip interconnect bandwidth (2400, 1600, 4800, 3584
# Gb/s). GPU: NVIDIA data sheets of A100 SXM, H100 SXM and H200 SXM; NVLink
# counts one way.
CHIPS = {
  'v4': Chip('TPU v4', 31.75 * _GIB, 1228e9, 300e9),
  'v5e': Chip('TPU v5 lite', 15.75 * _GIB, 819e9, 200e9),
  'v5p': Chip('TPU v5p', 95.74 * _GIB, 2765e9, 600e9),
  'v6e': Chip('TPU v6 lite', 31.25 * _GIB, 1640e9, 448e9),
  'a100': Chip('NVIDIA A100', 0.92 * 80e9, 2039e9, 300e9, 8, 1),
  'h100': Chip('NVIDIA H100', 0.92 * 80e9, 3350e9, 450e9, 8, 1),
  'h200': Chip('NVIDIA H200', 0.92 * 141e9, 4800e9, 450e9, 8, 1),
}
BETWEEN_GROUPS = 50e9  # bytes a second of a GPU's 400 Gb/s network card
# One device of the compiler is one chip; of v4 it would be half a chip.
_COMPILED = ('v5e', 'v5p', 'v6e')


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips that train together; a data-centre network connects slices."""

  label: str  # as given
  name: str  # chip and shape of a slice
  chip: Chip
  count: int  # over all slices
  slices: int = 1


def parse(name: str) -> Topology:
  """The topology of a name: `v5p:2x4x4`, `v6e:8x8`, `2*v5e:16x16`, `h200:8`.

  Raises:
    ConfigError: there is no such chip or shape.
  """
  match = re.fullmatch(r'(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+)*)', name)
  if not match or match[2] not in CHIPS:
    raise errors.ConfigError(
      f'--topology={name}: name a chip and how many, such as v5e:4x4, v6e:8x8,'
      ' v5p:2x4x4, 2*v5e:16x16 (two slices) or h200:8; chips are'
      f' {", ".join(CHIPS)}'
    )
  slices = int(match[1] or 1)
  count = slices * math.prod(map(int, match[3].split('x')))
  if not count:
    raise errors.ConfigError(f'--topology={name} has no chips')
  of_slice = f'{match[2]}:{match[3]}'
  return Topology(name, of_slice, CHIPS[match[2]], count, slices)


class NoCompiler(Exception):
  """There is no TPU compiler here; says what to do about it."""


def use_host() -> None:
  """Makes JAX run on the CPU, and the TPU compiler not look for TPUs.

  Before anything else of JAX runs.
  """
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ['TPU_WORKER_HOSTNAMES'] = 'localhost'
  os.environ['TPU_ACCELERATOR_TYPE'] = 'v5litepod-4'  # any, or it warns
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # or one plan at a time
  jax.config.update('jax_platforms', 'cpu')


def compiler_devices(topology: Topology) -> Sequence[jax.Device]:
  """Devices to compile for; none of them is here, nor need any TPU be.

  Raises:
    NoCompiler: `jax[tpu]` is not installed, or knows no such chips.
    ConfigError: chips are not put together in this shape.
  """
  from jax.experimental import topologies

  if topology.name.partition(':')[0] not in _COMPILED:
    raise NoCompiler(f'{topology.name} has no compiler that runs without it')
  more = {'num_slices': topology.slices} if topology.slices > 1 else {}
  try:
    found = topologies.get_topology_desc(topology.name, 'tpu', **more)
  except RuntimeError as error:
    if 'not installed' in str(error):
      raise NoCompiler(
        "the TPU compiler is not installed; pip install -e '.[tpu]' brings"
        ' it, and it needs no TPU'
      ) from error
    raise errors.ConfigError(f'--topology={topology.name}: {error}') from error
  # What is in somebody's cache has no text to read, and took no time.
  jax.config.update('jax_enable_compilation_cache', False)
  return found.devices
