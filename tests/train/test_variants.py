"""Every variant of SAT: compact execution against masked, and by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.model import decoder
from satjax.train import phases, programs, window
from satjax.train import setup as setup_lib
from satjax.train import step as step_lib
from tests.train import helpers

# Windows from steps 0, 3 and 6.
SPARSE = {
  'sparsity__head_rate': 0.5,
  'sparsity__channel_rate': 0.5,
  'sparsity__omitted_forward': 'skip',
  'sparsity__refresh_every': 3,
  'sparsity__split': 1.0,
  'train__num_steps': 8,
  'optimizer__peak_lr': 1e-2,
}
VARIANTS = {
  'decayed': {'sparsity__omitted': 'decayed'},
  'decayed, lion': {
    'sparsity__omitted': 'decayed',
    'optimizer__name': 'lion',
    'optimizer__peak_lr': 1e-3,
  },
  'per neuron': {'sparsity__bias_correction': 'per_neuron'},
  'mean': {'sparsity__omitted_forward': 'mean'},
  'exact': {'sparsity__omitted_forward': 'exact'},
  'exact, grouped': {
    'sparsity__omitted_forward': 'exact',
    'model__num_kv_heads': 2,
  },
  'exact, channels only': {
    'sparsity__omitted_forward': 'exact',
    'sparsity__head_rate': 0.0,
  },
  'inverse': {'sparsity__rescale': 'inverse'},
  'energy': {'sparsity__rescale': 'energy'},
  'group': {'sparsity__granularity': 'group', 'model__num_kv_heads': 2},
  'uneven layers': {
    'model__num_layers': 3,
    'sparsity__dense_layers': (1, 0),
    'sparsity__layer_scale': (1.0, 0.5, 1.0),
  },
  'uneven layers, exact': {
    'sparsity__dense_layers': (1, 0),
    'sparsity__layer_scale': (1.0, 0.5),
    'sparsity__omitted_forward': 'exact',
  },
  'shards, stale': {'sparsity__shards': 2, 'sparsity__stale_scores': True},
  'reversed, warm start': {
    'sparsity__shape': 'reversed',
    'sparsity__split': 0.5,
    'sparsity__rungs': 1,
    'sparsity__warm_start': 0.1,
    'sparsity__importance': 'wanda_out',
  },
}


@functools.cache
def run(execution, name):
  """Final state and losses of a variant; '' is the default."""
  # One layer compiles in half the time, where the variant is not of several.
  layers = {} if 'uneven' in name else {'model__num_layers': 1}
  options = {**SPARSE, **layers, **VARIANTS.get(name, {})}
  config = helpers.make_config(**options, sparsity__execution=execution)
  with jax.enable_x64(True):
    state, losses, _ = helpers.run(helpers.in_float64(config), dtype=np.float64)
    return jax.device_get(state), losses


# Each is much like another that is fast.
SLOW = (
  *('decayed, lion', 'exact, channels only', 'inverse', 'group'),
  'uneven layers',
)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in VARIANTS
  ],
)
def test_compact_equals_masked(name):
  """Losses, parameters and moments, across refreshes and rungs."""
  compact, losses = run('compact', name)
  masked, masked_losses = run('masked', name)
  np.testing.assert_allclose(losses, masked_losses, rtol=1e-9)
  moments = compact.opt_state, masked.opt_state.inner
  for one, two in ((compact.params, masked.params), moments):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9),
      one,
      two,
    )


@pytest.mark.parametrize('name', ['mean', 'exact', 'energy'])
def test_a_variant_is_not_the_default(name):
  _, losses = run('compact', name)
  _, plain = run('compact', '')
  assert not np.allclose(losses, plain, rtol=1e-6)


@pytest.mark.parametrize(
  'omitted', ['frozen', pytest.param('decayed', marks=pytest.mark.slow)]
)
def test_rows_that_rest_in_host_memory_train_alike(omitted):
  options = {**SPARSE, 'sparsity__omitted': omitted, 'train__num_steps': 5}

  def run(rest):
    config = helpers.make_config(**options, sparsity__rest=rest)
    start = setup_lib.initial_state(helpers.one_device(config))
    return helpers.run(config, start=start)[:2]

  (state, losses), (other, others) = map(run, ('device', 'host'))
  if omitted == 'frozen':
    assert losses == others
    jax.tree.map(np.testing.assert_array_equal, state, other)
    return
  # On the host a parameter decays by itself: a program of other roundings.
  same = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
  same(losses, others)
  jax.tree.map(same, state, other)


def open_window(**options):
  config = helpers.make_config(**{**SPARSE, **options})
  setup = helpers.one_device(config)
  state = helpers.initial_state(setup)
  dense = jax.tree.map(jnp.copy, state.params)
  batch = helpers.random_batch(config, 0)
  now = window.turn_over(
    setup, window.first(setup, state), 0, batch, weighs=False
  )
  return setup, now, dense, batch


def test_rows_rest_where_they_are_told_to():
  for rest, kind in (('device', 'device'), ('host', 'pinned_host')):
    _, now, _, _ = open_window(sparsity__rest=rest)
    leaves = tree.flatten(now.parked)
    kinds = {x.sharding.memory_kind for x in leaves.values() if x.ndim}
    assert kinds == {kind}
  _, now, _, _ = open_window(
    sparsity__rest='host', sparsity__omitted_forward='exact'
  )
  for path, leaf in tree.flatten(now.parked).items():
    on_host = leaf.ndim and not path.startswith('rows/params/')
    expected = 'pinned_host' if on_host else 'device'
    assert leaf.sharding.memory_kind == expected, path


@pytest.mark.parametrize('kv_heads', [4, 2])
def test_the_exact_forward_pass_is_that_of_the_dense_model(kv_heads):
  setup, now, dense, batch = open_window(
    sparsity__omitted_forward='exact', model__num_kv_heads=kv_heads
  )
  model = setup.config.model
  found = decoder.apply(model, now.state.params, batch, now.forward_extra)
  expected = decoder.apply(model, dense, batch)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  skipped = decoder.apply(model, now.state.params, batch)
  assert np.abs(skipped - expected).max() > 1e-2


def test_the_exact_backward_pass_sees_kept_neurons_only():
  # With one layer the gradient of a kept neuron's writing rows is the dense
  # one: nothing lies between them and the loss but the norm and the logits.
  setup, now, dense, batch = open_window(
    sparsity__omitted_forward='exact', model__num_layers=1
  )
  model = setup.config.model
  part = {n: x for n, x in batch.items() if n != 'weights'}

  def loss(params, rest):
    return jnp.mean(jnp.square(decoder.apply(model, params, part, rest)))

  sub, rest_grads = jax.grad(loss, (0, 1))(now.state.params, now.forward_extra)
  whole = jax.grad(loss)(dense, None)
  for leaf in jax.tree.leaves(rest_grads):
    assert not leaf.any()
  kept = now.chosen.kept['mlp'][0]
  np.testing.assert_allclose(
    sub['blocks']['mlp']['down'][0],
    whole['blocks']['mlp']['down'][0][kept],
    rtol=1e-4,
    atol=1e-7,
  )


def test_the_mean_of_what_is_omitted_is_right_on_average():
  setup, now, dense, batch = open_window(
    sparsity__omitted_forward='mean', sparsity__probe=1.0
  )
  seen = decoder.observe(
    setup.config.model,
    dense,
    batch,
    lambda block: {'hidden': block['mlp']['hidden']},
  )
  mean_LF = np.mean(seen['hidden'], axis=(1, 2))
  omitted = np.where(now.chosen.kept['mlp'], 0, mean_LF)
  expected = np.einsum('lf,lfd->ld', omitted, dense['blocks']['mlp']['down'])
  np.testing.assert_allclose(
    now.forward_extra['mlp']['offset'], expected, rtol=1e-4, atol=1e-6
  )


def test_rescaling_by_hand():
  _, now, _, _ = open_window(sparsity__rescale='inverse')
  assert now.forward_extra['mlp']['scale'].tolist() == [2.0, 2.0]
  _, now, dense, _ = open_window(
    sparsity__rescale='energy', sparsity__importance='magnitude'
  )
  mlp = dense['blocks']['mlp']
  square_LF = sum(np.sum(np.square(w), axis=2) for w in mlp.values())
  kept = np.sum(np.where(now.chosen.kept['mlp'], square_LF, 0), axis=1)
  np.testing.assert_allclose(
    now.forward_extra['mlp']['scale'],
    np.sqrt(square_LF.sum(axis=1) / kept),
    rtol=1e-5,
  )


def test_free_heads_and_a_linear_descent_run_masked():
  options = SPARSE | {'sparsity__split': 0.5, 'sparsity__shape': 'linear'}
  config = helpers.make_config(
    **options,
    model__num_kv_heads=2,
    sparsity__granularity='free',
    sparsity__execution='masked',
  )
  state, losses, programs = helpers.run(config)
  assert np.isfinite(losses).all()
  assert programs <= 2  # sparse and dense, whatever the rate
  assert state.opt_state.mask['blocks']['mlp']['up'].ndim == 0


def test_stale_scores_are_those_of_the_refresh_before():
  options = {
    'sparsity__selection': 'top_k',
    'sparsity__importance': 'magnitude',
    'sparsity__stale_scores': True,
    'sparsity__refresh_every': 1,
  }
  setup, now, _, batch = open_window(**options)
  first = jax.device_get(now.chosen.kept['mlp'])
  # Neurons that were least important become the most important ones.
  mlp = now.parked.rows.params['blocks']['mlp']
  mlp['up'] = 100 * mlp['up']
  now = window.turn_over(setup, now, 1, batch, weighs=False)
  np.testing.assert_array_equal(now.chosen.kept['mlp'], first)
  now = window.turn_over(setup, now, 2, batch, weighs=False)
  np.testing.assert_array_equal(now.chosen.kept['mlp'], ~first)


def test_telemetry_by_hand():
  setup, now, dense, batch = open_window(
    sparsity__selection='top_k', sparsity__importance='magnitude'
  )
  first = jax.device_get(now.chosen.telemetry)
  assert np.isnan(first['overlap_mlp'])
  assert first['visited_mlp'] == first['visited_heads'] == 0.5
  assert first['nonfinite_scores'] == 0
  assert 0 < first['entropy_heads'] <= 1
  now = window.turn_over(setup, now, 3, batch, weighs=False)
  second = jax.device_get(now.chosen.telemetry)
  assert second['overlap_mlp'] == second['overlap_heads'] == 1
  assert now.visits['selections'] == 2
  np.testing.assert_array_equal(now.visits['mlp'], 2 * now.chosen.kept['mlp'])


def test_replay_is_training_on_nothing():
  config = helpers.make_config(optimizer__weight_decay=0.1)
  setup = helpers.one_device(config)
  state = helpers.initial_state(setup)
  options = {'tx': setup.tx, 'schedule': setup.schedule}
  grads = jax.tree.map(lambda p: 0.1 * p, state.params)
  state = step_lib.update(state, grads, **options)
  zeros = jax.tree.map(jnp.zeros_like, grads)
  expected = state
  for _ in range(5):
    expected = step_lib.update(expected, zeros, **options)
  found = step_lib.replay(jax.tree.map(jnp.copy, state), 5, **options)
  two_and_three = step_lib.replay(
    step_lib.replay(state, 2, **options), 3, **options
  )
  assert found.step == expected.step == 6
  for one, two, three in zip(
    *map(jax.tree.leaves, (found, expected, two_and_three))
  ):
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(one, three)


def test_what_compiles_ahead_has_the_shapes_of_what_runs():
  config = helpers.make_config(
    **SPARSE | {'sparsity__omitted_forward': 'mean'},
    model__num_layers=3,
    sparsity__dense_layers=(1, 0),
  )
  setup = helpers.one_device(config)
  batch = setup.put_batch(helpers.random_batch(config, 0))
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch
  )
  program = programs.compile_phase(setup, abstract, phases.phase_at(config, 0))
  now = window.first(setup, helpers.initial_state(setup))
  now = window.turn_over(setup, now, 0, batch, weighs=False)
  assert isinstance(now.state.params['blocks'], tuple)
  state, metrics = program(now.state, batch, now.forward_extra)
  assert np.isfinite(metrics['loss'])
  assert state.step == 1
