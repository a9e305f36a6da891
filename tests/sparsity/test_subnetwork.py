"""Rows gathered out come back in their places; the rest does not move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from satjax import config as config_lib
from satjax import tree
from satjax.model import decoder
from satjax.sparsity import lors, subnetwork
from satjax.train import state as state_lib

LAYERS, HEADS, CHANNELS = 2, 4, 6
TX = optax.adamw(0.1)
# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def make_model(kv_heads):
  return config_lib.ModelConfig(
    num_layers=LAYERS,
    embed_dim=8,
    num_heads=HEADS,
    num_kv_heads=kv_heads,
    head_dim=4,
    mlp_dim=CHANNELS,
    vocab_size=16,
    tied=False,
    rope_theta=100.0,
    norm_eps=1e-5,
    dtype='float32',
    scan=False,
    remat='none',
    init_from='',
  )


@functools.cache
def make_params(kv_heads):
  """Every number is different, and none is 0."""
  abstract = jax.eval_shape(
    lambda: decoder.init_params(make_model(kv_heads), jax.random.key(0))
  )
  random = np.random.default_rng(kv_heads)

  def draw(x):
    return jnp.asarray(random.normal(size=x.shape) / 2, jnp.float32)

  return jax.tree.map(draw, abstract)


def make_active(kv_heads):
  """Other rows in each layer; with 2 groups of heads, one head of each."""
  active = {
    'heads': jnp.array([[0, 3], [1, 2]]),
    'mlp': jnp.array([[0, 2, 5], [1, 2, 3]]),
  }
  if kv_heads == HEADS:
    active['kv_heads'] = active['heads']
  return active


def make_state(kv_heads=HEADS):
  """A state whose moments are all different from 0 and from each other."""
  state = state_lib.new_state(make_params(kv_heads), TX)
  grads = jax.tree.map(lambda p: 0.3 * p + 0.1, state.params)
  _, opt_state = TX.update(grads, state.opt_state, state.params)
  return state.replace(step=jnp.array(7), opt_state=opt_state)


def shapes_of(values):
  return jax.tree.map(lambda leaf: leaf.shape, values)


def assert_same(one, two):
  one, two = tree.flatten(one), tree.flatten(two)
  assert one.keys() == two.keys()
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[path], path)


def assert_close(one, two, tolerance):
  one, two = tree.flatten(one), tree.flatten(two)
  assert one.keys() == two.keys()
  for path, leaf in one.items():
    np.testing.assert_allclose(
      leaf, two[path], rtol=tolerance, atol=tolerance, err_msg=path
    )


@pytest.mark.parametrize('kv_heads', [HEADS, 2])
def test_gather_takes_the_active_rows_of_every_neuron_leaf(kv_heads):
  params, active = make_params(kv_heads), make_active(kv_heads)
  sub = tree.flatten(subnetwork.gather(params, active))
  for path, leaf in tree.flatten(params).items():
    unit = next((a for a in tree.AXES[path] if a in active), None)
    if unit is None:
      expected = leaf
    else:
      rows = active[unit]
      expected = np.stack([x[r] for x, r in zip(np.array(leaf), rows)])
    np.testing.assert_array_equal(sub[path], expected, path)


def test_gather_takes_the_moments_along():
  state, active = make_state(), make_active(HEADS)
  sub = subnetwork.gather(state, active)
  adam = sub.opt_state[0]
  assert adam.mu['blocks']['mlp']['up'].shape == (LAYERS, 3, 8)
  for moment, full in (
    (adam.mu, state.opt_state[0].mu),
    (adam.nu, state.opt_state[0].nu),
  ):
    assert_same(moment, subnetwork.gather(full, active))
  assert sub.step == 7
  assert adam.count == 1
  fresh = jax.eval_shape(TX.init, sub.params)
  assert shapes_of(sub.opt_state) == shapes_of(fresh)


def test_write_back_is_the_inverse_of_gather():
  state, active = make_state(), make_active(HEADS)
  sub = subnetwork.gather(state, active)
  assert_same(subnetwork.write_back(state, sub, active), state)


@pytest.mark.parametrize('kv_heads', [HEADS, 2])
def test_write_back_changes_active_rows_and_no_omitted_one(kv_heads):
  state, active = make_state(kv_heads), make_active(kv_heads)
  trained = jax.tree.map(lambda x: x + 1, subnetwork.gather(state, active))
  after = subnetwork.write_back(state, trained, active)
  assert_same(subnetwork.gather(after, active), trained)
  omitted = {
    unit: jnp.array([sorted(set(range(size)) - set(r)) for r in rows.tolist()])
    for unit, rows in active.items()
    for size in [CHANNELS if unit == 'mlp' else HEADS]
  }
  before = subnetwork.neuron_leaves(state, active)
  assert_same(
    subnetwork.gather(subnetwork.neuron_leaves(after, active), omitted),
    subnetwork.gather(before, omitted),
  )


def test_an_empty_selection_is_the_whole_network():
  state = make_state()
  assert_same(subnetwork.gather(state, {}), state)
  assert subnetwork.neuron_leaves(state, {}) == {}


def test_neuron_leaves_are_those_that_a_selection_cuts():
  state = make_state(kv_heads=2)
  found = subnetwork.neuron_leaves(state, make_active(2))
  names = {'attention/query', 'attention/output'}
  names |= {'mlp/gate', 'mlp/up', 'mlp/down'}
  homes = ('params', 'opt_state/0/mu', 'opt_state/0/nu')
  assert found.keys() == {f'{h}/blocks/{n}' for h in homes for n in names}
  assert found.keys() > subnetwork.neuron_leaves(state, {'mlp': None}).keys()


def test_leaves_by_path_take_their_places():
  state, active = make_state(), make_active(HEADS)
  leaves = subnetwork.neuron_leaves(state, active)
  sub = subnetwork.replace_leaves(state, subnetwork.gather(leaves, active))
  assert_same(sub, subnetwork.gather(state, active))
  assert_same(subnetwork.replace_leaves(sub, leaves), state)


def test_taking_part_marks_the_active_neurons():
  active = {'mlp': jnp.array([[0, 2, 5], [1, 2, 3]])}
  kept = subnetwork.taking_part(make_params(2), active)
  assert kept.keys() == {'mlp'}
  assert kept['mlp'].astype(int).tolist() == [
    [1, 0, 1, 0, 0, 1],
    [0, 1, 1, 1, 0, 0],
  ]


def test_masks_follow_the_units():
  params = make_params(2)
  units = tree.neuron_units(params)
  kept = subnetwork.taking_part(params, make_active(2))
  masks = tree.flatten(subnetwork.masks(params, units, kept))
  assert masks.keys() == tree.flatten(params).keys()
  for path, mask in masks.items():
    assert mask.dtype == bool
    unit = next((u for u in units if path in units[u]), None)
    if unit is None:
      assert mask.shape == () and mask
    else:
      rest = [1] * (len(tree.AXES[path]) - 2)
      np.testing.assert_array_equal(
        mask, kept[unit].reshape(*kept[unit].shape, *rest), path
      )


def test_a_leaf_in_two_units_takes_part_where_both_do():
  params = {'w': jnp.zeros((2, 3))}
  units = {'rows': {'w': (0,)}, 'columns': {'w': (1,)}}
  kept = {
    'rows': jnp.array([True, False]),
    'columns': jnp.array([True, True, False]),
  }
  mask = subnetwork.masks(params, units, kept)['w']
  assert mask.astype(int).tolist() == [[1, 1, 0], [0, 0, 0]]


@functools.cache
def loss_and_grad(kv_heads):
  """Loss of random tokens and its gradient, for the tree and any part of it."""
  tokens = np.random.default_rng(0).integers(0, 16, (2, 6))
  target = jax.random.normal(jax.random.key(2), (2, 6, 16))

  def loss(params):
    batch = {'tokens': jnp.asarray(tokens)}
    logits = decoder.apply(make_model(kv_heads), params, batch)
    return jnp.mean(jnp.square(logits - target)), logits

  return compiled(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize('kv_heads', [HEADS, 2])
def test_the_gathered_network_is_the_masked_one(kv_heads):
  params, active = make_params(kv_heads), make_active(kv_heads)
  kept = subnetwork.taking_part(params, active)
  mask = subnetwork.masks(params, tree.neuron_units(params), kept)
  run = loss_and_grad(kv_heads)
  (_, dense), _ = run(params)
  (_, masked), masked_grads = run(lors.apply_mask(params, mask))
  (_, compact), grads = run(subnetwork.gather(params, active))
  np.testing.assert_allclose(compact, masked, rtol=1e-5, atol=1e-5)
  assert np.abs(dense - masked).max() > 1e-2
  # Through the mask, an omitted row would have no gradient at all.
  assert_close(grads, subnetwork.gather(masked_grads, active), 1e-5)


ORDERS = {
  # With grouped queries a head stays within its group.
  HEADS: [[2, 0, 3, 1], [3, 2, 1, 0]],
  2: [[1, 0, 3, 2], [0, 1, 3, 2]],
}


@pytest.mark.parametrize('kv_heads', [HEADS, 2])
def test_all_neurons_in_any_order_are_the_dense_network(kv_heads):
  params = make_params(kv_heads)
  active = {
    'heads': jnp.array(ORDERS[kv_heads]),
    'mlp': jnp.array([[5, 0, 4, 1, 3, 2], [1, 2, 3, 4, 5, 0]]),
  }
  if kv_heads == HEADS:
    active['kv_heads'] = active['heads']
  sub = subnetwork.gather(params, active)
  assert (sub['blocks']['mlp']['up'] != params['blocks']['mlp']['up']).any()
  run = loss_and_grad(kv_heads)
  (_, dense), dense_grads = run(params)
  (_, shuffled), grads = run(sub)
  np.testing.assert_allclose(shuffled, dense, rtol=1e-5, atol=1e-5)
  back = compiled(subnetwork.write_back)
  assert_close(back(dense_grads, grads, active), dense_grads, 1e-5)
  assert_same(back(params, sub, active), params)


def test_gather_and_write_back_run_inside_jit():
  state, active = make_state(), make_active(HEADS)
  sub = compiled(subnetwork.gather)(state, active)
  assert_same(sub, subnetwork.gather(state, active))
  assert_same(compiled(subnetwork.write_back)(state, sub, active), state)
