"""Cross entropy in chunks against the whole logits: loss and all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import sharding
from satjax.train import loss
from tests import models
from tests.train import helpers

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
ROWS, LENGTH = 4, 6


def make_batch(dtype=np.float64):
  """Uneven weights, and one row that does not count."""
  rng = np.random.default_rng(0)
  weights = rng.random((ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < 0.6)
  weights[2] = 0
  shape = (ROWS, LENGTH)
  return {
    'tokens': rng.integers(0, 16, shape, dtype=np.int32),
    'targets': rng.integers(0, 16, shape, dtype=np.int32),
    'weights': weights.astype(dtype),
  }


def in_float64(model):
  object.__setattr__(model, 'dtype', 'float64')
  params = models.make_params(models.make(tied=model.tied, num_layers=1))
  return model, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)


def loss_and_grads(model, params, batch, chunk):
  def scaled(params):
    # As the train step, which divides by the weights.
    return 0.3 * loss.next_token_loss(model, params, batch, chunk=chunk)

  return compiled(jax.value_and_grad(scaled))(params)


def assert_close(found, expected, **tolerance):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    assert one.dtype == two.dtype
    np.testing.assert_allclose(one, two, **tolerance)


# Chunks that divide the 24 positions, that do not, and more than there are.
@pytest.mark.parametrize(
  'tied, chunk', [(False, 6), (True, 7), (False, 1), (False, 100)]
)
def test_chunks_equal_the_whole(tied, chunk):
  with jax.enable_x64(True):
    model, params = in_float64(models.make(tied=tied, num_layers=1))
    expected, found = (
      loss_and_grads(model, params, make_batch(), c) for c in (0, chunk)
    )
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
  'rows, tied, sizes',
  [
    (4, False, (2, 2, 2)),
    pytest.param(4, True, (1, 4, 2), marks=pytest.mark.slow),
    pytest.param(3, False, (2, 2, 2), marks=pytest.mark.slow),
  ],
)
def test_chunks_equal_the_whole_on_a_mesh(rows, tied, sizes):
  """3 rows cannot be shared out: then every device takes all of them."""
  with jax.enable_x64(True):
    model, params = in_float64(models.make(tied=tied, num_layers=1))
    batch = {name: x[:rows] for name, x in make_batch().items()}
    expected = loss_and_grads(model, params, batch, 0)
    mesh = jax.make_mesh(
      sizes,
      ('data', 'fsdp', 'tensor'),
      axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    params = jax.device_put(params, sharding.tree_sharding(mesh, params))
    with jax.sharding.set_mesh(mesh):
      found = loss_and_grads(model, params, batch, 4)
    assert_close(
      jax.device_get(found), jax.device_get(expected), rtol=1e-10, atol=1e-12
    )


def test_bfloat16_sums_the_gradient_of_the_matrix_in_float32():
  rng = np.random.default_rng(1)
  x_BTD = jnp.asarray(rng.normal(size=(4, 256, 8)), jnp.bfloat16)
  unembed_VD = jnp.asarray(rng.normal(size=(16, 8)), jnp.bfloat16)
  targets = rng.integers(0, 16, (4, 256), dtype=np.int32)
  batch = {'targets': targets, 'weights': np.ones((4, 256), np.float32)}

  def gradient(chunk, dtype):
    def total(unembed_VD):
      return loss.chunked_cross_entropy_sum(
        x_BTD.astype(dtype), unembed_VD, batch, chunk
      )

    return np.float32(compiled(jax.grad(total))(unembed_VD.astype(dtype)))

  exact = gradient(1024, jnp.float32)
  error = np.abs(gradient(2, jnp.bfloat16) - exact).max() / np.abs(exact).max()
  assert error < 4e-3  # sums of 512 chunks in bfloat16 would be off by 1e-1


def test_a_matrix_that_stands_still_has_no_gradient_to_compute():
  x_BTD, unembed_VD = jnp.ones((ROWS, LENGTH, 8)), jnp.ones((16, 8))
  batch = make_batch(np.float32)

  def matmuls(argnums):
    def total(x_BTD, unembed_VD):
      return loss.chunked_cross_entropy_sum(x_BTD, unembed_VD, batch, 8)

    traced = jax.jit(jax.grad(total, argnums)).trace(x_BTD, unembed_VD)
    text = traced.lower(lowering_platforms=('cpu',)).as_text()
    return text.count('dot_general')

  assert (matmuls(0), matmuls(1), matmuls((0, 1))) == (2, 2, 3)


def test_the_logits_are_never_whole():
  model = models.make(vocab_size=512, embed_dim=8, num_layers=1)
  params = models.make_params(model)
  tokens = jnp.zeros((16, 64), jnp.int32)
  batch = {'tokens': tokens, 'targets': tokens, 'weights': jnp.ones((16, 64))}

  def temporary(chunk):
    def total(params):
      return loss.next_token_loss(model, params, batch, chunk=chunk)

    program = jax.jit(jax.grad(total)).lower(params).compile()
    return program.memory_analysis().temp_size_in_bytes

  logits = 4 * 16 * 64 * 512
  assert temporary(0) - temporary(32) > 0.9 * logits


@pytest.mark.parametrize(
  'microbatch', [pytest.param(0, marks=pytest.mark.slow), 2]
)
def test_a_train_step_in_chunks(microbatch):
  whole, chunked = (
    helpers.make_config(
      train__microbatch_size=microbatch, train__loss_chunk=chunk
    )
    for chunk in (0, 48)
  )
  expected, losses, _ = helpers.run(whole, steps=3)
  found, found_losses, _ = helpers.run(chunked, steps=3)
  np.testing.assert_allclose(found_losses, losses, rtol=1e-6)
  assert_close(found.opt_state, expected.opt_state, rtol=1e-4, atol=1e-6)
