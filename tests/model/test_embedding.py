"""The gradient of the embedding table: one-hot matmuls against a scatter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import sharding
from satjax.config.groups import MeshConfig
from satjax.model import embedding

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
WORDS, DIM = 12, 4


def draw(rows, length, dtype):
  """Tokens of which one is in most places, and a gradient."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, WORDS, (rows, length), dtype=np.int32)
  tokens[:, ::2] = 3
  dx = jnp.asarray(rng.normal(size=(rows, length, DIM)), dtype)
  return jnp.asarray(tokens), dx


def naive(tokens_BT, dx_BTD):
  total = np.zeros((WORDS, DIM))
  for token, dx in zip(tokens_BT.ravel(), np.float64(dx_BTD).reshape(-1, DIM)):
    total[token] += dx
  return total


# Chunks that divide the 35 positions, that do not, and one of all.
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('chunk', [7, 8, 100])
def test_matmuls_add_up_as_a_scatter_does(dtype, chunk):
  tokens, dx = draw(5, 7, dtype)
  one, two = (
    compiled(functools.partial(fn, words=WORDS, dtype=np.float32))(tokens, dx)
    for fn in (
      functools.partial(embedding.multiplied, chunk=chunk),
      embedding.scattered,
    )
  )
  assert one.dtype == two.dtype == jnp.float32
  np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(one, naive(tokens, dx), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'rows, sizes',
  [(8, (2, 2, 2)), pytest.param(3, (1, 2, 4), marks=pytest.mark.slow)],
)
@pytest.mark.parametrize('add_up', [embedding.multiplied, embedding.scattered])
def test_each_device_adds_up_its_rows_and_words(
  rows, sizes, add_up, monkeypatch
):
  monkeypatch.setattr(embedding, 'scattered', add_up)  # as on other devices
  tokens, dx = draw(rows, 6, 'float32')
  mesh = sharding.make_mesh(MeshConfig(*sizes))
  run = functools.partial(embedding.gradient, words=WORDS, dtype=np.float32)
  with jax.sharding.set_mesh(mesh):
    found = compiled(run)(tokens, dx)
  np.testing.assert_allclose(found, naive(tokens, dx), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_look_up_is_that_of_jax():
  tokens, dx = draw(2, 9, 'bfloat16')
  table = jnp.asarray(np.random.default_rng(1).normal(size=(WORDS, DIM)))
  tokens = tokens.at[0, 0].set(WORDS + 5)  # clipped

  def results(look_up):
    x, pull = jax.vjp(look_up, table.astype(jnp.float32))
    return x, *pull(dx)

  found = results(lambda table: embedding.look_up(table, tokens, 'bfloat16'))
  expected = results(
    lambda table: jnp.take(table, tokens, axis=0, mode='clip').astype(dx.dtype)
  )
  for one, two in zip(found, expected):
    assert one.dtype == two.dtype
    np.testing.assert_array_equal(np.float32(one), np.float32(two))


def test_no_scatter_on_a_gpu():
  tokens, _ = draw(2, 6, 'float32')

  def total(table):
    return jnp.sum(embedding.look_up(table, tokens, 'float32') ** 2)

  traced = jax.jit(jax.grad(total)).trace(jnp.ones((WORDS, DIM)))
  for platform, scatters in (('cpu', True), ('tpu', True), ('cuda', False)):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ('stablehlo.scatter' in text) == scatters, platform
