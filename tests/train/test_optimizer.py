"""The optax chain by hand: schedule, clipping, decay, and what Muon touches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from satjax import tree
from satjax.config.groups import OptimizerConfig
from satjax.model import decoder
from satjax.train import optimizer
from tests import models

NAMES = ('adamw', 'lion', 'adafactor', 'muon', 'sgd')
# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def make_config(**changes):
  config = OptimizerConfig(
    name='adamw',
    schedule='cosine',
    peak_lr=1.0,
    end_lr=0.25,
    warmup_steps=10,
    decay_steps=0,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=0.0,
  )
  return dataclasses.replace(config, **changes)


@functools.cache
def make_params():
  model = models.make(
    num_kv_heads=1,
    mlp_dim=24,
  )
  init = functools.partial(decoder.init_params, model)
  return random_like(jax.eval_shape(init, jax.random.key(0)), 7)


def random_like(params, seed):
  random = np.random.default_rng(seed)

  def draw(x):
    return jnp.asarray(random.normal(size=x.shape), jnp.float32)

  return jax.tree.map(draw, params)


@pytest.mark.parametrize(
  'changes, rates',
  [
    # Half-way down the cosine the rate is the mean of its ends.
    ({}, {0: 0, 5: 0.5, 10: 1, 35: 0.625, 60: 0.25}),
    ({'end_lr': 0.0}, {10: 1, 35: 0.5, 60: 0}),
    ({'warmup_steps': 0}, {0: 1, 30: 0.625, 60: 0.25}),
    ({'warmup_steps': 60}, {0: 0, 30: 0.5, 59: 59 / 60}),
    (
      {'schedule': 'wsd', 'decay_steps': 20},
      {0: 0, 5: 0.5, 10: 1, 39: 1, 40: 1, 50: 0.625, 60: 0.25},
    ),
    (
      {'schedule': 'wsd', 'decay_steps': 60, 'warmup_steps': 0},
      {0: 1, 30: 0.625, 60: 0.25},
    ),
    ({'schedule': 'wsd'}, {0: 0, 10: 1, 59: 1}),
    ({'schedule': 'constant'}, {0: 0, 5: 0.5, 10: 1, 60: 1}),
    ({'schedule': 'constant', 'warmup_steps': 0}, {0: 1, 60: 1}),
  ],
  ids=str,
)
def test_schedule_by_hand(changes, rates):
  schedule = optimizer.make_schedule(make_config(**changes), num_steps=60)
  found = [float(schedule(step)) for step in rates]
  np.testing.assert_allclose(found, list(rates.values()), rtol=1e-6, atol=1e-7)
  traced = compiled(jax.vmap(schedule))(jnp.array(list(rates)))
  np.testing.assert_allclose(traced, found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('max_norm', [0.5, 4.999, 5.0, 5.001, 100.0])
def test_clipping_is_that_of_optax(max_norm):
  grads = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[-4.0]])}  # Norm 5.
  tx = optimizer.clip_by_global_norm(max_norm)
  found, _ = tx.update(grads, tx.init(grads))
  plain = optax.clip_by_global_norm(max_norm)
  expected, _ = plain.update(grads, plain.init(grads))
  for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(one, two, rtol=1e-6)
  norm = float(optax.global_norm(found))
  np.testing.assert_allclose(norm, min(5, max_norm), rtol=1e-6)


def test_no_clipping_below_the_threshold_is_bitwise():
  grads = random_like(make_params(), 0)
  found, _ = optimizer.clip_by_global_norm(1e4).update(grads, None)
  for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(grads)):
    np.testing.assert_array_equal(one, two)


def test_clipping_survives_a_gradient_of_zero():
  found, _ = optimizer.clip_by_global_norm(1.0).update(
    {'a': jnp.zeros(3)}, None
  )
  np.testing.assert_array_equal(found['a'], np.zeros(3))


def test_a_norm_of_zero_means_no_clipping():
  tx = optimizer.make_optimizer(make_config(name='sgd', b1=0.0))
  grads = {'embed': jnp.array([[3e4, -4e4]])}
  found, _ = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_array_equal(found['embed'], grads['embed'])


def test_clipping_comes_first():
  # Were it last, Adam's updates of size 1 would be clipped instead.
  tx = optimizer.make_optimizer(make_config(clip_norm=1.0))
  grads = {'embed': jnp.full((2, 50), 7.0)}
  found, _ = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_allclose(found['embed'], np.ones((2, 50)), rtol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_decay_pulls_at_matrices_only(name):
  params = make_params()
  grads = random_like(params, 0)

  def updates_of(decay):
    config = make_config(name=name, weight_decay=decay)
    tx = optimizer.make_optimizer(config)
    run = compiled(lambda g, p: tx.update(g, tx.init(p), p)[0])
    return tree.flatten(run(grads, params))

  plain, decayed = updates_of(0.0), updates_of(0.5)
  for path, leaf in tree.flatten(params).items():
    share = 0.0 if path.endswith('_norm') else 0.5
    np.testing.assert_allclose(
      decayed[path] - plain[path], share * leaf, rtol=1e-4, atol=1e-5
    )


def test_norms_are_the_only_leaves_that_do_not_decay():
  spared = {
    path
    for path, decays in tree.flatten(
      optimizer.is_decayed(make_params())
    ).items()
    if not decays
  }
  assert spared == {'final_norm', 'blocks/attention_norm', 'blocks/mlp_norm'}


def test_adam_takes_its_constants_from_the_config():
  config = make_config(b1=0.5, b2=0.75, eps=0.1)
  tx = optimizer.make_optimizer(config)
  params = {'embed': jnp.zeros((1, 1))}
  state = tx.init(params)
  for grad in (1.0, -2.0):
    update, state = tx.update({'embed': jnp.full((1, 1), grad)}, state, params)
  first = (0.5 * 0.5 * 1 + 0.5 * -2) / (1 - 0.5**2)
  second = (0.75 * 0.25 * 1 + 0.25 * 4) / (1 - 0.75**2)
  np.testing.assert_allclose(
    update['embed'], [[first / (np.sqrt(second) + 0.1)]], rtol=1e-5
  )


def test_lion_moves_by_signs():
  tx = optimizer.make_optimizer(make_config(name='lion'))
  grads = random_like(make_params(), 0)
  found, _ = tx.update(grads, tx.init(grads), grads)
  for one, grad in zip(jax.tree.leaves(found), jax.tree.leaves(grads)):
    np.testing.assert_array_equal(one, np.sign(grad))


def test_sgd_has_momentum():
  tx = optimizer.make_optimizer(make_config(name='sgd', b1=0.5))
  params = {'embed': jnp.zeros((1, 1))}
  state = tx.init(params)
  for grad, expected in ((1.0, 1.0), (1.0, 1.5), (-2.0, -1.25)):
    update, state = tx.update({'embed': jnp.full((1, 1), grad)}, state, params)
    np.testing.assert_allclose(update['embed'], [[expected]], rtol=1e-6)


MATRICES = {
  path: path.endswith(('/output', '/down'))  # these write to the residual
  for path, axes in tree.AXES.items()
  if axes[0] == 'layers' and len(axes) > 2 and axes[-1] == 'embed'
}


@functools.cache
def muon_update():
  tx = optimizer.make_optimizer(make_config(name='muon'))
  params = make_params()
  run = compiled(lambda g, p: tx.update(g, tx.init(p), p))
  updates, state = run(random_like(params, 0), params)
  return tree.flatten(updates), state


def test_muon_updates_every_matrix_of_every_layer_orthogonally():
  updates, _ = muon_update()
  assert len(MATRICES) == 7
  for path in MATRICES:
    for layer in updates[path]:
      matrix = np.reshape(layer, (-1, layer.shape[-1]))
      # The root mean square is brought up to Adam's.
      matrix = matrix / (0.2 * np.sqrt(matrix.shape[-1]))
      spread = np.linalg.svd(matrix, compute_uv=False)
      assert spread.min() > 0.6 and spread.max() < 1.3, path


def test_muon_leaves_the_other_leaves_to_adam():
  updates, state = muon_update()
  adam = optimizer.make_optimizer(make_config())
  params = make_params()
  expected, _ = adam.update(random_like(params, 0), adam.init(params), params)
  for path, leaf in tree.flatten(expected).items():
    close = np.allclose(updates[path], leaf, rtol=1e-4, atol=1e-5)
    assert close == (path not in MATRICES), path
  moments = {path: [] for path in tree.flatten(params)}
  for path, leaf in tree.flatten(state).items():
    if tree.param_of(path):
      kind = 'nu' if '/nu/' in path else 'mu'
      moments[tree.param_of(path)].append(kind)
      assert leaf.shape == tree.flatten(params)[tree.param_of(path)].shape
  for path, kinds in moments.items():
    assert sorted(kinds) == (['mu'] if path in MATRICES else ['mu', 'nu'])


def test_muon_knows_rows_from_columns():
  # Contracted over the wrong axes, heads of a wide model would not be
  # orthogonal to each other; over the wrong one of two, nothing would change.
  for path, writes in MATRICES.items():
    axes = tree.AXES[path]
    numbers = optimizer._muon_axes(f'1/mu/{path}')
    embed = (axes.index('embed'),)
    neurons = tuple(range(1, len(axes) - 1))
    assert numbers.reduction_axis == (neurons if writes else embed)
    assert numbers.output_axis == (embed if writes else neurons)
  for path in set(tree.AXES) - set(MATRICES):
    assert optimizer._muon_axes(path) is None


@pytest.mark.parametrize('name', NAMES)
def test_every_optimizer_lowers_a_quadratic_loss(name):
  rate = {'sgd': 0.05, 'muon': 0.2, 'adafactor': 0.1}.get(name, 0.03)
  tx = optimizer.make_optimizer(make_config(name=name, clip_norm=1e3))
  params = make_params()
  target = random_like(params, 1)

  def loss_fn(params):
    errors = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, target)
    return sum(jax.tree.leaves(errors))

  @compiled
  def step(params, state):
    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), state, loss

  state, losses = tx.init(params), []
  for _ in range(60):
    params, state, loss = step(params, state)
    losses.append(float(loss))
  assert losses[-1] < 0.2 * losses[0]
