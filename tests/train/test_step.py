"""Identity and oracle tests of the train step: the promises of the method."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.model import decoder
from satjax.sparsity import subnetwork
from satjax.train import phases, window
from satjax.train import setup as setup_lib
from satjax.train import step as step_lib
from tests.train import helpers

SPARSE = {
  'sparsity__head_rate': 0.5,
  'sparsity__channel_rate': 0.5,
  'sparsity__refresh_every': 6,
}


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close(actual, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected
  )


@functools.cache
def jaxpr(config):
  setup = helpers.one_device(config)
  phase = phases.phase_at(config, 0)
  state = setup_lib.abstract_state(setup, phase.stage)
  batch = helpers.random_batch(config, 0)
  return str(jax.make_jaxpr(setup_lib.make_step(setup))(state, batch))


@pytest.mark.parametrize(
  'neutral',
  [
    {'sparsity__execution': 'masked'},
    {'sparsity__importance': 'magnitude', 'sparsity__selection': 'top_k'},
    {'sparsity__refresh_every': 1, 'sparsity__rungs': 7},
    {'growth__hops': ((32, 'stack', 1),)},
    {'growth__opt_state': 'reset'},
    {'train__microbatch_size': 4},
    {'mesh__data': 1},
    {'lora__alpha': 3.0, 'lora__targets': ('gate',)},
    {'model__sliding_window': 32},  # as long as the row
    {'model__dropout': 0.0, 'train__seed': 3},
    {'model__attention': 'blocked'},  # what a CPU runs by itself
  ],
)
def test_a_feature_at_its_neutral_value_leaves_the_step_unchanged(neutral):
  assert jaxpr(helpers.make_config(**neutral)) == jaxpr(helpers.make_config())


def test_the_jaxpr_comparison_notices_a_feature_that_is_on():
  dense = jaxpr(helpers.make_config())
  assert (
    jaxpr(helpers.make_config(**SPARSE, sparsity__execution='masked')) != dense
  )
  assert jaxpr(helpers.make_config(optimizer__clip_norm=0.0)) != dense
  assert jaxpr(helpers.make_config(model__dropout=0.1)) != dense


def test_rate_zero_trains_as_dense_bitwise():
  dense, dense_losses, _ = helpers.run(helpers.make_config(), steps=6)
  off = helpers.make_config(sparsity__execution='masked', sparsity__rungs=2)
  state, losses, _ = helpers.run(off, steps=6)
  assert losses == dense_losses
  assert_equal(state, dense)


@pytest.mark.parametrize('opt_state', ['grow', 'reset_new', 'reset'])
def test_growth_by_one_changes_no_parameter(opt_state):
  config = helpers.make_config(
    growth__hops=((3 * 128, 'stack', 1),), growth__opt_state=opt_state
  )
  grown, grown_losses, _ = helpers.run(config, steps=4)
  plain, plain_losses, _ = helpers.run(helpers.make_config(), steps=4)
  assert grown_losses == plain_losses
  if opt_state != 'reset':
    assert_equal(grown, plain)


def test_growth_doubles_the_layers_and_the_run_goes_on():
  config = helpers.make_config(growth__hops=((3 * 128, 'stack', 2),))
  state, losses, programs = helpers.run(config, steps=6)
  assert state.params['blocks']['mlp']['up'].shape[0] == 4
  assert programs == 2
  assert np.isfinite(losses).all()


def test_a_full_selection_in_any_order_is_dense():
  config = helpers.make_config()
  setup = helpers.one_device(config)
  state = helpers.initial_state(setup)
  rng = np.random.default_rng(0)

  def order(n):
    return jnp.array([[rng.permutation(n)] for _ in range(2)])

  heads = order(4)
  rows = {'heads': heads, 'kv_heads': heads, 'mlp': order(128)}
  all_of_them = (('heads', 4), ('kv_heads', 4), ('mlp', 128))
  stacks = (subnetwork.Stack(0, 2, all_of_them),)
  batch = helpers.random_batch(config, 0)
  step = jax.jit(setup_lib.make_step(setup))
  dense, dense_metrics = step(state, batch)
  sub, nothing = subnetwork.split(state, rows, stacks)
  assert nothing.rows.params['blocks']['mlp']['up'].shape == (2, 0, 64)
  sub, metrics = step(sub, batch)
  back = subnetwork.merge(sub, nothing, rows, stacks)
  np.testing.assert_allclose(metrics['loss'], dense_metrics['loss'], rtol=1e-6)
  assert_close(back.params, dense.params, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
  ('optimizer', 'kv_heads', 'rungs', 'layers'),
  [
    ('adamw', 4, 2, 2),
    pytest.param('adamw', 2, 1, 1, marks=pytest.mark.slow),
    pytest.param('lion', 4, 1, 1, marks=pytest.mark.slow),
  ],
)
def test_compact_equals_masked_in_float64(optimizer, kv_heads, rungs, layers):
  """20 steps, across refreshes and rungs: loss, parameters and moments."""
  options = {
    **SPARSE,
    'model__num_kv_heads': kv_heads,
    'optimizer__name': optimizer,
    'optimizer__peak_lr': 1e-2,
    'sparsity__rungs': rungs,
    'model__num_layers': layers,
  }
  with jax.enable_x64(True):
    runs = [
      helpers.run(
        helpers.in_float64(
          helpers.make_config(**options, sparsity__execution=execution)
        ),
        dtype=np.float64,
      )
      for execution in ('compact', 'masked')
    ]
  (compact, compact_losses, programs), (masked, masked_losses, _) = runs
  assert programs == rungs + 1  # one for each rate, 0 among them
  np.testing.assert_allclose(compact_losses, masked_losses, rtol=1e-9)
  tolerance = {'rtol': 1e-9, 'atol': 1e-12}
  if optimizer == 'lion':
    tolerance = {'rtol': 1e-9, 'atol': 1e-9}
  assert_close(compact.params, masked.params, **tolerance)
  assert_close(compact.opt_state, masked.opt_state.inner, **tolerance)


def test_compact_equals_masked_in_float32_also_across_growth():
  options = {
    **SPARSE,
    'sparsity__selection': 'top_k',
    'sparsity__importance': 'magnitude',
    'growth__hops': ((9 * 128, 'stack', 2),),
    'sparsity__split': 1.0,
    'model__sliding_window': 8,  # which neither method knows of
  }
  losses = [
    helpers.run(helpers.make_config(**options, sparsity__execution=execution))[
      1
    ]
    for execution in ('compact', 'masked')
  ]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_omitted_rows_are_untouched_bitwise():
  config = helpers.make_config(**SPARSE | {'sparsity__refresh_every': 50})
  setup = helpers.one_device(config)
  start = helpers.initial_state(setup)
  before = jax.device_get(start)
  now = window.turn_over(
    setup, window.first(setup, start), 0, helpers.random_batch(config, 0)
  )
  kept = jax.device_get(now.chosen.kept)
  step = jax.jit(setup_lib.make_step(setup), donate_argnums=0)
  for number in range(3):
    now.state, _ = step(now.state, helpers.random_batch(config, number))
  after = jax.device_get(window.close(setup, now, 3))

  def check(path, old, new):
    axes = tree.axes_of(path, np.ndim(old)) or ()
    cut = next((axis for axis in axes if axis in kept), None)
    for layer, rows in enumerate(kept.get(cut, ())):
      assert rows.sum() == old.shape[1] // 2
      np.testing.assert_array_equal(old[layer, ~rows], new[layer, ~rows])
      assert (old[layer, rows] != new[layer, rows]).any()

  tree.map_with_path(check, before, after)


@pytest.mark.parametrize('parts', [2, 4])
def test_accumulation_equals_one_big_batch(parts):
  whole = helpers.make_config()
  cut = helpers.make_config(train__microbatch_size=4 // parts)
  (a, a_losses, _), (b, b_losses, _) = (
    helpers.run(c, steps=3) for c in (whole, cut)
  )
  np.testing.assert_allclose(a_losses, b_losses, rtol=1e-6)
  assert_close(a.params, b.params, rtol=1e-4, atol=1e-6)
  assert_close(a.opt_state, b.opt_state, rtol=1e-4, atol=1e-6)


def test_a_packed_row_equals_its_documents_apart():
  config = helpers.make_config()
  params = decoder.init_params(config.model, jax.random.key(0))
  packed = helpers.random_batch(config, 0)
  half = config.data.seq_len // 2
  apart = {
    name: np.concatenate([x[:, :half], x[:, half:]])
    for name, x in packed.items()
  }
  del apart['segments']
  loss_and_grads = jax.jit(
    jax.value_and_grad(
      functools.partial(step_lib.eval_step, model=config.model)
    )
  )
  results = [loss_and_grads(params, batch) for batch in (packed, apart)]
  np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
  assert_close(results[0][1], results[1][1], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
  ('mesh', 'sparse'),
  [
    pytest.param((8, 1, 1), False, marks=pytest.mark.slow),
    pytest.param((2, 4, 1), False, marks=pytest.mark.slow),
    pytest.param((2, 2, 2), False, marks=pytest.mark.slow),
    pytest.param((2, 4, 1), True, marks=pytest.mark.slow),
    ((2, 2, 2), True),
  ],
)
def test_eight_devices_equal_one(mesh, sparse):
  options = {'train__batch_size': 8, 'train__num_steps': 6}
  if sparse:
    options |= SPARSE | {'sparsity__refresh_every': 2}
    options |= {'sparsity__shards': mesh[2]}
  config = helpers.make_config(
    **options, mesh__data=mesh[0], mesh__fsdp=mesh[1], mesh__tensor=mesh[2]
  )
  alone = dataclasses.replace(
    config, mesh=dataclasses.replace(config.mesh, data=1, fsdp=1, tensor=1)
  )
  many, many_losses, _ = helpers.run(config, setup=setup_lib.make_setup(config))
  one, losses, _ = helpers.run(alone)
  np.testing.assert_allclose(many_losses, losses, rtol=1e-5)
  up = many.params['blocks']['mlp']['up']
  assert up.addressable_shards[0].data.size * mesh[1] * mesh[2] == up.size
  assert_close(
    jax.device_get(many.params),
    jax.device_get(one.params),
    rtol=2e-3,
    atol=1e-5,
  )


@pytest.mark.slow
def test_a_tiny_model_learns_a_periodic_text():
  config = helpers.make_config(
    **SPARSE,
    train__num_steps=150,
    optimizer__peak_lr=3e-3,
    growth__hops=((75 * 128, 'stack', 2),),
  )
  setup = helpers.one_device(config)
  now = window.first(setup, helpers.initial_state(setup))
  step_fn = jax.jit(setup_lib.make_step(setup), donate_argnums=0)
  text = np.tile(np.arange(8, dtype=np.int32), 64)
  rows = np.stack([text[i : i + 33] for i in range(4)])
  batch = {
    'tokens': rows[:, :-1],
    'targets': rows[:, 1:],
    'weights': np.ones((4, 32), np.float32),
  }
  for step in range(150):
    now = window.turn_over(setup, now, step, batch, weighs=False)
    now.state, metrics = step_fn(now.state, batch)
  assert metrics['loss'] < 0.1
