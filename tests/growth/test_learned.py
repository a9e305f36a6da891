"""Growth that trains its maps, learned, and that of single tensors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import flops, tree
from satjax.config import specs as specs_lib
from satjax.growth import fresh, layer_maps, learned
from satjax.interop import grow
from tests.growth import test_preserves as common
from tests.growth.test_preserves import KEY, RAGGED

MHA = common.make_model(num_kv_heads=4)
WIDER = {'embed_dim': 20, 'num_heads': 6, 'mlp_dim': 25}
TARGETS = {
  'depth': {'num_layers': 5},
  'width': WIDER,
  'both': {'num_layers': 5, **WIDER},
  'channels': {'mlp_dim': 25},
}


@pytest.fixture(autouse=True)
def _cheap_numbers(monkeypatch):
  monkeypatch.setattr(fresh, 'normal', common.cheap_normal)


def operator_of(target, model=MHA):
  return specs_lib.resolve(('learn', target), model)


def random_like(maps):
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: random.normal(size=x.shape).astype(np.float32), maps
  )


def abstract_maps(operator):
  return jax.eval_shape(functools.partial(learned.init, operator), KEY)


def by_hand(maps, params):
  """LiGO as Du et al. (2024), A.6, write it, one matrix at a time."""
  width, depth_maps = jax.tree.map(np.float64, (maps['width'], maps['depth']))
  found = {}
  for path, x in tree.flatten(params).items():
    name, x = path.split('/')[-1], np.array(x, np.float64)
    rows = {'output': 'value'}.get(name, name)
    rows = 'channels' if name in ('gate', 'up', 'down') else rows
    if rows in width:
      head_dim = x.shape[2:-1]
      flat = x.reshape(len(x), -1, x.shape[-1])
      flat = np.stack([width[rows] @ layer for layer in flat])
      x = flat.reshape(len(x), -1, *head_dim, x.shape[-1])
    x = x @ width['residual'].T
    if name in depth_maps:
      x = np.tensordot(depth_maps[name], x, 1)
    found[path] = x
  return found


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('target', TARGETS)
def test_grown_parameters_have_the_shapes_of_the_model(target, tied):
  model = dataclasses.replace(MHA, tied=tied)
  operator = operator_of(TARGETS[target], model)
  maps = abstract_maps(operator)
  changed = {'depth': target in ('depth', 'both'), 'width': target != 'depth'}
  assert {name: bool(group) for name, group in maps.items()} == changed
  found = jax.eval_shape(
    learned.materialise, maps, common.abstract_params(model)
  )
  assert found == common.abstract_params(operator.target(model))
  assert not operator.preserves


def test_depth_begins_as_the_stack():
  model = common.make_model()  # with groups, which depth does not care for
  params = common.make_params(model)
  operator = operator_of({'num_layers': 5}, model)

  @common.compiled
  def begin(params):
    return learned.materialise(learned.init(operator, KEY), params)

  for path, found in tree.flatten(begin(params)).items():
    old = np.array(tree.flatten(params)[path])
    stacked = path.startswith('blocks/')
    wanted = old[list(layer_maps.stack(2, 5))] if stacked else old
    np.testing.assert_array_equal(found, wanted, path)


def test_width_begins_with_the_old_model_and_random_rows():
  operator = operator_of(WIDER)
  maps = common.compiled(functools.partial(learned.init, operator))(KEY)
  maps = maps['width']
  assert {name: x.shape for name, x in maps.items()} == {
    'residual': (20, 16),
    'query': (24, 16),
    'key': (24, 16),
    'value': (24, 16),
    'channels': (25, 24),
  }
  for name, x in maps.items():
    rows, columns = x.shape
    np.testing.assert_array_equal(x[:columns], np.eye(columns), name)
    scaled = np.array(x[columns:]) * rows**0.5
    assert 0.6 < scaled.std() < 1.4, name
  assert not np.array_equal(maps['query'], maps['key'])
  params = tree.flatten(common.make_params(MHA))
  found = by_hand({'width': maps, 'depth': {}}, common.make_params(MHA))
  for path, old in params.items():
    block = found[path][tuple(map(slice, old.shape))]
    np.testing.assert_allclose(block, old, 1e-6, err_msg=path)


@functools.cache
def grown_with_random_maps():
  params = common.make_params(MHA)
  maps = random_like(abstract_maps(operator_of(TARGETS['both'])))
  weights = random_like(jax.eval_shape(learned.materialise, maps, params))

  @common.compiled
  def run(maps, params):
    def total(maps):
      grown = learned.materialise(maps, params)
      products = jax.tree.map(lambda x, w: jnp.sum(x * w), grown, weights)
      return sum(jax.tree.leaves(products)), grown

    return jax.value_and_grad(total, has_aux=True)(maps)

  return run, maps, params


def test_materialise_is_the_published_formula():
  run, maps, params = grown_with_random_maps()
  (_, grown), _ = run(maps, params)
  wanted = by_hand(maps, params)
  for path, x in tree.flatten(grown).items():
    np.testing.assert_allclose(x, wanted[path], 1e-4, 1e-3, err_msg=path)


def test_materialise_is_linear_in_the_parameters():
  run, maps, params = grown_with_random_maps()
  other = random_like(params)
  both = jax.tree.map(lambda x, y: 2 * np.array(x) - y, params, other)
  one, two, found = (run(maps, x)[0][1] for x in (params, other, both))
  jax.tree.map(
    lambda x, y, z: np.testing.assert_allclose(
      z, 2 * np.array(x) - y, 1e-4, 1e-3
    ),
    one,
    two,
    found,
  )


@pytest.mark.parametrize(
  'path',
  [
    *(f'width/{x}' for x in ('residual', 'query', 'key', 'value', 'channels')),
    *(f'depth/{x}' for x in ('query', 'attention_norm', 'down', 'output')),
  ],
)
def test_the_gradient_of_every_map_is_that_of_differences(path):
  run, maps, params = grown_with_random_maps()
  _, gradient = run(maps, params)
  found = float(tree.flatten(gradient)[path][1, 1])
  totals = []
  for step in (0.5, -0.5):  # the total is linear in every single number
    moved = {key: np.array(x) for key, x in tree.flatten(maps).items()}
    moved[path][1, 1] += step
    totals.append(float(run(tree.unflatten(moved), params)[0][0]))
  assert abs(found) > 0.1
  assert found == pytest.approx(totals[0] - totals[1], rel=1e-2, abs=0.1)


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('tied', [False, True])
def test_flops_are_those_of_the_matrix_products(target, tied):
  model = dataclasses.replace(MHA, tied=tied)
  operator = operator_of(TARGETS[target], model)
  lowered = jax.jit(learned.materialise).lower(
    abstract_maps(operator), common.abstract_params(model)
  )
  found = flops.map_flops(model, operator.target(model))
  assert found == lowered.cost_analysis()['flops']


def test_flops_of_depth_by_hand():
  """From 2 to 5 layers: 20 products with each of a layer's numbers."""
  layer = 2 * 16 + 4 * 16 * 16 + 3 * 24 * 16
  target = dataclasses.replace(MHA, num_layers=5)
  assert flops.map_flops(MHA, target) == 20 * layer


# What a tensor may be made of: norms, both kinds of matrices, no layers.
BLOCK = ('blocks/mlp_norm', 'blocks/attention/key', 'blocks/mlp/down')
TENSORS = (*BLOCK, 'embed', 'final_norm')
STREAMED = [
  (('stack', 2),),
  (('zero', 2),),
  (('random', {'factor': 2, 'ramp_tokens': 9}),),
  common.wide('direct', RAGGED),
  common.wide('fpi', RAGGED),
  common.wide('aki', RAGGED),
  common.wide('zero', RAGGED),
  common.wide('random', RAGGED),
  common.wide('zero', common.CHANNELS),
  (('length', 2), ('zero', RAGGED)),
  (('aki', RAGGED), ('interpolate', 2)),
  *map(
    common.slow,
    [
      (('stack', {'factor': 2, 'noise': 0.2}),),
      (('stack', {'factor': 2, 'noise': 0.2, 'noise_on': 'new'}),),
      (('llama_pro', {'group': 1, 'branch_scale': 0.5}),),
      common.wide('direct', RAGGED, split='uneven'),
      common.wide('direct', RAGGED, split='noisy', noise=0.2),
      (('aki', RAGGED), ('stack', {'factor': 2, 'noise': 0.1})),
      common.wide('direct', common.CHANNELS, noise=0.2),
    ],
  ),
]


def streamed(operators, depths, params, name, layer):
  def read(name, layer):
    leaf = np.array(tree.flatten(params)[name])
    return leaf if layer is None else leaf[layer]

  # The seed is that of `KEY`.
  return grow.grown_tensor(operators, depths, name, layer, 1, read)


@pytest.mark.parametrize('specs', STREAMED, ids=str)
def test_a_tensor_by_itself_is_that_of_the_whole_tree(specs):
  model = MHA
  depths, at = [], model
  for spec in specs:
    depths.append(at.num_layers)
    at = specs_lib.resolve(spec, at).target(at)
  operators, target, grown = common.grow(specs, model)
  grown = tree.flatten(grown)
  for name in TENSORS:
    layers = range(target.num_layers) if 'blocks' in name else (None,)
    for layer in layers:
      whole = grown[name] if layer is None else grown[name][layer]
      found = streamed(
        operators, depths, common.make_params(model), name, layer
      )
      assert (found.shape, found.dtype) == (whole.shape, whole.dtype)
      np.testing.assert_allclose(found, whole, 1e-6, 1e-6, err_msg=name)


def test_the_random_numbers_of_a_layer_do_not_depend_on_the_others():
  all_of_them = common.real_normal(KEY, 'up', (3, 5), (0, 2, 7))
  alone = common.real_normal(KEY, 'up', (1, 5), (2,))
  np.testing.assert_array_equal(alone[0], all_of_them[1])
  assert np.unique(all_of_them).size == 15


def test_a_tensor_of_a_learned_model_needs_them_all():
  with pytest.raises(ValueError, match='trains its maps'):
    streamed((operator_of({'factor': 2}),), [2], {}, 'embed', None)
