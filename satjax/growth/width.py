"""Width growth: more channels, whole heads, a wider residual stream.

Every matrix has axes that it produces (fan-out) and one that it reads (fan-in).
Old units keep their place at the front of an axis; a source map says of which
old unit a new one is a copy, or -1 where it is new. What becomes of copies and
of new units is the operator.

Two facts preserve the function. What reads a unit's copies divides its weights
among them, so that they sum to what the unit was; and what a new unit writes to
old ones is 0.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.growth import fresh
from satjax.growth.operators import Width, Widths

# If the residual stream stays as wide, new units of these read it at random:
# products of two zeros (scores, SwiGLU) would never get a gradient.
_ALIVE = ('blocks/attention/key', 'blocks/mlp/gate')
_DECIBEL = 10  # signal to noise of the split 'noisy', by HyperCloning


@functools.cache
def sources(operator: Width, axis: str) -> np.ndarray:
  """The old unit of each new unit of an axis, int [new]; -1: it has none."""
  old, new = operator.sizes[axis]
  if operator.method in ('zero', 'random'):
    return np.where(np.arange(new) < old, np.arange(new), -1)
  if axis == 'embed':
    # RMSNorm sees the same mean square only if all channels occur as often.
    tiled = np.arange(new) % old
    return np.where(np.arange(new) < operator.copies * old, tiled, -1)
  if axis == 'heads':
    group = old // operator.old.kv_heads
    groups = sources(operator, 'kv_heads')
    return (groups[:, None] * group + np.arange(group)).ravel()
  if operator.order == 'tile':
    return np.arange(new) % old
  seed = [operator.seed, Widths._fields.index(axis)]
  drawn = np.random.default_rng(seed).integers(old, size=new - old)
  return np.concatenate([np.arange(old), drawn])


def transform(
  operator: Width,
  x: jax.Array,
  above: jax.Array | None = None,
  *,
  draws: fresh.Draws,
) -> jax.Array:
  """A parameter in its new size; `above`: of the layers above, for 'aki'."""
  name = draws.name
  grown = _copied(operator, name, x, above)
  produced, read = (
    _is_new(operator, name, x.ndim, reads=reads) for reads in (False, True)
  )
  if fresh.is_gain(name):
    grown = grown * _gain_factor(operator, name)
    return jnp.where(produced, 1.0, grown).astype(x.dtype)
  grown = _share_out(operator, grown, draws)
  if (read | produced).any():
    drawn = draws.weights(grown.shape).astype(x.dtype)
    grown = jnp.where(read | produced, drawn, grown)
  stays = operator.old.embed == operator.new.embed
  if operator.method != 'random' and not (stays and name in _ALIVE):
    silent = jnp.zeros((), x.dtype)
    grown = jnp.where(produced & ~read, silent, grown)
  where = operator.noise_on == 'all' or _is_added(operator, name, x.ndim)
  return draws.add_noise(grown, operator.noise, where)


def transform_moment(
  operator: Width, name: str, kind: str, x: jax.Array
) -> jax.Array:
  """Moments in the new size; those of new units are 0.

  The gradient of a matrix that is copied along an axis which it produces is
  that of the old one times the share that readers give the copy; along an
  axis which it reads it is the same. A gain that is multiplied by a factor has
  the gradient divided by it. First moments follow, second ones with the square
  (Shen et al., 2022, on preserving training dynamics). Splits that are not even
  are taken as if they were.
  """
  if x.ndim != len(tree.AXES[name]):
    raise ValueError(
      f'a moment of {name} is factored and cannot grow in width; reset it'
    )
  power = {'first': 1, 'second': 2, 'count': 0}[kind]
  for place, axis in _grown_axes(operator, name):
    rows = sources(operator, axis)
    if x.shape[place] == 1 and operator.sizes[axis][0] != 1:
      continue  # counts broadcast along the axes that number no neuron
    x = jnp.take(x, np.maximum(rows, 0), axis=place)
    share = np.where(rows < 0, 0.0, 1.0)
    if axis != tree.READS.get(name):
      share = share * _even_shares(rows) ** power
    x = x * _along(share, place, x.ndim).astype(x.dtype)
  if fresh.is_gain(name):
    x = x / _gain_factor(operator, name) ** power
  return x


def ramp(
  operator: Width, name: str, x: jax.Array, share: jax.Array
) -> jax.Array:
  """A parameter under the mask of `random`: new outputs count a share.

  Du et al. (2024), A.5: a mask on the output of a matrix is one on its rows.
  """
  if fresh.is_gain(name) or name == 'unembed':
    return x
  where = _is_new(operator, name, x.ndim, reads=False)
  return jnp.where(where, share.astype(x.dtype) * x, x)


def _grown_axes(operator, name):
  """(position, axis) of the axes of a parameter that change."""
  grown = {axis for axis, (old, new) in operator.sizes.items() if old != new}
  return [(i, axis) for i, axis in enumerate(tree.AXES[name]) if axis in grown]


def _copied(operator, name, x, above):
  """Gathered along every axis; new units repeat some old one for now."""
  for place, axis in _grown_axes(operator, name):
    rows = sources(operator, axis)
    copied = jnp.take(x, np.maximum(rows, 0), axis=place)
    if above is not None:
      upper = jnp.take(above, np.maximum(rows, 0), axis=place)
      if axis != tree.READS.get(name) and not fresh.is_gain(name):
        # Copies beyond the first are those of the layer above.
        is_first = np.arange(len(rows)) < operator.sizes[axis][0]
        copied = jnp.where(_along(is_first, place, x.ndim), copied, upper)
      above = upper
    x = copied
  return x


def _gain_factor(operator, name) -> float:
  """Old gains of a norm stay where all channels occur as often; new ones are 1.

  Channels of 0 lower the mean square, which old gains make up for: by
  sqrt(d / D) (Du et al., 2024, A.4). With tied embeddings the output sums over
  copies of a channel, and the final norm divides by them.
  """
  if 'embed' not in tree.AXES[name]:
    return 1.0  # of queries and keys, whose width stays
  factor = operator.old_share**0.5
  if name == 'final_norm' and operator.tied:
    factor /= operator.copies
  return factor


def _share_out(operator, x, draws):
  """Divides what a matrix reads over the copies; shares sum to 1."""
  _, name, layers, _ = draws
  for place, axis in _grown_axes(operator, name):
    if axis != tree.READS.get(name):
      continue
    rows = sources(operator, axis)
    even = _along(_even_shares(rows), place, x.ndim)
    if operator.split == 'even':
      x = x * even.astype(x.dtype)
      continue
    noise = fresh.normal(
      jax.random.fold_in(draws.key, 2), name, x.shape, layers
    )
    noise = noise.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Differences around a circle sum to 0.
    noise -= jnp.take(noise, _next_copies(rows), axis=place)
    noise /= 2**0.5
    if operator.split == 'uneven':
      x = x * (even * (1 + noise / 2)).astype(x.dtype)
    else:
      x = x * even.astype(x.dtype)
      inner = tuple(range(layers is not None, x.ndim))
      level = jnp.std(x, inner, keepdims=True) * 10 ** (-_DECIBEL / 20)
      x = x + (level * noise).astype(x.dtype)
  return x


def _next_copies(rows: np.ndarray) -> np.ndarray:
  """For every unit, the next copy of its source, in a circle."""
  found = np.arange(len(rows))
  for source in range(rows.max() + 1):
    places = np.flatnonzero(rows == source)
    found[places] = np.roll(places, -1)
  return found


def _even_shares(rows: np.ndarray) -> np.ndarray:
  """One over how often the source of each unit occurs; new units: 1."""
  counts = np.bincount(rows[rows >= 0])
  return np.where(rows < 0, 1.0, 1.0 / counts[np.maximum(rows, 0)])


def _is_new(operator, name, ndim, *, reads):
  """Whether an entry belongs to a new unit of an axis that is (not) read."""
  found = np.zeros([1] * ndim, bool)
  for place, axis in _grown_axes(operator, name):
    if (axis == tree.READS.get(name)) == reads:
      found = found | _along(sources(operator, axis) < 0, place, ndim)
  return found


def _is_added(operator, name, ndim):
  """Whether an entry belongs to a unit that was not there before."""
  found = np.zeros([1] * ndim, bool)
  for place, axis in _grown_axes(operator, name):
    old, new = operator.sizes[axis]
    found = found | _along(np.arange(new) >= old, place, ndim)
  return found


def _along(values, place, ndim):
  shape = [1] * ndim
  shape[place] = len(values)
  return np.reshape(values, shape)
