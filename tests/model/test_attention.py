"""Attention: the one in blocks against JAX's and NumPy's, and which runs."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import errors
from satjax.config import stages
from satjax.model import attention
from tests.train import helpers

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def numpy_attention(query, key, value, segments=None):
  """One batch row, head and query position at a time, in float64."""
  batch, length, heads, width = query.shape
  out = np.zeros(query.shape)
  for b, n, t in np.ndindex(batch, heads, length):
    k = n // (heads // key.shape[2])
    seen = np.arange(t + 1)
    if segments is not None:
      seen = seen[segments[b, : t + 1] == segments[b, t]]
    q = query[b, t, n].astype(np.float64)
    weight = softmax(key[b, seen, k] @ q / np.sqrt(width))
    out[b, t, n] = weight @ value[b, seen, k].astype(np.float64)
  return out


def segments_of(batch, length):
  """Documents of uneven length, some of which begin inside a block."""
  ends = np.random.default_rng(5).random((batch, length)) < 4 / length
  return np.cumsum(ends, axis=1)


# One block, whole ones, and a last one that is shorter.
@pytest.mark.parametrize(
  'length, kv_heads, packed',
  [
    (5, 4, False),
    (128, 2, True),
    (130, 1, True),
    (300, 2, True),
  ],
)
def test_attention_is_that_of_jax(length, kv_heads, packed):
  query = draw(2, length, 4, 8)
  key = draw(2, length, kv_heads, 8, seed=1)
  value = draw(2, length, kv_heads, 8, seed=2)
  segments = segments_of(2, length) if packed else None
  weight = draw(2, length, 4, 8, seed=3)

  def blocked(query, key, value):
    return attention.attention((query, key, value), segments)

  def plain(query, key, value):
    mask = None
    if packed:
      mask = segments[:, None, :, None] == segments[:, None, None]
    return jax.nn.dot_product_attention(
      query, key, value, mask=mask, is_causal=True, implementation='xla'
    )

  def with_gradients(fn, *inputs):
    out, pull = jax.vjp(fn, *inputs)
    return out, *pull(jnp.asarray(weight))

  results = [
    compiled(functools.partial(with_gradients, fn))(query, key, value)
    for fn in (blocked, plain)
  ]
  for one, two in zip(*results):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('length, packed', [(3, False), (150, True)])
def test_attention_is_that_of_numpy(length, packed):
  query, key, value = draw(1, length, 4, 4), *draw(2, 1, length, 2, 4, seed=1)
  segments = segments_of(1, length) if packed else None
  found = compiled(attention.attention)((query, key, value), segments)
  expected = numpy_attention(query, key, value, segments)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_in_bfloat16_takes_its_softmax_in_float32():
  query, key, value = draw(3, 1, 200, 2, 8)
  rounded = [jnp.asarray(x, jnp.bfloat16) for x in (3 * query, key, value)]
  found = compiled(attention.attention)(tuple(rounded), None)
  assert found.dtype == jnp.bfloat16
  expected = numpy_attention(*(np.float32(x) for x in rounded))
  np.testing.assert_allclose(np.float32(found), expected, rtol=0, atol=2e-2)


def test_large_scores_do_not_overflow():
  query = np.full((1, 4, 1, 4), 1e4, np.float32)
  value = draw(1, 4, 1, 4)
  found = attention.attention((query, query, value), None)
  expected = np.cumsum(value, axis=1) / np.arange(1, 5)[:, None, None]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'platform, kind',
  [('cpu', 'blocked'), ('gpu', 'cudnn'), ('tpu', 'splash'), ('other', 'xla')],
)
def test_each_platform_has_its_own_kind(platform, kind):
  assert attention.resolve('auto', platform) == kind
  for anywhere in ('blocked', 'xla'):
    assert attention.resolve(anywhere, platform) == anywhere


@pytest.mark.parametrize(
  'kind, platform', [('cudnn', 'cpu'), ('cudnn', 'tpu'), ('splash', 'gpu')]
)
def test_a_kernel_of_another_platform_is_refused(kind, platform):
  with pytest.raises(errors.ConfigError, match=f"{kind}.*{platform}.*'auto'"):
    attention.resolve(kind, platform)


def test_a_run_decides_by_its_devices_before_anything_compiles():
  config = helpers.make_config(growth__hops=((32, 'stack', 2),))
  assert config.model.attention == 'auto'
  setup = helpers.one_device(config)
  found = [stage.model.attention for stage in stages.stages(setup.config)]
  assert found == ['blocked', 'blocked']
  with pytest.raises(errors.ConfigError, match='splash'):
    helpers.one_device(helpers.make_config(model__attention='splash'))


def test_a_kind_that_is_named_runs():
  x = draw(1, 300, 2, 8)

  def program(kind):
    run = functools.partial(attention.attention, kind=kind)
    return str(jax.make_jaxpr(run)((x, x, x), None))

  assert program('auto') == program('blocked') != program('xla')


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('head_dim', [8, 64, 128])
def test_a_gpu_in_half_precision_has_a_fused_kernel(caplog, dtype, head_dim):
  with caplog.at_level(logging.WARNING):
    assert attention.usable('cudnn', dtype, head_dim) == 'cudnn'
  assert not caplog.records


@pytest.mark.parametrize(
  'dtype, head_dim', [('float32', 64), ('bfloat16', 20), ('bfloat16', 256)]
)
def test_a_gpu_without_the_kernel_says_so_once(caplog, dtype, head_dim):
  attention.usable.cache_clear()
  with caplog.at_level(logging.WARNING):
    assert attention.usable('cudnn', dtype, head_dim) == 'xla'
    assert attention.usable('cudnn', dtype, head_dim) == 'xla'
  (record,) = caplog.records
  text = record.getMessage()
  assert record.levelno == logging.WARNING
  assert dtype in text and str(head_dim) in text
  assert 'config.model.dtype' in text


@pytest.mark.parametrize('kind', ['blocked', 'xla', 'splash'])
def test_other_kinds_take_every_shape_in_silence(caplog, kind):
  with caplog.at_level(logging.WARNING):
    assert attention.usable(kind, 'float32', 20) == kind
  assert not caplog.records


def test_a_fused_kernel_is_told_what_it_may_see(monkeypatch):
  asked = []

  def record(*args, **options):
    asked.append(options)
    return args[0]

  monkeypatch.setattr(jax.nn, 'dot_product_attention', record)
  x = jnp.ones((2, 3, 2, 8), jnp.bfloat16)
  segments = jnp.array([[0, 0, 1], [0, 1, 1]])
  attention.attention((x, x, x), None, 0, 'cudnn')
  attention.attention((x, x, x), segments, 0, 'cudnn')
  assert [a['implementation'] for a in asked] == ['cudnn', 'cudnn']
  assert [a['is_causal'] for a in asked] == [True, True]
  assert asked[0]['mask'] is None
  assert asked[1]['mask'].shape == (2, 1, 3, 3)
  np.testing.assert_array_equal(
    asked[1]['mask'][0, 0],
    [[True, True, False], [True, True, False], [False, False, True]],
  )
