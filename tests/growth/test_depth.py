"""Growth in depth is one gather along the layers, of parameters and moments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import config as config_lib
from satjax import layer_maps, tree
from satjax.growth import depth
from satjax.train import optimizer
from satjax.train import state as state_lib

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
NAMES = ('adamw', 'lion', 'sgd', 'muon', 'adafactor')
LAYERS = 2
STACKED = {path for path, axes in tree.AXES.items() if axes[0] == 'layers'}


def make_params(width=4, num_layers=LAYERS):
  """Every number is different; `width` is the size of every axis but layers."""
  params, first = {}, 1
  for path, axes in tree.AXES.items():
    *groups, name = path.split('/')
    target = params
    for group in groups:
      target = target.setdefault(group, {})
    small = {'layers': num_layers, 'head_dim': 2}
    shape = tuple(small.get(axis, width) for axis in axes)
    numbers = np.arange(first, first + np.prod(shape), dtype=np.float32)
    target[name] = jnp.asarray(numbers.reshape(shape) / 1e4)
    first += numbers.size
  return params


def make_tx(name):
  return optimizer.make_optimizer(
    config_lib.OptimizerConfig(
      name=name,
      schedule='constant',
      peak_lr=0.1,
      end_lr=0.1,
      warmup_steps=0,
      decay_steps=0,
      b1=0.9,
      b2=0.99,
      eps=1e-8,
      weight_decay=0.1,
      clip_norm=1.0,
    )
  )


def trained_state(name, width=4):
  """A state whose moments are not 0 and differ from layer to layer."""
  tx, params = make_tx(name), make_params(width)
  state = compiled(lambda p: state_lib.new_state(p, tx))(params)

  _, opt_state = compiled(tx.update)(params, state.opt_state, params)
  return tx, state.replace(step=jnp.array(3), opt_state=opt_state)


def assert_same(one, two):
  one, two = tree.flatten(one), tree.flatten(two)
  assert one.keys() == two.keys()
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[path], path)
    assert leaf.dtype == two[path].dtype, path


@pytest.mark.parametrize(
  'num_layers, factor, layer_map',
  [
    (3, 2, (0, 1, 2, 0, 1, 2)),
    (2, 3, (0, 1, 0, 1, 0, 1)),
    (1, 4, (0, 0, 0, 0)),
    (3, 1, (0, 1, 2)),
  ],
)
def test_stack_repeats_the_whole_stack(num_layers, factor, layer_map):
  assert layer_maps.stack(num_layers, num_layers * factor) == layer_map


@pytest.mark.parametrize('name', NAMES)
def test_growth_to_the_same_depth_changes_nothing(name):
  _, state = trained_state(name)
  layer_map = layer_maps.stack(LAYERS, LAYERS * 1)
  assert_same(depth.grow_depth(state, layer_map), state)


@pytest.mark.parametrize(
  'layer_map', [(0, 1, 0, 1), (0, 0, 1, 1), (1,), [1, 0]]
)
def test_layer_i_is_a_copy_of_its_source(layer_map):
  params = make_params()
  before = tree.flatten(params)
  after = tree.flatten(depth.grow_depth(params, layer_map))
  assert after.keys() == before.keys()
  for path, leaf in after.items():
    if path not in STACKED:
      assert leaf is before[path]
      continue
    assert leaf.shape == (len(layer_map), *before[path].shape[1:])
    for target, source in enumerate(layer_map):
      np.testing.assert_array_equal(leaf[target], before[path][source], path)


# From a width of 128 Adafactor keeps rows and columns instead of a matrix.
@pytest.mark.parametrize(
  'name, width', [(name, 4) for name in NAMES] + [('adafactor', 128)]
)
def test_moments_grow_with_their_parameters(name, width):
  tx, state = trained_state(name, width)
  grown = depth.grow_depth(state, layer_maps.stack(LAYERS, LAYERS * 2))
  assert grown.step == 3
  before = tree.flatten(state.opt_state)
  after = tree.flatten(grown.opt_state)
  moments = 0
  for path, leaf in after.items():
    old = before[path]
    if leaf.shape == old.shape:
      np.testing.assert_array_equal(leaf, old, path)
      continue
    moments += 1
    assert tree.param_of(path) in STACKED
    assert np.unique(old[0]).size > 1 or old[0].size == 1
    np.testing.assert_array_equal(leaf, jnp.concatenate([old, old]), path)
  # Every stacked parameter has one moment at least that follows it.
  assert moments >= len(STACKED)
  # It is the state that an optimizer of the grown model would have.
  fresh = jax.eval_shape(tx.init, grown.params)
  assert jax.tree.structure(grown.opt_state) == jax.tree.structure(fresh)
  for path, leaf in tree.flatten(fresh).items():
    assert (after[path].shape, after[path].dtype) == (leaf.shape, leaf.dtype)


def test_wide_matrices_are_factored_in_this_test():
  _, state = trained_state('adafactor', 128)
  shapes = {
    path: leaf.shape
    for path, leaf in tree.flatten(state.opt_state).items()
    if path.endswith('blocks/mlp/up')
  }
  assert sorted(shapes.values()) == [(1,), (LAYERS, 128), (LAYERS, 128)]


def test_a_grown_state_trains():
  tx, state = trained_state('sgd')
  grown = depth.grow_depth(state, (0, 1, 0, 1))
  updates, _ = compiled(tx.update)(grown.params, grown.opt_state, grown.params)
  up = updates['blocks']['mlp']['up']
  assert up.shape[0] == 4
  np.testing.assert_array_equal(up[:2], up[2:])


def test_growth_runs_inside_jit():
  _, state = trained_state('adamw')
  grow = jax.jit(lambda s: depth.grow_depth(s, (0, 1, 0, 1)))
  assert_same(grow(state), depth.grow_depth(state, (0, 1, 0, 1)))


def test_growth_in_two_hops_is_growth_in_one():
  params = make_params()
  twice = depth.grow_depth(params, layer_maps.stack(LAYERS, LAYERS * 2))
  twice = depth.grow_depth(twice, layer_maps.stack(2 * LAYERS, 2 * LAYERS * 2))
  assert_same(
    twice, depth.grow_depth(params, layer_maps.stack(LAYERS, LAYERS * 4))
  )


@pytest.mark.parametrize(
  'layer_map, said',
  [
    ((0, 2), r'\[0, 2\].*outside 0..1'),
    ((-1, 0), r'\[-1, 0\].*outside 0..1'),
    ((), 'one or more layers'),
    (((0, 1), (0, 1)), 'layer_map'),
    ((0.5, 1.5), 'layer_map'),
    ((True, False), 'layer_map'),
  ],
)
def test_bad_maps_raise(layer_map, said):
  with pytest.raises(ValueError, match=said):
    depth.grow_depth(make_params(), layer_map)


@pytest.mark.parametrize(
  'path, ndim, stacked',
  [
    ('blocks/mlp/up', 3, True),
    ('opt_state/1/mu/blocks/attention_norm', 2, True),
    ('v_row/blocks/attention/query', 3, True),
    ('v/blocks/mlp/up', 1, False),
    ('embed', 2, False),
    ('final_norm', 1, False),
    ('count', 0, False),
    ('ns_coeffs', 2, False),
  ],
)
def test_is_stacked(path, ndim, stacked):
  assert depth.is_stacked(path, ndim) == stacked
