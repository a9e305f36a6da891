"""Width growth as the authors' released code does it, where that differs.

`zero` leaves old norm gains as they are and gives new channels a gain of 0
(`width`); `direct` is here. It draws duplicates at random, channel by channel
and for each size once, so that channels occur unequally often and heads are
mixed, and it takes the new rows of its fused query, key and value matrix from
the first `embed_dim` rows of the old one, which mixes the three. Neither keeps
the function (prts, scaling/bert2bert.py). For reproduction only.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.growth.operators import Width

FUSED = (
  'blocks/attention/query',
  'blocks/attention/key',
  'blocks/attention/value',
)


def direct(operator: Width, name: str, parts: Sequence[jax.Array]) -> jax.Array:
  """A parameter in its new size.

  Args:
    operator: of method 'direct', to twice the size in every way.
    name: of the parameter.
    parts: the old one; query, key and value for each of these three.
  """
  old = dict(operator.old)
  x = parts[0]
  if name in FUSED:
    x = _misplaced(name, parts)
  elif name == 'blocks/attention/output':
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    x = _take(operator, flat, 1, divide=True)
    x = x.reshape(x.shape[0], 2 * old['heads'], -1, x.shape[-1])
  elif 'mlp' in tree.AXES[name]:
    x = _take(operator, x, 1, divide=name in tree.WRITES.values())
  reads = name in FUSED or name == 'unembed' or name.endswith(('gate', 'up'))
  return _take(operator, x, x.ndim - 1, divide=reads)


def _take(operator, x, place, *, divide):
  """Twice as long along an axis; what is read is divided by its copies."""
  size = x.shape[place]
  drawn = np.random.default_rng([operator.seed, size]).integers(size, size=size)
  rows = np.concatenate([np.arange(size), drawn])
  x = jnp.take(x, rows, axis=place)
  if not divide:
    return x
  shape = [1] * x.ndim
  shape[place] = 2 * size
  counts = np.bincount(rows)[rows].reshape(shape)
  return x / counts.astype(x.dtype)


def _misplaced(name, parts):
  """New heads: blocks of the first third of the fused matrix, thrice."""
  heads = parts[0].shape[1]
  kind = FUSED.index(name)
  block = (3 * np.arange(heads, 2 * heads) + kind - 3 * heads) % heads
  fused = jnp.stack(parts, axis=2)  # [L, N, 3, H, D]
  fused = fused.reshape(fused.shape[0], 3 * heads, *fused.shape[3:])
  return jnp.concatenate([parts[kind], fused[:, block]], axis=1)
