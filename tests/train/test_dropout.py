"""Dropout in training: of the seed, the step and the row, and of no more."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax.config.run import Config
from satjax.interop import models as models_lib
from satjax.model import cached
from satjax.train import loop, refresh
from satjax.train import setup as setup_lib
from satjax.train import step as step_lib
from tests import models
from tests.train import helpers

STEP = 4 * 32  # tokens
HALF = {
  'sparsity__head_rate': 0.5,
  'sparsity__channel_rate': 0.5,
  'sparsity__refresh_every': 2,
  'sparsity__split': 1.0,
}


def make_config(rate=0.3, **options):
  return helpers.make_config(**{'model__dropout': rate, **options})


def assert_close(actual, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected
  )


def test_a_step_draws_from_the_seed_and_its_number():
  config = make_config(train__seed=7)
  setup = helpers.one_device(config)
  state, batch = helpers.initial_state(setup), helpers.random_batch(config, 0)
  own = setup_lib.make_step(setup)
  assert own.keywords['seed'] == 7

  @jax.jit
  def loss(number, seed):
    step = functools.partial(own, seed=seed)
    return step(state.replace(step=number), batch)[1]['loss']

  drawn = [(0, 7), (1, 7), (2, 7), (0, 8), (0, 7)]
  losses = [float(loss(*one)) for one in drawn]
  assert losses[0] == losses[4] and len(set(losses)) == 4


LAYER = {
  'model__num_layers': 1,
  'train__batch_size': 8,
  'optimizer__warmup_steps': 1,
}


@functools.cache
def whole():
  """Moments and losses of a batch at once, on one device."""
  state, losses, _ = helpers.run(make_config(**LAYER), steps=2)
  return jax.device_get(state.opt_state), losses


@pytest.mark.parametrize(
  ('count', 'changes'),
  [
    pytest.param(1, {'train__microbatch_size': 4}, marks=pytest.mark.slow),
    (8, {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2}),
  ],
)
def test_parts_of_a_batch_draw_what_the_whole_batch_draws(
  count, changes, capfd
):
  config = make_config(**LAYER, **changes)
  setup = setup_lib.make_setup(config, jax.devices()[:count])
  state, losses, _ = helpers.run(config, steps=2, setup=setup)
  moments, expected = whole()
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  # Of the moments: Adam makes much of the sign of a small number.
  found = jax.device_get(state.opt_state)
  assert_close(found, moments, rtol=2e-3, atol=1e-6)
  assert 'Involuntary full rematerialization' not in capfd.readouterr().err


def test_adapters_see_the_masks_of_the_whole_model():
  """At first they change nothing, and the loss is the same."""
  adapted = helpers.run(make_config(**LAYER, lora__rank=2), steps=1)[1]
  np.testing.assert_allclose(adapted[0], whole()[1][0], rtol=1e-6)


def test_nothing_but_a_training_step_sees_it():
  plain, config = make_config(0.0, **HALF), make_config(**HALF)
  batch = helpers.random_batch(plain, 0)
  params = helpers.initial_state(helpers.one_device(plain)).params
  lengths = jnp.full(4, 32, jnp.int32)

  def programs(config):
    model = config.model
    for function in (
      lambda p, b: step_lib.eval_step(p, b, model=model),
      functools.partial(refresh.measure, config, model),
      lambda p, b: cached.prefill(model, p, b['tokens'], lengths, 40),
    ):
      yield str(jax.make_jaxpr(function)(params, batch))

  assert list(programs(config)) == list(programs(plain))


def test_a_sub_network_draws_what_the_whole_model_draws():
  """Compact against masked in float64, on two stacks of layers."""
  runs = []
  for execution in ('compact', 'masked'):
    config = make_config(
      **HALF,
      model__num_layers=2,
      sparsity__dense_layers=(1, 0),
      sparsity__execution=execution,
      train__num_steps=3,
    )
    with jax.enable_x64(True):
      config = helpers.in_float64(config)
      state, losses, _ = helpers.run(config, dtype=np.float64)
      runs.append((jax.device_get(state), losses))
  (compact, losses), (masked, expected) = runs
  np.testing.assert_allclose(losses, expected, rtol=1e-9)
  assert_close(compact.params, masked.params, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_frozen_layers_see_the_masks_of_the_whole_model():
  """Right after a growth the loss is the same, whatever trains."""
  losses = [
    helpers.run(make_config(growth__hops=((STEP, 'stack', 2, *more),)), steps=2)
    for more in ((), ({'freeze_tokens': 4 * STEP},))
  ]
  np.testing.assert_allclose(losses[0][1], losses[1][1], rtol=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(tmp_path):
  values = make_config().to_dict()
  values['data'] |= {'seq_len': 16, 'eval': ()}
  values['train'] |= {'batch_size': 8, 'num_steps': 4, 'checkpoint_every': 2}
  config = Config.from_dict(values)
  first = loop.train(config, tmp_path)
  end = tmp_path / 'checkpoints' / '4'

  def fingerprint():
    return json.loads((end / 'record' / 'metadata').read_text())['fingerprint']

  expected = fingerprint()
  shutil.rmtree(end)
  second = loop.train(config, tmp_path)
  assert fingerprint() == expected
  for one, two in zip(first, second, strict=True):
    assert one['train/loss'] == two['train/loss']


def test_a_model_to_start_from_does_not_turn_it_off(tmp_path):
  model = models.make(vocab_size=320)
  models_lib.save(
    models_lib.Model(model, models.make_params(model)), tmp_path / 'model'
  )
  config = make_config(model__init_from=str(tmp_path / 'model'))
  found = models_lib.resolve(config).model
  assert (found.num_layers, found.embed_dim) == (2, 8)
  assert found.dropout == 0.3
  assert models_lib.load(tmp_path / 'model').config.dropout == 0
