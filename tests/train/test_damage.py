"""What leaving out costs at once, as a run sees it."""

import jax
import numpy as np
import pytest

from satjax.train import loss as loss_lib
from satjax.train import refresh, window
from tests.train import helpers

CUT = {
  'sparsity__head_rate': 0.5,
  'sparsity__channel_rate': 0.5,
  'sparsity__omitted_forward': 'skip',
  'sparsity__layer_rate': 0.5,
  'sparsity__probe': 0.5,
  'model__num_layers': 4,
}


def opened(**options):
  config = helpers.make_config(**(CUT | options))
  setup = helpers.one_device(config)
  state = helpers.initial_state(setup)
  params = jax.device_get(state.params)
  batch = setup.put_batch(helpers.random_batch(config, 0))
  now = window.turn_over(setup, window.first(setup, state), 0, batch)
  return config, params, batch, now


def mean_loss(model, params, rows, extra=None):
  total = loss_lib.next_token_loss(model, params, rows, extra)
  return total / np.sum(rows['weights'])


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'sparsity__omitted_forward': {'heads': 'mean', 'layers': 'through'}},
    {'sparsity__execution': 'masked', 'sparsity__importance': 'uniform'},
  ],
)
def test_damage_is_the_loss_with_it_less_the_loss_without(options):
  config, params, batch, now = opened(**options)
  rows = jax.device_get(refresh.probe_rows(0.5, batch))
  whole = mean_loss(config.model, params, rows)
  found = jax.device_get(now.chosen.telemetry)
  np.testing.assert_allclose(
    found['probe_loss'] - found['damage'], whole, rtol=1e-5
  )
  if config.sparsity.execution == 'compact':
    part = mean_loss(config.model, now.state.params, rows, now.forward_extra)
    np.testing.assert_allclose(found['probe_loss'], part, rtol=1e-5)
  assert abs(found['damage']) > 1e-3


@pytest.mark.parametrize('how', ['exact', 'through'])
def test_a_forward_pass_that_lacks_nothing_costs_none(how):
  *_, now = opened(sparsity__omitted_forward=how)
  assert 'damage' not in now.chosen.telemetry
