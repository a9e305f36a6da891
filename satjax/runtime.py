"""The process that satjax runs in: memory and the cache of compiled programs.

Entry points alone call these; `import satjax` and `satjax.load` leave the
process of whoever uses them as it is.
"""

import contextlib
import ctypes
import os
import pathlib
import sys


def use_huge_pages() -> None:
  """Starts this process again with huge pages for its heap, on Linux.

  On a CPU they save a step an eighth of its time; glibc is told when a process
  starts, or never. Whoever has set GLIBC_TUNABLES is left alone.
  """
  name = 'GLIBC_TUNABLES'
  if sys.platform == 'linux' and name not in os.environ:
    os.environ[name] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, sys.orig_argv)


def cores() -> list[int]:
  """Numbers of the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def prepare() -> None:
  """Settings of a process that will train or time steps."""
  _keep_freed_memory()
  use_compilation_cache()


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, unless JAX was told where to."""
  import jax

  if jax.config.jax_compilation_cache_dir:
    return
  root = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
  path = root.expanduser() / 'satjax' / 'xla'
  try:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
  except OSError:
    return  # A home that cannot be written costs time, not correctness.
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _keep_freed_memory() -> None:
  """Lets the C allocator keep what XLA frees, on a CPU with glibc.

  XLA's CPU client takes the buffers of every step from malloc, and by default
  glibc hands them back to the kernel, which zeroes them page by page for the
  next step: a fifth of the time of a small model's step.
  """
  import jax

  if jax.config.jax_platforms not in (None, '', 'cpu'):
    return
  arena_max, mmap_max, trim_threshold, top_pad = -8, -4, -1, -2
  with contextlib.suppress(OSError, AttributeError):
    libc = ctypes.CDLL('libc.so.6')
    libc.mallopt(arena_max, 1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**26)
