"""A batch of which the loss counts no token has no loss, and moves nothing."""

import json
import math

import jax
import numpy as np
import pytest

from satjax.config import stages
from satjax.config.run import Config
from satjax.data import pipeline
from satjax.train import evaluation, loop, window
from satjax.train import setup as setup_lib
from tests.train import helpers
from tests.train.test_loop import read_record, small

SPARSE = {'sparsity__head_rate': 0.5, 'sparsity__channel_rate': 0.5}
DECAYED = SPARSE | {'sparsity__omitted': 'decayed'}


@pytest.mark.parametrize(
  'options',
  [
    pytest.param({}, id='dense'),
    pytest.param(DECAYED, id='compact'),
    pytest.param(DECAYED | {'sparsity__execution': 'masked'}, id='masked'),
  ],
)
def test_the_step_counts_and_nothing_moves(options):
  config = helpers.make_config(**options, sparsity__refresh_every=6)
  setup = helpers.one_device(config)
  now = window.first(setup, helpers.initial_state(setup))
  step = jax.jit(setup_lib.make_step(setup), donate_argnums=0)
  for number in range(2):
    batch = setup.put_batch(helpers.random_batch(config, number))
    now = window.turn_over(setup, now, number, batch, weighs=False)
    with jax.sharding.set_mesh(setup.mesh):
      now.state, _ = step(now.state, batch, now.forward_extra)
  before = jax.device_get(window.whole(setup, now, 2))
  window.pass_over(setup, now, 2)
  after = jax.device_get(window.whole(setup, now, 3))
  assert after.step == 3
  jax.tree.map(
    np.testing.assert_array_equal, after, before.replace(step=after.step)
  )
  with jax.sharding.set_mesh(setup.mesh):
    now.state, _ = step(now.state, batch, now.forward_extra)
  assert window.whole(setup, now, 4).step == 4


def test_a_run_goes_on_and_its_log_is_json(tmp_path, monkeypatch):
  iterate = pipeline.Batches.iterate

  def third_is_empty(self, start, **options):
    for number, batch in enumerate(iterate(self, start, **options), start):
      keep = np.float32(number != 2)
      yield {**batch, 'weights': batch['weights'] * keep}

  monkeypatch.setattr(pipeline.Batches, 'iterate', third_is_empty)
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda: one)
  folders = [tmp_path / 'two', tmp_path / 'three']
  for number, folder in enumerate(folders, 2):
    values = small(num_steps=number, microbatch_size=4).to_dict()
    values['optimizer'] |= {'schedule': 'constant'}
    loop.train(Config.from_dict(values), folder)
  two, three = (
    read_record(folder / 'checkpoints' / str(number))['fingerprint']
    for number, folder in enumerate(folders, 2)
  )
  assert {n for n in two if two[n] != three[n]} == {'state/step'}

  def refuse(word):
    raise AssertionError(f'{word} is no JSON')

  lines = (folders[1] / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line, parse_constant=refuse) for line in lines]
  found = [r['train/loss'] for r in records]
  assert found[2] is None and all(x > 0 for x in found[:2])
  assert records[2]['train/grad_norm'] is None


def test_the_loss_of_nothing_is_not_a_number():
  config = helpers.make_config()
  setup = helpers.one_device(config)
  batch = helpers.random_batch(config, 0)
  batch['weights'] *= 0
  stage, params = stages.stages(config)[0], helpers.initial_state(setup).params
  loss = evaluation.mean_loss(setup.mesh, stage, params, [batch])
  assert math.isnan(loss)
