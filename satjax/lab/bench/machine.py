"""The machine under a benchmark: compile caches, memory, clocks, power."""

from collections.abc import Callable, Iterator
import contextlib
import math
import subprocess
import tempfile
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

# Of what the compiler and the allocator do not tell: fragments, workspaces.
_SPARE = 0.1
# bfloat16 FLOPs a second of a large matmul of random numbers, as measured.
MEASURED = {'NVIDIA H200': 790e12}
_QUERY = ('name', 'clocks.sm', 'clocks.mem')
_QUERY += ('power.draw', 'power.limit', 'temperature.gpu')


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
  """JAX keeps compiled programs in a new folder, and remembers none."""
  options = {
    'jax_enable_compilation_cache': True,
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    options['jax_compilation_cache_dir'] = folder
    before = {name: getattr(jax.config, name) for name in options}
    _set(options)
    jax.clear_caches()
    try:
      yield
    finally:
      _set(before)


def _set(options):
  for name, value in options.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def compile_seconds(
  compile_program: Callable[[], Any],
) -> tuple[Any, dict[str, float]]:
  """The program, and seconds to compile it.

  They are 'cold', as in a first run, and 'warm', with the program on disk.
  """
  seconds, compiled = {}, []
  with empty_cache():
    for name in ('cold', 'warm'):
      jax.clear_caches()
      start = time.perf_counter()
      compiled.append(compile_program())
      seconds[name] = time.perf_counter() - start
  return compiled[0], seconds


def memory_limit(device: jax.Device) -> float:
  """Bytes of a device that arms may take: most of what it has."""
  limit = (device.memory_stats() or {}).get('bytes_limit', math.inf)
  return (1 - _SPARE) * limit


def peak_memory(device: jax.Device) -> int | None:
  """Most bytes in use since the process began; None where nobody counts."""
  return (device.memory_stats() or {}).get('peak_bytes_in_use')


def clocks() -> list[dict[str, str]]:
  """Clocks (MHz), power (W) and temperature of every GPU; [] if unknown."""
  query = f'--query-gpu={",".join(_QUERY)}'
  command = ['nvidia-smi', query, '--format=csv,noheader']
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
  except (OSError, subprocess.TimeoutExpired):
    return []
  rows = [line.split(', ') for line in done.stdout.splitlines()]
  return [dict(zip(_QUERY, row)) for row in rows if len(row) == len(_QUERY)]
