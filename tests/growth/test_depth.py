"""Growth in depth is one gather along the layers, of parameters and moments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.config import specs as specs_lib
from satjax.config.groups import OptimizerConfig
from satjax.growth import apply, depth, layer_maps
from satjax.growth.operators import Depth
from satjax.train import optimizer
from satjax.train import state as state_lib
from tests.growth import test_preserves as common

NAMES = ('adamw', 'lion', 'sgd', 'muon', 'adafactor')
LAYERS = 2
WRITES = ('blocks/attention/output', 'blocks/mlp/down')
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


def make_tx(name, per_neuron=False):
  return optimizer.make_optimizer(
    OptimizerConfig(
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
    ),
    per_neuron=per_neuron,
  )


@functools.cache
def trained_state(name, width=4):
  """A state whose moments are not 0 and differ from layer to layer."""
  tx, params = make_tx(name), make_params(width)
  state = common.compiled(lambda p: state_lib.new_state(p, tx))(params)

  _, opt_state = common.compiled(tx.update)(params, state.opt_state, params)
  return tx, state.replace(step=jnp.array(3), opt_state=opt_state)


def assert_same(one, two):
  one, two = tree.flatten(one), tree.flatten(two)
  assert one.keys() == two.keys()
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[path], path)
    assert leaf.dtype == two[path].dtype, path


@pytest.mark.parametrize('name', NAMES)
def test_growth_to_the_same_depth_changes_nothing(name):
  _, state = trained_state(name)
  layer_map = layer_maps.stack(LAYERS, LAYERS * 1)
  assert_same(apply.grow_depth(state, layer_map), state)


@pytest.mark.parametrize(
  'layer_map', [(0, 1, 0, 1), (0, 0, 1, 1), (1,), [1, 0]]
)
def test_layer_i_is_a_copy_of_its_source(layer_map):
  params = make_params()
  before = tree.flatten(params)
  after = tree.flatten(apply.grow_depth(params, layer_map))
  assert after.keys() == before.keys()
  for path, leaf in after.items():
    if path not in STACKED:
      assert leaf is before[path]
      continue
    wanted = np.array(before[path])[list(layer_map)]
    np.testing.assert_array_equal(leaf, wanted, path, strict=True)


# From a width of 128 Adafactor keeps rows and columns instead of a matrix.
@pytest.mark.parametrize(
  'name, width', [(name, 4) for name in NAMES] + [('adafactor', 128)]
)
def test_moments_grow_with_their_parameters(name, width):
  tx, state = trained_state(name, width)
  grown = apply.grow_depth(state, layer_maps.stack(LAYERS, LAYERS * 2))
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
    old = np.array(old)
    assert np.unique(old[0]).size > 1 or old[0].size == 1
    np.testing.assert_array_equal(leaf, np.concatenate([old, old]), path)
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
  grown = apply.grow_depth(state, (0, 1, 0, 1))
  updates, _ = common.compiled(tx.update)(
    grown.params, grown.opt_state, grown.params
  )
  up = updates['blocks']['mlp']['up']
  assert up.shape[0] == 4
  np.testing.assert_array_equal(up[:2], up[2:])


def test_growth_runs_inside_jit():
  _, state = trained_state('adamw')
  grow = jax.jit(lambda s: apply.grow_depth(s, (0, 1, 0, 1)))
  assert_same(grow(state), apply.grow_depth(state, (0, 1, 0, 1)))


def test_growth_in_two_hops_is_growth_in_one():
  params = make_params()
  twice = apply.grow_depth(params, layer_maps.stack(LAYERS, LAYERS * 2))
  twice = apply.grow_depth(twice, layer_maps.stack(2 * LAYERS, 2 * LAYERS * 2))
  assert_same(
    twice, apply.grow_depth(params, layer_maps.stack(LAYERS, LAYERS * 4))
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
    apply.grow_depth(make_params(), layer_map)


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


def test_moments_of_random_layers_begin_at_zero():
  _, state = trained_state('adamw')
  operator = Depth((0, 1, 1), fresh=(False, False, True))
  grown = apply.grow_tree(state.opt_state, (operator,), common.KEY)
  before = tree.flatten(state.opt_state)
  for path, leaf in tree.flatten(grown).items():
    wanted = np.array(before[path])
    if tree.param_of(path) in STACKED:
      wanted = np.concatenate([wanted, 0 * wanted[:1]])
    np.testing.assert_array_equal(leaf, wanted, path)


def grown_leaves(params, layer_map, key=common.KEY, **options):
  operator = Depth(layer_map, **options)
  return tree.flatten(apply.grow_tree(params, (operator,), key))


@pytest.mark.parametrize(
  'options, factors',
  [
    ({'zero_out': (False, True, False, True)}, (1, 0, 1, 0)),
    ({'zero_out': (True, False, False, False)}, (0, 1, 1, 1)),
    ({'branch_scale': 0.5}, (1, 0.5, 1, 0.5)),  # of new layers
  ],
)
def test_only_what_layers_write_is_silenced_or_scaled(options, factors):
  params, layer_map = make_params(), (0, 0, 1, 0)
  copies = grown_leaves(params, layer_map)
  for path, leaf in grown_leaves(params, layer_map, **options).items():
    wanted = np.array(copies[path])
    if path in WRITES:
      wanted *= np.float32(factors).reshape(-1, *[1] * (wanted.ndim - 1))
    np.testing.assert_array_equal(leaf, wanted, path)


@pytest.mark.parametrize('noise_on', ['all', 'new'])
def test_noise_is_a_share_of_initial_weights(noise_on):
  """Of variance 2 / (5 D), and 1 / (D L^2) for what writes."""
  shapes = {
    'embed': (64, 32),
    'final_norm': (32,),
    'blocks/attention_norm': (2, 32),
    'blocks/mlp/up': (2, 64, 32),
    'blocks/mlp/down': (2, 64, 32),
  }
  random = np.random.default_rng(0)
  params = {
    path: random.normal(size=shape).astype(np.float32)
    for path, shape in shapes.items()
  }
  grow = functools.partial(
    grown_leaves, layer_map=(0, 1, 1), noise=0.2, noise_on=noise_on
  )
  after = common.compiled(grow)(tree.unflatten(params), key=jax.random.key(0))
  for path, leaf in after.items():
    copy = params[path][[0, 1, 1]] if path in STACKED else params[path]
    if path.endswith('_norm'):
      np.testing.assert_array_equal(leaf, copy, path)
      continue
    eps = (np.array(leaf) - 0.8 * copy) / 0.2
    if noise_on == 'new':
      old = 2 if path in STACKED else 64
      np.testing.assert_array_equal(leaf[:old], copy[:old], path)
      eps = eps[old:]
    elif path in STACKED:
      assert np.abs(np.corrcoef(eps[1].ravel(), eps[2].ravel())[0, 1]) < 0.1
    std = 1 / 32**0.5 / 3 if path in WRITES else (2 / 5 / 32) ** 0.5
    if eps.size:
      assert abs(eps.std() / std - 1) < 0.05, path
      assert abs(eps.mean() / std) < 0.1, path


@pytest.mark.parametrize(
  'options, said',
  [
    ({'zero_out': (True,)}, 'zero_out has 1 entries for 2 layers'),
    ({'zero_out': (True,) * 3}, 'zero_out has 3 entries for 2 layers'),
    ({'noise': 0.2}, 'noise 0.2 needs a key'),
  ],
)
def test_options_that_do_not_fit_raise(options, said):
  with pytest.raises(ValueError, match=said):
    apply.grow_depth(make_params(), (0, 1), **options)


@pytest.mark.parametrize('name', [*NAMES, 'per_neuron'])
@pytest.mark.parametrize('spec', [('random', 2), ('zero', 2), ('direct', 1.5)])
def test_the_state_is_one_that_the_optimizer_would_make(name, spec):
  if name == 'adafactor' and spec[0] == 'direct':
    pytest.skip('refused: see test_width')
  each = name == 'per_neuron'
  tx = make_tx('adamw' if each else name, per_neuron=each)
  model = common.make_model()
  operators, target = specs_lib.resolve_all((spec,), model)

  def grow(params):
    state = state_lib.new_state(params, tx)
    return apply.grow_tree(state, operators, common.KEY).opt_state

  found = jax.eval_shape(grow, common.abstract_params(model))
  assert found == jax.eval_shape(tx.init, common.abstract_params(target))
