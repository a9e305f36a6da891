"""Width growth of the released code, against its own fused layout."""

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.growth import apply
from satjax.growth import specs as specs_lib
from tests.growth import test_preserves as common

MODEL = common.make_model(num_kv_heads=4)
SPEC = ('direct', {'width_factor': 2, 'faithful_to_release': True})
KEY = jax.random.key(0)


def grown():
  operators, target = specs_lib.resolve_all([SPEC], MODEL, seed=3)
  params = common.make_params(MODEL)
  leaves = tree.flatten(apply.grow_tree(params, operators, KEY))
  return tree.flatten(params), leaves, target


def columns(size):
  """The old unit of each new one, as the seed draws them."""
  drawn = np.random.default_rng([3, size]).integers(size, size=size)
  return np.concatenate([np.arange(size), drawn])


def test_fused_rows_are_those_of_the_first_third_thrice():
  old, new, target = grown()
  width = MODEL.embed_dim
  names = [f'blocks/attention/{name}' for name in ('query', 'key', 'value')]
  # Rows of a head: its query, its key, its value.
  fused = np.stack([old[name] for name in names], 2)
  layers, heads, _, size, _ = fused.shape
  fused = fused.reshape(layers, 3 * width, width)
  added = np.concatenate([np.arange(width)] * 3)
  fused = np.concatenate([fused, fused[:, added]], 1)
  rows = columns(width)
  fused = fused[..., rows] / np.bincount(rows)[rows]
  fused = fused.reshape(layers, 2 * heads, 3, size, 2 * width)
  assert target.num_heads == 2 * heads
  for number, name in enumerate(names):
    np.testing.assert_allclose(new[name], fused[:, :, number], rtol=1e-6)


def test_channels_are_drawn_and_what_reads_them_is_divided():
  old, new, target = grown()
  rows, channels = columns(MODEL.embed_dim), columns(MODEL.mlp_dim)
  np.testing.assert_array_equal(new['embed'], old['embed'][:, rows])
  np.testing.assert_array_equal(new['final_norm'], old['final_norm'][rows])
  shares = np.bincount(rows)[rows]
  np.testing.assert_allclose(
    new['unembed'], old['unembed'][:, rows] / shares, rtol=1e-6
  )
  down = old['blocks/mlp/down'][:, channels][..., rows]
  down /= np.bincount(channels)[channels][:, None]
  np.testing.assert_allclose(new['blocks/mlp/down'], down, rtol=1e-6)
  output = np.asarray(old['blocks/attention/output'])
  flat = output.reshape(len(output), -1, output.shape[-1])
  flat = flat[:, rows][..., rows] / shares[:, None]
  np.testing.assert_allclose(
    new['blocks/attention/output'].reshape(flat.shape), flat, rtol=1e-6
  )
  assert target.norm_eps == MODEL.norm_eps
  assert jnp.ptp(jnp.asarray(shares)) > 0  # some occur more often than others
