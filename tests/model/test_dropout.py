"""Dropout: the right share of zeros, the same mean, a mask for every row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.model import decoder, layers, ops
from tests import models

RATE = 0.3
TOKENS = jnp.arange(8, dtype=jnp.int32).reshape(2, 4)
SEEDS = jnp.array([5, 2**32 - 1], jnp.uint32)
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def keys_of(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def mix(model, x_BTD, weights, angles):
  def rows(*qkv):
    return layers.mix_rows(model, qkv, None, None, None)

  return layers.attend(x_BTD, weights, angles, model.norm_eps, rows)[0]


@functools.cache
def branch_output():
  """Of the attention of a first layer, for one row; `[T, D]`."""
  model = models.make(num_layers=1)
  params = models.make_params(model)
  weights = jax.tree.map(lambda x: x[0], params['blocks']['attention'])
  x_BTD = params['embed'][TOKENS[:1]]
  angles = ops.rope_angles(jnp.arange(4)[None], model.head_dim, 100.0, ())
  return mix(model, x_BTD, weights, angles)[0]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('rate', [0.1, 0.75])
def test_zeros_have_the_rate_and_the_mean_stays(rate, dtype):
  y_TD, count = branch_output().astype(dtype), 4000
  many = jnp.broadcast_to(y_TD, (count, *y_TD.shape))
  dropped = ops.dropout(many, keys_of(range(count)), rate)
  assert dropped.dtype == dtype
  found, y_TD = np.float32(dropped), np.float32(y_TD)
  is_zero = found == 0
  assert is_zero.mean() == pytest.approx(rate, abs=5 / np.sqrt(is_zero.size))
  # No place and no row is left out more often than another.
  spread = 5 * np.sqrt(rate * (1 - rate))
  assert np.abs(is_zero.mean(0) - rate).max() < spread / np.sqrt(count)
  assert np.abs(is_zero.mean((1, 2)) - rate).max() < spread / np.sqrt(y_TD.size)
  kept = np.broadcast_to(y_TD / (1 - rate), found.shape)
  rtol = 1e-6 if dtype == 'float32' else 2**-7
  np.testing.assert_allclose(found[~is_zero], kept[~is_zero], rtol=rtol)
  deviation = np.abs(y_TD) * np.sqrt(rate / (1 - rate) / count)
  assert (np.abs(found.mean(0) - y_TD) < 5 * deviation + rtol).all()


def test_a_row_does_not_depend_on_the_rows_beside_it():
  x_BTD = jax.random.normal(jax.random.key(0), (4, 5, 6))
  keys_B = keys_of([3, 4, 3, 6])
  whole = ops.dropout(x_BTD, keys_B, 0.5)
  for rows in ([2], [3, 1], [0, 1, 2]):
    rows = jnp.array(rows)
    part = ops.dropout(x_BTD[rows], keys_B[rows], 0.5)
    np.testing.assert_array_equal(part, whole[rows])
  is_zero = np.array(whole == 0)
  np.testing.assert_array_equal(is_zero[0], is_zero[2])  # of the same seed
  assert (is_zero[0] != is_zero[1]).any() and (is_zero[1] != is_zero[3]).any()


def masks():
  """By row, layer and branch, each drawn by itself; bool `[T, D]`."""
  fold, shape = jax.random.fold_in, (TOKENS.shape[1], models.make().embed_dim)
  return [
    [
      [
        jax.random.bernoulli(
          fold(fold(jax.random.key(seed), layer), branch),
          jnp.float32(1 - RATE),
          shape,
        )
        for branch in (0, 1)
      ]
      for layer in (0, 1)
    ]
    for seed in SEEDS
  ]


def oracle(model, params, kept):
  """Row after row, layer after layer, branch after branch."""
  every_layer = [
    jax.tree.map(lambda x, i=i: x[i], stack)
    for stack in tree.stacks(params)
    for i in range(len(stack['mlp_norm']))
  ]
  places_BT = jnp.arange(TOKENS.shape[1])[None]
  angles = ops.rope_angles(places_BT, model.head_dim, model.rope_theta, ())
  rows = []
  for tokens_T, kept_of_row in zip(TOKENS, kept, strict=True):
    x_BTD = params['embed'][tokens_T][None]
    for layer, (mixing, mlp) in zip(every_layer, kept_of_row, strict=True):
      y_BTD = ops.rms_norm(x_BTD, layer['attention_norm'], model.norm_eps)
      y_BTD = mix(model, y_BTD, layer['attention'], angles)
      x_BTD += y_BTD * mixing / (1 - RATE)
      y_BTD = ops.rms_norm(x_BTD, layer['mlp_norm'], model.norm_eps)
      x_BTD += layers.transform(y_BTD, layer['mlp'])[0] * mlp / (1 - RATE)
    rows.append(x_BTD[0])
  x_BTD = ops.rms_norm(jnp.stack(rows), params['final_norm'], model.norm_eps)
  return ops.logits(x_BTD, params['unembed'])


def loss_and_grad(forward, params):
  return compiled(
    jax.value_and_grad(lambda params: jnp.mean(jnp.square(forward(params))))
  )(params)


def params_of(kind):
  """Two layers: one stack, or two of which the second has fewer neurons."""
  params = models.make_params(models.make())
  if kind == 'one stack':
    return params
  first, second = (
    jax.tree.map(lambda x: x[part], params['blocks'])  # noqa: B023
    for part in (slice(0, 1), slice(1, 2))
  )
  second['mlp'] = {name: x[:, :4] for name, x in second['mlp'].items()}
  return {**params, 'blocks': (first, second)}


@functools.cache
def expected(kind):
  forward = functools.partial(oracle, models.make(), kept=masks())
  return loss_and_grad(forward, params_of(kind))


@pytest.mark.parametrize(
  ('kind', 'changes'),
  [
    ('one stack', {'remat': 'minimal', 'scan': False}),
    pytest.param('one stack', {}, marks=pytest.mark.slow),
    pytest.param('two stacks', {'remat': 'full'}, marks=pytest.mark.slow),
    pytest.param('one stack', {'scan': False}, marks=pytest.mark.slow),
    pytest.param('two stacks', {}, marks=pytest.mark.slow),
    pytest.param(
      'two stacks', {'remat': 'minimal', 'scan': False}, marks=pytest.mark.slow
    ),
  ],
)
def test_loss_and_gradient_are_those_of_the_oracle(kind, changes):
  model = models.make(dropout=RATE, **changes)
  batch = {'tokens': TOKENS, 'dropout': SEEDS}

  def forward(params):
    return decoder.apply(model, params, batch)

  loss, grad = loss_and_grad(forward, params_of(kind))
  oracle_loss, oracle_grad = expected(kind)
  np.testing.assert_allclose(loss, oracle_loss, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    grad,
    oracle_grad,
  )


def test_without_seeds_nothing_is_left_out():
  model, batch = models.make(dropout=RATE), {'tokens': TOKENS}
  params = models.make_params(models.make())
  programs = [
    str(jax.make_jaxpr(functools.partial(decoder.apply, m))(params, batch))
    for m in (model, models.make())
  ]
  assert programs[0] == programs[1]
