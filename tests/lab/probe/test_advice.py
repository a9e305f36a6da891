"""A run that leaves out what it cannot do without is told what would do."""

import json

import jax
import pytest

from satjax import cli
from satjax.config import allocation
from satjax.lab.probe import advice
from satjax.train import loop
from tests.train import helpers

CUT = {
  'sparsity__head_rate': 0.5,
  'sparsity__channel_rate': 0.5,
  'sparsity__omitted_forward': 'skip',
  'train__num_steps': 8,
  'train__batch_size': 8,
  'train__eval_every': 0,
  'data__eval': (),
}


@pytest.fixture
def warned(tmp_path, monkeypatch, caplog):
  """Warnings of a run, where any damage is too much; and its folder."""
  monkeypatch.setattr(loop, 'MOST_DAMAGE', -100.0)

  def train(advise, **options):
    config = helpers.make_config(**(CUT | options))
    loop.train(config, tmp_path / 'run', advise)
    return [
      record.getMessage()
      for record in caplog.records
      if 'nats a token at once' in record.getMessage()
    ]

  return train, tmp_path / 'run'


def test_it_is_said_once_with_rates_that_save_as_much(
  warned, monkeypatch, capsys
):
  make, one = loop.setup_lib.make_setup, jax.devices()[:1]
  monkeypatch.setattr(
    loop.setup_lib, 'make_setup', lambda config, on=one: make(config, on)
  )
  train, folder = warned
  (said,) = train(advice.better)
  file = folder / 'allocation.json'
  assert said.startswith('step 0: leaving out so much raises the loss by')
  assert f'--allocation={file}' in said
  found = allocation.read(str(file))
  assert found['sparsity'].keys() >= {'head_rate', 'channel_rate'}
  plan = [f'--config={folder / "config.json"}', f'--allocation={file}']
  assert cli.main(['plan', *plan]) == 0
  assert 'where it was probed' not in capsys.readouterr().err
  assert json.loads(file.read_text())['model']['num_layers'] == 2


@pytest.mark.slow
def test_on_several_devices_a_probe_is_named(warned):
  train, folder = warned
  assert jax.device_count() == 8
  (said,) = train(advice.better, mesh__data=4, mesh__fsdp=2)
  assert f'satjax probe --workdir={folder} --saving=0.' in said
  assert '--seq_len=' in said and '--channel_multiple=' in said
  assert not (folder / 'allocation.json').exists()


@pytest.mark.slow
def test_without_advice_rates_are_named(warned):
  train, _ = warned
  (said,) = train(None, sparsity__importance='uniform')
  assert said.endswith('channel_rate, layer_rate')
