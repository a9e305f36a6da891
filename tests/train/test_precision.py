"""bfloat16: a compute copy of the matrices, float32 for all that lasts."""

import functools

import jax
from jax import extend
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.config import stages
from satjax.train import phases, programs, views
from satjax.train import setup as setup_lib
from tests import models
from tests.train import helpers

SPARSE = {'sparsity__head_rate': 0.5, 'sparsity__channel_rate': 0.5}
# Which leaves of the tree are cast: those that are multiplied with activations.
MATRICES = {
  'embed',
  'query',
  'key',
  'value',
  'output',
  'gate',
  'up',
  'down',
  'unembed',
  'rows',
  'columns',
}


def dtypes(params, rest=None, dtype='bfloat16'):
  copy = functools.partial(views.compute_copy, dtype)
  cast = tree.flatten(jax.eval_shape(copy, params, rest))
  return {path: leaf.dtype.name for path, leaf in cast.items()}


def params_of(**changes):
  model = models.make(qkv_bias=True, qk_norm=True, **changes)
  return models.make_params(model)


def test_matrices_are_cast_and_nothing_else():
  for path, dtype in dtypes(params_of()).items():
    is_matrix = path.rsplit('/', 1)[-1] in MATRICES
    assert dtype == ('bfloat16' if is_matrix else 'float32'), path


def test_what_rests_is_cast_alike():
  params = params_of()
  adapters = {'blocks': {'mlp': {'up': {'rows': jnp.ones((2, 6, 3))}}}}
  exact = ({'mlp': {'up': jnp.ones((1, 3, 8)), 'scale': jnp.ones(1)}},) * 2
  found = dtypes(adapters, (params, exact))
  assert found['0/blocks/mlp/up/rows'] == 'bfloat16'
  assert found['1/0/blocks/attention/query'] == 'bfloat16'
  assert found['1/0/blocks/attention/query_bias'] == 'float32'
  assert found['1/1/1/mlp/up'] == 'bfloat16'
  assert found['1/1/1/mlp/scale'] == 'float32'


def test_maps_that_are_learned_and_what_they_map_stay_exact():
  maps = {'width': {'query': jnp.ones((8, 4))}, 'depth': {'up': jnp.eye(2)}}
  assert set(dtypes(maps, params_of()).values()) == {'float32'}


def test_in_float32_there_is_no_copy():
  params = params_of()
  assert views.compute_copy('float32', params, params) == (params, params)


def casts_in_loops(jaxpr, inside=False):
  """Shapes of what is cast from float32 to bfloat16 in a loop."""
  for eqn in jaxpr.eqns:
    if inside and eqn.primitive.name == 'convert_element_type':
      x = eqn.invars[0].aval
      if (x.dtype, eqn.params['new_dtype']) == (jnp.float32, jnp.bfloat16):
        yield x.shape
    for inner in extend.core.jaxprs_in_params(eqn.params):
      is_loop = inside or eqn.primitive.name == 'scan'
      yield from casts_in_loops(inner, is_loop)


def test_matrices_are_cast_once_a_step():
  config = helpers.make_config(
    model__dtype='bfloat16', model__scan=True, train__microbatch_size=2
  )
  setup = helpers.one_device(config)
  (stage,) = stages.stages(setup.config)
  state = setup_lib.abstract_state(setup, stage)
  batch = helpers.random_batch(config, 0)
  traced = jax.make_jaxpr(setup_lib.make_step(setup))(state, batch)
  # The gradient of the table, of the shape of both tables, is rounded there.
  inner = MATRICES - {'embed', 'unembed'}
  matrices = {
    shape
    for path, leaf in tree.flatten(state.params).items()
    if path.rsplit('/', 1)[-1] in inner
    for shape in (leaf.shape, leaf.shape[1:])
  }
  found = set(casts_in_loops(traced.jaxpr))
  assert found  # activations are
  assert not found & matrices


@pytest.mark.parametrize(
  'options',
  [
    pytest.param({'train__microbatch_size': 1}, marks=pytest.mark.slow),
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param({'train__loss_chunk': 48}, marks=pytest.mark.slow),
    pytest.param(
      {**SPARSE, 'sparsity__execution': 'masked'}, marks=pytest.mark.slow
    ),
    pytest.param(
      {**SPARSE, 'sparsity__omitted_forward': 'exact'}, marks=pytest.mark.slow
    ),
    {'lora__rank': 2, 'lora__targets': ('query', 'down')},
    pytest.param(
      {'growth__hops': ((128, 'stack', 2, {'freeze_tokens': 256}),)},
      marks=pytest.mark.slow,
    ),
  ],
  ids=lambda options: ' '.join(options) or 'plain',
)
def test_bfloat16_trains_as_float32_nearly(options):
  exact, losses, _ = helpers.run(helpers.make_config(**options), steps=4)
  config = helpers.make_config(**options, model__dtype='bfloat16')
  found, found_losses, _ = helpers.run(config, steps=4)
  # Rounded scores may choose another neuron, too.
  np.testing.assert_allclose(found_losses, losses, rtol=1e-2)
  assert found_losses != losses

  def check(path, one, two):
    assert one.dtype == two.dtype, path
    if jnp.issubdtype(one.dtype, jnp.floating):
      assert one.dtype == jnp.float32, path

  tree.map_with_path(check, found, exact)


def gradients(**options):
  """The first moment after one step, in float32 whatever the activations."""
  config = helpers.make_config(
    **options, optimizer__clip_norm=0.0, optimizer__weight_decay=0.0
  )
  state, _, _ = helpers.run(config, steps=1)
  leaves = tree.flatten(state.opt_state)
  return {p: x for p, x in leaves.items() if '/mu/' in f'/{p}'}


def test_microbatches_are_summed_in_float32():
  exact = gradients()
  parts = gradients(model__dtype='bfloat16', train__microbatch_size=1)
  assert len(exact) == len(parts) > 10
  for path, expected in exact.items():
    error = np.linalg.norm(parts[path] - expected) / np.linalg.norm(expected)
    assert error < 3e-2, path
  # A sum in bfloat16 has 8 bits to it; this one has more.
  up = next(x for p, x in parts.items() if p.endswith('mlp/up'))
  rounded = np.float32(jnp.asarray(up / 0.1, jnp.bfloat16)) * np.float32(0.1)
  assert (np.abs(up - rounded) > 1e-3 * np.abs(up)).mean() > 0.2


@pytest.mark.parametrize(
  'options', [{}, SPARSE, {'model__dtype': 'bfloat16'}], ids=str
)
def test_the_state_is_updated_in_place(options):
  config = helpers.make_config(**options)
  setup = helpers.one_device(config)
  phase = phases.phase_at(setup.config, 0)
  batch = helpers.random_batch(config, 0)
  program = programs.compile_phase(setup, batch, phase)
  (state, _, _), _ = program.args_info
  size = sum(
    leaf.shape and np.prod(leaf.shape) * leaf.dtype.itemsize or 4
    for leaf in jax.tree.leaves(state)
  )
  assert program.memory_analysis().alias_size_in_bytes >= 0.99 * size
