"""Every leaf, of parameters or of optimizer state, is found by its path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from satjax import tree
from satjax.config.groups import OptimizerConfig
from satjax.train import optimizer
from satjax.train.state import TrainState

L, N, K, H, D, F, V = 2, 4, 2, 2, 6, 8, 10
SIZES = {
  'layers': L,
  'heads': N,
  'kv_heads': K,
  'head_dim': H,
  'embed': D,
  'mlp': F,
  'vocab': V,
}


def make_params(kv_heads=K):
  sizes = {**SIZES, 'kv_heads': kv_heads}
  params = {}
  for number, (path, axes) in enumerate(tree.AXES.items()):
    *groups, name = path.split('/')
    target = params
    for group in groups:
      target = target.setdefault(group, {})
    shape = tuple(sizes[axis] for axis in axes)
    target[name] = jnp.arange(np.prod(shape)).reshape(shape) + 1000.0 * number
  return params


def make_tx(name):
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
    )
  )


def test_paths_of_dicts_sequences_and_dataclasses():
  state = TrainState(0, {'a': {'b': 1}}, (optax.EmptyState(), [2, {'c': 3}]))
  assert tree.flatten(state) == {
    'step': 0,
    'params/a/b': 1,
    'opt_state/1/0': 2,
    'opt_state/1/1/c': 3,
  }


def test_every_parameter_is_named_and_has_its_axes():
  leaves = tree.flatten(make_params())
  assert leaves.keys() == tree.AXES.keys()
  for path, leaf in leaves.items():
    assert tree.param_of(path) == path
    axes = tree.axes_of(path, leaf.ndim)
    assert tuple(SIZES[axis] for axis in axes) == leaf.shape


@pytest.mark.parametrize(
  'path, name',
  [
    ('blocks/mlp/up', 'blocks/mlp/up'),
    ('0/mu/blocks/mlp/up', 'blocks/mlp/up'),
    ('0/mu/blocks/0/mlp/up/rows', 'blocks/mlp/up/rows'),
    ('opt_state/1/0/nu/embed', 'embed'),
    ('unembed', 'unembed'),
    ('mlp/up', None),
    ('up', None),
    ('blocks/mlp', None),
    ('blocks/mlp/up/0', None),
    ('blocks/mlp_norm/rows', None),
    ('my_embed', None),
    ('embed/count', None),
    ('count', None),
    ('', None),
  ],
)
def test_a_leaf_mirrors_the_parameter_that_ends_its_path(path, name):
  assert tree.param_of(path) == name


def test_an_adapter_has_the_axes_of_its_matrix_and_a_rank():
  assert len(tree.ADAPTERS) == 2 * (7 + 2)  # with those of both ends
  found = tree.axes_of('blocks/attention/output/rows', 4)
  assert found == ('layers', 'heads', 'head_dim', 'rank')
  found = tree.axes_of('0/nu/blocks/mlp/gate/columns', 3)
  assert found == ('layers', 'rank', 'embed')


def test_a_leaf_of_another_rank_has_no_axes():
  assert tree.axes_of('0/v_row/blocks/mlp/up', 2) is None
  assert tree.axes_of('0/v_row/embed', 1) is None
  assert tree.axes_of('count', 0) is None


@pytest.mark.parametrize(
  'name, moments', [('adamw', 2), ('lion', 1), ('muon', None), ('sgd', 1)]
)
def test_every_moment_has_the_axes_of_its_parameter(name, moments):
  params = make_params()
  found = {path: 0 for path in tree.AXES}
  for path, leaf in tree.flatten(make_tx(name).init(params)).items():
    param = tree.param_of(path)
    if param is None:
      assert 'count' in path or 'ns_coeffs' in path
      continue
    found[param] += 1
    assert leaf.shape == tree.flatten(params)[param].shape
    assert tree.axes_of(path, leaf.ndim) == tree.AXES[param]
  for path, count in found.items():
    small = path.endswith(('_norm', '_bias'))
    matrix = path.startswith('blocks/') and not small
    # Muon has a momentum for the matrices of the blocks, Adam two for the rest.
    assert count == (moments or (1 if matrix else 2)), path


def test_map_with_path_passes_every_tree():
  first = {'a': 1, 'b': {'c': 2}}
  second = {'a': 10, 'b': {'c': 20}}
  assert tree.map_with_path(lambda path, x, y: (path, x, y), first, second) == {
    'a': ('a', 1, 10),
    'b': {'c': ('b/c', 2, 20)},
  }


def test_unflatten_is_the_inverse_of_flatten_for_dicts():
  nested = {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
  assert tree.unflatten(tree.flatten(nested)) == nested
  assert tree.unflatten({}) == {}


def test_layers_are_one_stack_or_several():
  one, two = {'mlp': {'up': 1}}, {'mlp': {'up': 2}}
  assert tree.stacks({'blocks': one}) == (one,)
  assert tree.stacks({'blocks': (one, two)}) == (one, two)
  several = {'embed': 0, 'blocks': (one, two)}
  assert set(tree.flatten(several)) == {
    'embed',
    'blocks/0/mlp/up',
    'blocks/1/mlp/up',
  }
  assert tree.param_of('0/mu/blocks/1/mlp/up') == 'blocks/mlp/up'
  assert tree.is_params(several) and not tree.is_params(one)


def test_a_head_owns_its_key_and_value_without_grouped_queries():
  units = tree.neuron_units(make_params(kv_heads=N))
  attention = ('query', 'key', 'value', 'output')
  attention += ('query_bias', 'key_bias', 'value_bias')
  assert units['heads'] == {
    f'blocks/attention/{name}': (0, 1) for name in attention
  }
  assert units['mlp'] == {
    f'blocks/mlp/{name}': (0, 1) for name in ('gate', 'up', 'down')
  }


def test_a_head_leaves_shared_keys_and_values_alone():
  units = tree.neuron_units(make_params(kv_heads=K))
  assert units['heads'].keys() == {
    'blocks/attention/query',
    'blocks/attention/query_bias',
    'blocks/attention/output',
  }
  assert units['mlp'].keys() == {
    'blocks/mlp/gate',
    'blocks/mlp/up',
    'blocks/mlp/down',
  }


def test_units_are_known_from_shapes_alone():
  params = make_params()
  abstract = jax.eval_shape(lambda: params)
  assert tree.neuron_units(abstract) == tree.neuron_units(params)


@pytest.mark.parametrize(
  ('one', 'two'), [('layer_12', 'layer_21'), ('heads', 'sheda'), ('ab', 'ba')]
)
def test_names_of_the_same_letters_have_keys_of_their_own(one, two):
  key = jax.random.key(0)
  one, two = tree.key_of(key, one), tree.key_of(key, two)
  assert (jax.random.key_data(one) != jax.random.key_data(two)).any()


def test_every_kind_of_neuron_writes_through_one_matrix():
  assert tree.WRITES == {
    'heads': 'blocks/attention/output',
    'mlp': 'blocks/mlp/down',
  }
