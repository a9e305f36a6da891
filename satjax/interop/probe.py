"""How far the logits of two model directories are apart on a short text."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Probe:
  """Largest change of a logit, largest logit before; tokens and their text."""

  delta: float
  largest: float
  num_tokens: int
  tokens: str

  def __str__(self) -> str:
    return (
      f'Largest change of a logit: {self.delta:.3g}, where the largest logit'
      f' was {self.largest:.3g} (float32, {self.num_tokens} tokens: '
      f'{self.tokens}).'
    )


def measure(old: str | os.PathLike, new: str | os.PathLike) -> Probe:
  """Runs both models in float32, one after the other, on a short text.

  Args:
    old: model directory.
    new: model directory with the same vocabulary.
  """
  before = _logits(old)
  change = np.abs(_logits(new) - before)
  vocab_size = before.shape[-1]
  tokens = 'the bytes of a text'
  if vocab_size < 256:
    tokens += f' modulo the vocabulary of {vocab_size}'
  # NaN, where it occurs, is the largest.
  return Probe(
    float(change.max()), float(np.abs(before).max()), len(_TEXT), tokens
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


def _logits(directory) -> np.ndarray:
  model = models.load(directory)
  ids = np.array([list(_TEXT)]) % model.config.vocab_size
  return np.asarray(model.apply(model.params, ids))


def _available_memory() -> int | None:
  """Bytes that this process may take without swapping; None: not known."""
  found = []
  try:
    for line in Path('/proc/meminfo').read_text().splitlines():
      if line.startswith('MemAvailable:'):
        found.append(int(line.split()[1]) * 1024)
  except (OSError, ValueError):
    pass
  for path in _CGROUPS:
    try:
      found.append(int(Path(path).read_text()))
    except (OSError, ValueError):
      continue  # 'max': no limit
  return min(found, default=None)
