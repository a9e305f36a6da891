"""Where an operator says that it preserves the function, the logits stay."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.config import specs as specs_lib
from satjax.growth import apply, fresh
from satjax.model import decoder
from tests import models

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
INTEGER = {'embed_dim': 32, 'num_heads': 6, 'mlp_dim': 40}
RAGGED = {'embed_dim': 40, 'num_heads': 6, 'mlp_dim': 40}  # 2.5 times
HEADS, CHANNELS = {'num_heads': 6}, {'mlp_dim': 40}
LAYOUTS = {
  'gqa': {},
  'mha': {'num_kv_heads': 4},
  'tied': {'num_kv_heads': 4, 'tied': True},
}
KEY = jax.random.key(1)
real_normal = fresh.normal


def make_model(**changes):
  model = models.make(
    embed_dim=16,
    mlp_dim=24,
    norm_eps=1e-3,
    scan=False,
  )
  return dataclasses.replace(model, **changes)


def abstract_params(model, dtype=jnp.float32):
  """Shapes of a model's parameters, without tracing the model."""
  sizes = {
    'vocab': model.vocab_size,
    'layers': model.num_layers,
    'embed': model.embed_dim,
    'heads': model.num_heads,
    'kv_heads': model.num_kv_heads,
    'head_dim': model.head_dim,
    'mlp': model.mlp_dim,
  }
  return tree.unflatten(
    {
      path: jax.ShapeDtypeStruct(tuple(map(sizes.get, axes)), dtype)
      for path, axes in tree.AXES.items()
      if tree.has(model, path)
    }
  )


@functools.cache
def make_params(model):
  """Weights for which every part matters, gains that are not 1."""
  random = np.random.default_rng(0)

  def draw(path, x):
    noise = random.normal(size=x.shape, scale=0.25)
    return jnp.asarray(noise + path.endswith('_norm'), jnp.float32)

  return tree.map_with_path(draw, abstract_params(model))


@compiled
def _logits(params, eps, theta):
  # Not by configuration, so that one program serves whatever has these shapes.
  config = make_model(
    embed_dim=params['embed'].shape[1], norm_eps=eps, rope_theta=theta
  )
  tokens_BT = jnp.arange(14).reshape(2, 7)
  return decoder.apply(config, params, {'tokens': tokens_BT})


def logits(model, params):
  whole = {'unembed': params['embed'], **params}  # tied: one matrix for both
  return np.asarray(_logits(whole, model.norm_eps, model.rope_theta))


def cheap_normal(key, name, shape, layers=None):
  """`fresh.normal` without compiling a generator for every shape."""
  if isinstance(key, jax.core.Tracer):
    return real_normal(key, name, shape, layers)
  seed = [*np.asarray(jax.random.key_data(key)), zlib.crc32(name.encode())]
  if layers is None:
    numbers = np.random.default_rng(seed).normal(size=shape)
  else:
    numbers = [
      np.random.default_rng([*seed, layer]).normal(size=shape[1:])
      for layer in layers
    ]
  return np.asarray(numbers, np.float32)


@pytest.fixture(autouse=True)
def _cheap_numbers(monkeypatch):
  monkeypatch.setattr(fresh, 'normal', cheap_normal)


def grow(specs, model):
  """Operators, the new model, and its parameters."""
  operators, target = specs_lib.resolve_all(specs, model)
  return operators, target, apply.grow_tree(make_params(model), operators, KEY)


def change(model, target, params):
  """How far the logits are from those of the small model."""
  before = logits(model, make_params(model))
  assert 0.5 < before.std() < 2
  return np.abs(logits(target, params) - before).max()


def wide(name, target, **options):
  return ((name, {**target, **options}),)


def slow(specs):
  return pytest.param(specs, marks=pytest.mark.slow)


PRESERVING = [
  (('stack', 1),),
  (('zero', 2),),
  (('llama_pro', {'group': 1, 'branch_scale': 0.5}),),
  wide('direct', RAGGED),
  wide('fpi', RAGGED),
  wide('zero', RAGGED),
  slow(wide('direct', HEADS)),
  slow(wide('zero', HEADS)),
  slow(wide('direct', CHANNELS)),
  slow(wide('zero', CHANNELS)),
  slow((('aki', 1),)),
  (('length', {'factor': 2, 'rope_theta': 100.0}),),
  (('stack', 1), ('zero', RAGGED)),
  slow((('llama_pro', 2),)),
  slow((('zero', 2), ('direct', CHANNELS))),
  slow((('direct', HEADS), ('zero', {'embed_dim': 40, 'mlp_dim': 40}))),
  slow(wide('direct', RAGGED, split='uneven')),
  slow(wide('direct', RAGGED, split='noisy')),
  slow(wide('direct', INTEGER)),
  slow(wide('direct', HEADS, split='uneven')),
  slow(wide('direct', CHANNELS, split='noisy')),
  slow(wide('zero', INTEGER)),
]
CHANGING = [
  (('stack', 2),),
  (('interpolate', 2),),
  (('partial', '1*3-2'),),
  (('map', (1, 0, 1, 0)),),
  (('random', 2),),
  wide('aki', RAGGED),
  slow(wide('aki', HEADS)),
  slow(wide('aki', CHANNELS)),
  wide('random', RAGGED),
  slow(wide('random', CHANNELS)),
  (('length', 2),),
  (('random', 2), ('length', {'factor': 2, 'rope_theta': 100.0})),
  slow((('zero', {'factor': 2, 'noise': 0.2}),)),
  slow((('llama_pro', {'group': 1, 'noise': 0.2, 'noise_on': 'new'}),)),
  slow(wide('direct', RAGGED, noise=0.2)),
  slow(wide('direct', RAGGED, noise=0.2, noise_on='new')),
  slow(wide('zero', CHANNELS, noise=0.2, noise_on='new')),
]
OF_THREE = [slow(((name, 1),)) for name in ('gradual', 'midas', 'solar')]
IN_ALL_LAYOUTS = [
  wide('direct', RAGGED),
  wide('zero', RAGGED),
  wide('fpi', RAGGED),
  slow(wide('direct', RAGGED, split='uneven')),
  slow(wide('direct', RAGGED, split='noisy')),
  slow(wide('direct', INTEGER)),
  slow(wide('direct', INTEGER, split='uneven')),
]


def check_shapes(target, params):
  """Every leaf is there, as a model of that size has it."""
  assert jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
  ) == abstract_params(target)


@pytest.mark.parametrize('specs', PRESERVING, ids=str)
def test_operators_that_preserve_the_function_keep_the_logits(specs):
  model = make_model()
  operators, target, params = grow(specs, model)
  check_shapes(target, params)
  assert all(operator.preserves for operator in operators)
  assert change(model, target, params) <= 1e-5


@pytest.mark.parametrize('layout', ['mha', 'tied'])
@pytest.mark.parametrize('specs', IN_ALL_LAYOUTS, ids=str)
def test_they_do_without_groups_and_with_tied_embeddings(layout, specs):
  model = make_model(**LAYOUTS[layout])
  operators, target, params = grow(specs, model)
  check_shapes(target, params)
  assert operators[0].preserves
  assert change(model, target, params) <= 1e-5


@pytest.mark.parametrize('specs', CHANGING + OF_THREE, ids=str)
def test_all_others_change_the_logits(specs):
  model = make_model(
    num_layers=3 if specs[0][0] in ('gradual', 'midas', 'solar') else 2
  )
  operators, target, params = grow(specs, model)
  check_shapes(target, params)
  assert not all(operator.preserves for operator in operators)
  assert change(model, target, params) > 1e-2


@pytest.mark.parametrize('layout', LAYOUTS)
def test_these_are_the_shapes_of_the_model(layout):
  model = make_model(**LAYOUTS[layout])
  init = functools.partial(decoder.init_params, model)
  assert jax.eval_shape(init, KEY) == abstract_params(model)


def test_half_precision_stays():
  model, half = make_model(), jnp.bfloat16
  for options in ({'split': 'uneven', 'noise': 0.2}, {'split': 'noisy'}):
    for specs in (wide('direct', RAGGED, **options), (('random', 2),)):
      operators, target = specs_lib.resolve_all(specs, model)
      grow = functools.partial(apply.grow_tree, operators=operators, key=KEY)
      found = jax.eval_shape(grow, abstract_params(model, half))
      assert found == abstract_params(target, half)


@pytest.mark.parametrize(
  'spec, layout',
  [
    (('random', {'factor': 2, 'ramp_tokens': 9}), 'gqa'),
    (('random', {**RAGGED, 'ramp_tokens': 9}), 'gqa'),
    pytest.param(
      ('random', {**CHANNELS, 'ramp_tokens': 9}), 'gqa', marks=pytest.mark.slow
    ),
    (('random', {**RAGGED, 'ramp_tokens': 9}), 'tied'),
  ],
)
def test_a_ramp_leads_from_the_old_function_to_no_mask(spec, layout):
  model = make_model(**LAYOUTS[layout])
  operators, target, params = grow((spec,), model)
  assert operators[0].preserves
  start = apply.ramp(operators, params, jnp.array(0.0))
  assert change(model, target, start) <= 1e-5
  half = apply.ramp(operators, params, jnp.array(0.5))
  assert change(model, target, half) > 1e-2
  end = tree.flatten(apply.ramp(operators, params, jnp.array(1.0)))
  for path, leaf in tree.flatten(params).items():
    np.testing.assert_array_equal(end[path], leaf, path)


def test_gains_times_the_papers_root_change_the_function():
  """Du et al. (2024), Eq. 10, scales gains of duplicated channels too."""
  model = make_model()
  _, target, params = grow(wide('direct', RAGGED), model)

  def rescaled(part):
    def scale(path, x):
      return x * (16 / 40) ** 0.5 if path.endswith(part) else x

    return tree.map_with_path(scale, params)

  assert change(model, target, rescaled('_norm')) > 1e-2
  assert change(model, target, rescaled('attention_norm')) > 1e-2
  assert change(model, target, rescaled('mlp_norm')) > 1e-2


def test_an_epsilon_that_does_not_follow_changes_the_function():
  model = make_model()
  _, target, params = grow(wide('zero', RAGGED), model)
  np.testing.assert_allclose(target.norm_eps, model.norm_eps * 16 / 40)
  kept = dataclasses.replace(target, norm_eps=model.norm_eps)
  assert change(model, kept, params) > 1e-4
