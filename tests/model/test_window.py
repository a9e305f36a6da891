"""Attention to a window of the row: three implementations and one oracle."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax.model import attention, cached, decoder
from tests import models

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
LENGTH, WINDOW = 12, 4


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sees(length, window, segments=None):
  """Which keys (columns) a query (row) sees, `[B, T, S]`."""
  seen_TS = np.tri(length, dtype=bool) & ~np.tri(length, k=-window, dtype=bool)
  if segments is None:
    return seen_TS[None]
  return seen_TS & (segments[:, :, None] == segments[:, None])


def naive(qkv, segments, window):
  """The whole square of scores, every key/value head repeated."""
  query, key, value = qkv
  groups = query.shape[2] // key.shape[2]
  key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
  score = jnp.einsum('BTNH,BSNH->BNTS', query, key) / query.shape[-1] ** 0.5
  seen = sees(query.shape[1], window, segments)
  weight = jax.nn.softmax(jnp.where(seen[:, None], score, -1e30), axis=-1)
  return jnp.einsum('BNTS,BSNH->BTNH', weight, value)


def segments_of(batch, length):
  """Documents of uneven length, some longer than a window."""
  ends = np.random.default_rng(5).random((batch, length)) < 4 / length
  return np.cumsum(ends, axis=1)


def test_a_window_of_three():
  np.testing.assert_array_equal(
    sees(5, 3)[0],
    [
      [1, 0, 0, 0, 0],
      [1, 1, 0, 0, 0],
      [1, 1, 1, 0, 0],
      [0, 1, 1, 1, 0],
      [0, 0, 1, 1, 1],
    ],
  )


# A block holds 128 queries; keys begin inside a block, and at its edge.
@pytest.mark.parametrize(
  'length, window, packed',
  [(130, 3, True), (300, 200, False)],
)
def test_all_implementations_agree(length, window, packed):
  query = draw(2, length, 4, 8)
  key, value = draw(2, 2, length, 2, 8, seed=1)
  segments = segments_of(2, length) if packed else None
  weight = jnp.asarray(draw(2, length, 4, 8, seed=2))

  def with_gradients(fn):
    out, pull = jax.vjp(
      lambda *qkv: fn(qkv, segments, window), query, key, value
    )
    return out, *pull(weight)

  expected = compiled(lambda: with_gradients(naive))()
  for kind in ('blocked', 'xla'):
    fn = functools.partial(attention.attention, kind=kind)
    found = compiled(functools.partial(with_gradients, fn))()
    for one, two in zip(found, expected):
      np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_the_fused_kernel_is_told_the_window(monkeypatch):
  asked = []
  monkeypatch.setattr(
    jax.nn,
    'dot_product_attention',
    lambda *args, **options: asked.append(options),
  )
  x = jnp.ones((1, 8, 2, 8), jnp.bfloat16)
  for window in (0, 3, 8):
    attention.attention((x, x, x), None, window, 'cudnn')
  # Tokens to the left and to the right of a query, which is not counted.
  sizes = [options['local_window_size'] for options in asked]
  assert sizes == [None, (2, 0), None]


def test_keys_out_of_sight_are_not_touched():
  x = jax.ShapeDtypeStruct((1, 1024, 2, 64), jnp.float32)

  def flops(window):
    def loss(*qkv):
      return jnp.sum(attention.attention(qkv, None, window))

    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x)
    return lowered.cost_analysis()['flops']

  # Each of 8 blocks of 128 queries: 4.5 blocks of keys on average, or 2.
  assert flops(129) / flops(0) == pytest.approx((1 + 7 * 2) / 36, rel=0.03)


MODEL = models.make(sliding_window=WINDOW, num_layers=1)
DEEP = dataclasses.replace(MODEL, num_layers=2)


def test_a_position_sees_the_window_within_its_document():
  segments = np.array([[1] * 5 + [2] * 7])
  batch = {
    'tokens': jnp.arange(LENGTH, dtype=jnp.int32)[None],
    'segments': segments,
    'positions': np.concatenate([np.arange(5), np.arange(7)])[None],
  }

  def outputs(embed):
    params = {**models.make_params(MODEL), 'embed': embed}
    return jnp.sum(decoder.apply(MODEL, params, batch)[0] ** 2, axis=-1)

  # Row t is the influence of every token on the logits at t.
  jacobian = compiled(jax.jacrev(outputs))(models.make_params(MODEL)['embed'])
  influence = np.abs(jacobian[:, :LENGTH]).max(axis=-1)
  seen = sees(LENGTH, WINDOW, segments)[0]
  assert (influence[~seen] == 0).all()
  assert (influence[seen] > 1e-6).all()


def test_a_window_that_hides_nothing_is_no_window():
  def program(window):
    model = dataclasses.replace(MODEL, sliding_window=window)
    batch = {'tokens': jnp.zeros((2, LENGTH), jnp.int32)}
    return str(
      jax.make_jaxpr(functools.partial(decoder.apply, model))(
        models.make_params(MODEL), batch
      )
    )

  assert program(0) == program(LENGTH) == program(10**6)
  assert program(0) != program(LENGTH - 1)


def test_the_cache_sees_the_window_of_the_decoder():
  model, rows = DEEP, 3
  params = models.make_params(model)
  tokens_BT = np.random.default_rng(0).integers(0, 16, (rows, 20))
  logits = compiled(functools.partial(decoder.apply, model))
  expected_BTV = np.asarray(logits(params, {'tokens': jnp.asarray(tokens_BT)}))
  # Shorter and longer than the window; what pads is never seen.
  read_B = np.array([2, WINDOW, 13])
  padded_BT = np.where(np.arange(16) < read_B[:, None], tokens_BT[:, :16], 5)
  prefill = compiled(cached.prefill, static_argnums=(0, 4))
  extend = compiled(cached.extend, static_argnums=0)
  found_BV, cache = prefill(model, params, padded_BT, read_B, 24)
  found = [found_BV[:, None]]
  each, at = np.arange(rows)[:, None], read_B[:, None] + np.arange(3)
  for start in (0, 3):
    part_BT = jnp.asarray(tokens_BT[each, at + start], jnp.int32)
    logits_BTV, cache = extend(model, params, cache, part_BT, at + start)
    found.append(logits_BTV)
  for row, n, found_TV in zip(
    expected_BTV, read_B, np.concatenate(found, axis=1)
  ):
    np.testing.assert_allclose(
      found_TV, row[n - 1 : n + 6], rtol=1e-4, atol=1e-4
    )
