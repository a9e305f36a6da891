"""The arithmetic of a decoder against a few lines of NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax.model import ops

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
TOLERANCE = {'float32': 1e-5, 'bfloat16': 4e-3}  # rounded once


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def numpy_rope(x, positions, theta):
  """Pairs (i, i + H/2) as complex numbers, turned by the position's angle."""
  half = x.shape[-1] // 2
  frequency = theta ** (-np.arange(half) / half)
  turn = np.exp(1j * positions[..., None, None] * frequency)
  pairs = (x[..., :half] + 1j * x[..., half:]) * turn
  return np.concatenate([pairs.real, pairs.imag], axis=-1)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rms_norm(dtype):
  x, gain = draw(2, 3, 8) * 10, draw(8, seed=1)
  x = np.array(jnp.asarray(x, dtype), np.float64)
  mean_square = np.mean(x**2, axis=-1, keepdims=True)
  expected = x / np.sqrt(mean_square + 0.1) * gain
  found = ops.rms_norm(jnp.asarray(x, dtype), jnp.asarray(gain), 0.1)
  assert found.dtype == dtype
  np.testing.assert_allclose(
    np.float32(found), expected, rtol=TOLERANCE[dtype], atol=1e-6
  )


def test_rms_norm_takes_its_mean_in_float32():
  # In bfloat16, adding 1 to 256 squared changes nothing.
  x = jnp.asarray([[[256.0] + [1.0] * 1023]], jnp.bfloat16)
  expected = 256 / np.sqrt((256**2 + 1023) / 1024)
  found = np.float32(ops.rms_norm(x, jnp.ones(1024), 0.0)[0, 0, 0])
  np.testing.assert_allclose(found, expected, rtol=4e-3)


@pytest.mark.parametrize('head_dim', [2, 6, 16])
def test_rope(head_dim):
  x = draw(2, 5, 3, head_dim)
  positions = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 700]])
  angles = ops.rope_angles(jnp.asarray(positions), head_dim, 100.0)
  found = ops.apply_rope(jnp.asarray(x), angles)
  expected = numpy_rope(x, positions, 100.0)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  # Position 0 is not turned, and no turn changes a length.
  np.testing.assert_array_equal(found[:, 0], x[:, 0])
  np.testing.assert_allclose(
    np.linalg.norm(found, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
  )


def test_rope_sees_differences_of_positions_only():
  query, key = draw(1, 1, 1, 8), draw(1, 1, 1, 8, seed=1)

  def dot(at_query, at_key):
    turned = [
      ops.apply_rope(x, ops.rope_angles(jnp.array([[at]]), 8, 1000.0))
      for x, at in ((query, at_query), (key, at_key))
    ]
    return float(jnp.sum(turned[0] * turned[1]))

  for difference in (0, 1, 7, 100):
    dots = [dot(start + difference, start) for start in (0, 3, 50, 200)]
    np.testing.assert_allclose(dots, dots[0], rtol=1e-4, atol=1e-5)
  assert abs(dot(7, 0) - dot(0, 7)) > 1e-2


PROJECTIONS = {
  'matrix': (draw(2, 3, 4), draw(5, 4, seed=1), 'BTD,FD->BTF'),
  'heads': (draw(2, 3, 4), draw(3, 2, 4, seed=1), 'BTD,NHD->BTNH'),
  'one row': (draw(7, 4), draw(5, 4, seed=1), 'XD,FD->XF'),
}
OUTPUTS = {
  'matrix': (draw(2, 3, 5), draw(5, 4, seed=1), 'BTF,FD->BTD'),
  'heads': (draw(2, 3, 3, 2), draw(3, 2, 4, seed=1), 'BTNH,NHD->BTD'),
}


@pytest.mark.parametrize(
  'op, case',
  [(ops.project_in, case) for case in PROJECTIONS.values()]
  + [(ops.project_out, case) for case in OUTPUTS.values()],
)
def test_projections_and_their_gradients(op, case):
  x, w, contraction = case
  expected = np.einsum(contraction, x.astype(np.float64), w)
  np.testing.assert_allclose(op(x, w), expected, rtol=1e-5, atol=1e-6)
  weight = draw(*expected.shape, seed=2)

  def loss(fn):
    return lambda x, w: jnp.sum(weight * jnp.sin(fn(x, w)))

  found = compiled(jax.grad(loss(op), (0, 1)))(x, w)
  plain = functools.partial(jnp.einsum, contraction)
  for one, two in zip(found, compiled(jax.grad(loss(plain), (0, 1)))(x, w)):
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_projections_stay_in_bfloat16():
  x, w = jnp.ones((2, 4), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)
  grads = jax.grad(lambda x, w: ops.project_in(x, w).sum(), (0, 1))(x, w)
  assert ops.project_in(x, w).dtype == jnp.bfloat16
  assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
  assert [g.shape for g in grads] == [x.shape, w.shape]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_gradients_of_swiglu_are_those_of_autodiff(dtype):
  gate, up, weight = draw(3, 4, 7).astype(dtype)

  def gradients(fn):
    out, pull = jax.vjp(fn, gate, up)
    return out, *pull(jnp.asarray(weight))

  found = gradients(ops.swiglu)
  expected = gradients(lambda gate, up: jax.nn.silu(gate) * up)
  tolerance = 1e-6 if dtype == 'float32' else 2e-2
  for one, two in zip(found, expected):
    assert one.dtype == dtype
    one, two = np.float32(one), np.float32(two)
    np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_gradients_of_rms_norm_are_those_of_autodiff(dtype):
  x, dy, gain = draw(3, 5, 7).astype(dtype)
  gain = jnp.asarray(gain[0], jnp.float32)

  def plain(x, gain):
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide / jnp.sqrt(square + 1e-2) * gain).astype(dtype)

  def results(fn):
    out, pull = jax.vjp(fn, jnp.asarray(x), gain)
    return out, *pull(jnp.asarray(dy))

  found = results(lambda x, gain: ops.rms_norm(x, gain, 1e-2))
  tolerance = 1e-5 if dtype == 'float32' else 2e-2
  for one, two in zip(found, results(plain)):
    assert one.dtype == two.dtype
    one, two = np.float32(one), np.float32(two)
    np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


def test_a_tap_changes_nothing_and_sums_up_what_flows_through_it():
  x, weights = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)

  def loss(x, into):
    return jnp.sum(jnp.sin(ops.tap(x, None, into)) * weights)

  plain = jax.grad(lambda x: jnp.sum(jnp.sin(x) * weights))(x)
  dx, flow = jax.grad(loss, argnums=(0, 1))(x, jnp.zeros(4))
  np.testing.assert_array_equal(dx, plain)
  # |hidden value x gradient| of each unit, over what it has, at each token.
  expected = np.abs(np.sum(x * plain, axis=-1)).sum(axis=(0, 1))
  np.testing.assert_allclose(flow, expected, rtol=1e-5)


def test_a_tap_weighs_gradients_by_another_array():
  x, change = draw(2, 3, 5), draw(2, 3, 5, seed=1)

  def loss(x, into):
    return jnp.sum(jnp.sin(ops.tap(x, change, into)))

  flow = jax.grad(loss, argnums=1)(x, jnp.zeros(()))
  norms = [np.linalg.norm(y, axis=-1) for y in (change, np.cos(x))]
  np.testing.assert_allclose(flow, np.sum(norms[0] * norms[1]), rtol=1e-5)
