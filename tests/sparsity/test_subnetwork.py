"""Rows gathered out come back in their places; the rest does not move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from satjax import tree
from satjax.model import decoder
from satjax.sparsity import lors, subnetwork
from satjax.train import state as state_lib
from tests import models

LAYERS, HEADS, CHANNELS = 2, 4, 6
TX = optax.adamw(0.1)
# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def make_model(kv_heads):
  return models.make(
    num_layers=LAYERS,
    num_heads=HEADS,
    num_kv_heads=kv_heads,
    mlp_dim=CHANNELS,
    scan=False,
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


def make_kept(kv_heads):
  """Other rows in each layer; with 2 groups of heads, one head of each."""
  kept = {
    'heads': np.array([[1, 0, 0, 1], [0, 1, 1, 0]], bool),
    'mlp': np.array([[1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 0, 0]], bool),
  }
  if kv_heads == HEADS:
    kept['kv_heads'] = kept['heads']
  return kept


def make_stacks(kv_heads):
  cut = [('heads', 2), ('mlp', 3)]
  if kv_heads == HEADS:
    cut.append(('kv_heads', 2))
  return (subnetwork.Stack(0, LAYERS, tuple(cut)),)


def split(full, kv_heads=HEADS, **options):
  order = subnetwork.orders(make_kept(kv_heads))
  return subnetwork.split(full, order, make_stacks(kv_heads), **options)


def merge(sub, rest, kv_heads=HEADS, **options):
  order = subnetwork.orders(make_kept(kv_heads))
  return subnetwork.merge(sub, rest, order, make_stacks(kv_heads), **options)


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


def test_orders_put_those_that_take_part_first():
  order = subnetwork.orders(make_kept(2))
  assert order.keys() == {'heads', 'mlp'}
  assert order['mlp'].tolist() == [[[0, 2, 5, 1, 3, 4]], [[1, 2, 3, 0, 4, 5]]]
  assert order['heads'].dtype == jnp.int32


@pytest.mark.parametrize('kv_heads', [HEADS, 2])
def test_split_parts_every_neuron_leaf_in_two(kv_heads):
  params, kept = make_params(kv_heads), make_kept(kv_heads)
  sub, parked = split(params, kv_heads)
  sub, rest = tree.flatten(sub), tree.flatten(parked.rows)
  for path, leaf in tree.flatten(params).items():
    unit = next((a for a in tree.AXES[path] if a in kept), None)
    if unit is None:
      np.testing.assert_array_equal(sub[path], leaf)
      assert path not in rest
      continue
    for part, masks in ((sub, kept[unit]), (rest, ~kept[unit])):
      expected = np.stack([x[m] for x, m in zip(np.array(leaf), masks)])
      np.testing.assert_array_equal(part[path], expected, path)


def test_split_takes_the_moments_along():
  state = make_state()
  sub, rest = split(state)
  adam = sub.opt_state[0]
  assert adam.mu['blocks']['mlp']['up'].shape == (LAYERS, 3, 8)
  assert_same(adam.nu, split(state.opt_state[0].nu)[0])
  assert sub.step == rest.rows.step == 7
  assert adam.count == rest.rows.opt_state[0].count == 1
  fresh = jax.eval_shape(TX.init, sub.params)
  assert shapes_of(sub.opt_state) == shapes_of(fresh)


@pytest.mark.parametrize('kv_heads', [HEADS, 2])
def test_merge_is_the_inverse_of_split(kv_heads):
  state = make_state(kv_heads)
  assert_same(merge(*split(state, kv_heads), kv_heads), state)


def test_merge_moves_no_row_that_rests():
  state = make_state()
  sub, rest = split(state)
  trained = sub.replace(params=jax.tree.map(lambda x: x + 1, sub.params))
  again, rested = split(merge(trained, rest))
  assert_same(again, trained)
  assert_same(rested, rest)


def test_a_consumed_state_is_freed_leaf_by_leaf():
  state = jax.tree.map(jnp.copy, make_state())
  copy = jax.tree.map(jnp.copy, state)
  sub, rest = split(state, consume=True)
  assert state.params['blocks']['mlp']['up'].is_deleted()
  assert not state.params['embed'].is_deleted()
  full = merge(sub, rest, consume=True)
  assert sub.params['blocks']['mlp']['up'].is_deleted()
  assert_same(full, copy)


RAGGED = (
  subnetwork.Stack(0, 1, ()),
  subnetwork.Stack(1, 2, (('heads', 2), ('kv_heads', 2), ('mlp', 1))),
)


def test_layers_of_unequal_size_become_stacks():
  state = make_state()
  kept = {
    'heads': np.array([[1, 1, 1, 1], [0, 1, 0, 1]], bool),
    'mlp': np.array([[1] * 6, [0, 0, 0, 0, 1, 0]], bool),
  }
  kept['kv_heads'] = kept['heads']
  order = subnetwork.orders(kept)
  sub, rest = subnetwork.split(state, order, RAGGED)
  first, second = tree.stacks(sub.params)
  up = state.params['blocks']['mlp']['up']
  np.testing.assert_array_equal(first['mlp']['up'], up[:1])
  np.testing.assert_array_equal(second['mlp']['up'], up[1:, 4:5])
  whole, cut = tree.stacks(rest.rows.params)
  assert whole['mlp']['up'] is None
  assert cut['mlp']['up'].shape == (1, 5, 8)
  nu = tree.stacks(sub.opt_state[0].nu)[1]['attention']['key']
  assert nu.shape == (1, 2, 4, 8)
  assert_same(subnetwork.merge(sub, rest, order, RAGGED), state)


@pytest.mark.parametrize('aside', [(), ('embed', 'final_norm')])
def test_layers_are_parted_before_their_neurons(aside):
  state = make_state(2)
  kept = make_kept(2) | {'layers': np.array([False, True])}
  order = subnetwork.orders(kept)
  assert order['layers'].tolist() == [1, 0]
  stacks = (subnetwork.Stack(0, 1, (('heads', 2), ('mlp', 3))),)
  copy = jax.tree.map(jnp.copy, state)
  sub, parked = subnetwork.split(state, order, stacks, aside=aside)
  up = state.params['blocks']['mlp']['up']
  rows = kept['mlp'][1]
  for found, expected in (
    (sub.params['blocks']['mlp']['up'], up[1:, rows]),
    (parked.rows.params['blocks']['mlp']['up'], up[1:, ~rows]),
    (parked.layers.params['blocks']['mlp']['up'], up[:1]),
    (
      sub.opt_state[0].nu['blocks']['mlp_norm'],
      np.array(state.opt_state[0].nu['blocks']['mlp_norm'])[1:],
    ),
  ):
    np.testing.assert_array_equal(found, expected)
  assert ('embed' in sub.params) != ('embed' in aside)
  fresh = jax.eval_shape(TX.init, sub.params)
  assert shapes_of(sub.opt_state) == shapes_of(fresh)
  if aside:
    assert parked.tables.params.keys() == {*aside}
    assert parked.tables.step == 7
  full = subnetwork.merge(sub, parked, order, stacks, consume=True)
  assert_same(full, copy)


def test_ahead_gives_the_shapes_and_leaves_programs_behind():
  params = make_params(2)
  order = subnetwork.orders(make_kept(2))
  abstract, rows = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    (params, order),
  )
  stacks = make_stacks(2)
  shapes = subnetwork.split(abstract, rows, stacks, call=subnetwork.ahead)
  sub, rest = subnetwork.split(params, order, stacks)
  assert shapes_of(shapes) == shapes_of((sub, rest))


def test_masks_follow_the_units():
  params = make_params(2)
  units = tree.neuron_units(params)
  kept = make_kept(2)
  masks = tree.flatten(lors.masks(params, units, kept))
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
  mask = lors.masks(params, units, kept)['w']
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
  params, kept = make_params(kv_heads), make_kept(kv_heads)
  mask = lors.masks(params, tree.neuron_units(params), kept)
  run = loss_and_grad(kv_heads)
  (_, dense), _ = run(params)
  (_, masked), masked_grads = run(lors.apply_mask(params, mask))
  (_, compact), grads = run(split(params, kv_heads)[0])
  np.testing.assert_allclose(compact, masked, rtol=1e-5, atol=1e-5)
  assert np.abs(dense - masked).max() > 1e-2
  # Through the mask, an omitted row would have no gradient at all.
  assert_close(grads, split(masked_grads, kv_heads)[0], 1e-5)


ORDERS = {
  # With grouped queries a head stays within its group.
  HEADS: [[2, 0, 3, 1], [3, 2, 1, 0]],
  2: [[1, 0, 3, 2], [0, 1, 3, 2]],
}


@pytest.mark.parametrize('kv_heads', [HEADS, 2])
def test_all_neurons_in_any_order_are_the_dense_network(kv_heads):
  params = make_params(kv_heads)
  order = {
    'heads': jnp.array(ORDERS[kv_heads])[:, None],
    'mlp': jnp.array([[[5, 0, 4, 1, 3, 2]], [[1, 2, 3, 4, 5, 0]]]),
  }
  cut = [('heads', HEADS), ('mlp', CHANNELS)]
  if kv_heads == HEADS:
    order['kv_heads'] = order['heads']
    cut.append(('kv_heads', HEADS))
  stacks = (subnetwork.Stack(0, LAYERS, tuple(cut)),)
  sub, rest = subnetwork.split(params, order, stacks)
  assert (sub['blocks']['mlp']['up'] != params['blocks']['mlp']['up']).any()
  run = loss_and_grad(kv_heads)
  (_, dense), dense_grads = run(params)
  (_, shuffled), grads = run(sub)
  np.testing.assert_allclose(shuffled, dense, rtol=1e-5, atol=1e-5)
  back = subnetwork.merge(grads, rest, order, stacks)
  assert_close(back, dense_grads, 1e-5)
  assert_same(subnetwork.merge(sub, rest, order, stacks), params)


def test_split_and_merge_run_inside_jit():
  state = make_state()
  assert_same(compiled(lambda x: merge(*split(x)))(state), state)
