"""The TPU kernel, interpreted on a CPU, against attention in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import sharding
from satjax.config.groups import MeshConfig
from satjax.model import blocked_attention, splash

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def results(fn, length, kv_heads, packed, window):
  """Values of an implementation, and gradients of queries, keys and values."""
  query = draw(2, length, 4, 8)
  key, value = draw(2, 2, length, kv_heads, 8, seed=1)
  ends = np.random.default_rng(5).random((2, length)) < 4 / length
  segments = np.cumsum(ends, axis=1, dtype=np.int32) if packed else None
  weight = jnp.asarray(draw(2, length, 4, 8, seed=2))

  def with_gradients(*qkv):
    out, pull = jax.vjp(lambda *qkv: fn(qkv, segments, window), *qkv)
    return out, *pull(weight)

  return compiled(with_gradients)(query, key, value)


# Whole tiles, and rows that are padded to one.
@pytest.mark.parametrize(
  'length, kv_heads, packed, window',
  [(128, 2, True, 0), (5, 4, False, 3), (130, 1, True, 50)],
)
def test_splash_attends_as_blocked_attention(length, kv_heads, packed, window):
  kernel = functools.partial(splash.attention, interpret=True)
  sizes = length, kv_heads, packed, window
  found, expected = (
    results(fn, *sizes) for fn in (kernel, blocked_attention.attention)
  )
  for one, two in zip(found, expected):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kv_heads', [2, 1])  # 1: heads cannot be shared out
def test_each_device_attends_to_its_rows_and_heads(kv_heads):
  sizes = 16, kv_heads, True, 0
  expected = results(blocked_attention.attention, *sizes)
  mesh = sharding.make_mesh(
    MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4]
  )
  with jax.sharding.set_mesh(mesh):
    found = results(functools.partial(splash.attention, interpret=True), *sizes)
  for one, two in zip(found, expected):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_kernel_needs_a_mesh_where_there_are_several_devices():
  assert not splash.is_placeable()
  with jax.sharding.set_mesh(sharding.make_mesh(MeshConfig(-1, 1, 1))):
    assert splash.is_placeable()
