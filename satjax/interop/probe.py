"""How far the logits of two model directories are apart on a short text."""

import contextlib
import os
from pathlib import Path

import numpy as np

from satjax import flops
from satjax.interop import huggingface, models

_TEXT = b'Growth copies what a small model has learned into a larger one.'
# Memory to load and run a model, over its size in float32: 2.1 were measured
# at 1.1 billion parameters.
_PEAK = 3.0
_CGROUPS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


def measure(old: str | os.PathLike, new: str | os.PathLike) -> str:
  """Runs two model directories in float32, in turns, and says what changed."""
  before = _logits(old)
  words = before.shape[-1]  # new ones change nothing of these
  change = np.abs(_logits(new, words)[..., :words] - before)
  tokens = 'the bytes of a text'
  if before.shape[-1] < 256:
    tokens += f' modulo the vocabulary of {before.shape[-1]}'
  # NaN, where it occurs, is the largest.
  return (
    f'Largest change of a logit: {change.max():.3g}, where the largest logit'
    f' was {np.abs(before).max():.3g} (float32, {len(_TEXT)} tokens: {tokens}).'
  )


def why_not(directory: str | os.PathLike) -> str | None:
  """Why there is too little memory to run a model; None: there is enough."""
  config = huggingface.read_config(directory)
  needed, free = _PEAK * 4 * flops.num_params(config), _available_memory()
  if free is None or needed <= free:
    return None
  return (
    f'The change of the logits was not measured: that takes about'
    f' {needed / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free;'
    ' --probe=on measures it all the same.'
  )


def _logits(directory, words: int = 0) -> np.ndarray:
  model = models.load(directory)
  ids = np.array([list(_TEXT)]) % (words or model.config.vocab_size)
  return np.asarray(model.apply(model.params, ids))


def _available_memory() -> int | None:
  """Bytes that this process may take without swapping; None: not known."""
  found = []
  with contextlib.suppress(OSError, ValueError):
    for line in Path('/proc/meminfo').read_text().splitlines():
      if line.startswith('MemAvailable:'):
        found.append(int(line.split()[1]) * 1024)
  for path in _CGROUPS:
    with contextlib.suppress(OSError, ValueError):  # 'max': no limit
      found.append(int(Path(path).read_text()))
  return min(found, default=None)
