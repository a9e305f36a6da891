"""Workdirs that earlier versions wrote still open, and go on."""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest

from satjax import cli, errors
from satjax.config import history
from satjax.lab.report import runs
from satjax.train import loop, metrics, saved, workdir

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A run of 20 steps, stopped after 11 within a window, grown after 6.

  Written before config.json had a version; with the text that it reads, and
  the losses of the steps that followed, up to the next selection.
  """
  with tarfile.open(FIXTURES / 'run_without_version.tar.gz') as archive:
    archive.extractall(tmp_path, filter='data')
  monkeypatch.chdir(tmp_path)
  one = jax.devices()[:1]  # its batches are too small for eight
  monkeypatch.setattr(jax, 'devices', lambda: one)
  return tmp_path / 'run'


def test_a_run_goes_on_where_it_was(folder):
  config = workdir.read_config(folder)
  records = loop.train(config, folder)
  losses = {r['step']: r['train/loss'] for r in records if 'train/loss' in r}
  assert sorted(losses) == list(range(1, 21))
  after = json.loads(pathlib.Path('losses_after.json').read_text())
  for step, loss in after.items():
    np.testing.assert_allclose(losses[int(step)], loss, rtol=1e-4)
  written = json.loads((folder / 'config.json').read_text())
  assert written['version'] == history.VERSION
  assert workdir.read_config(folder) == config


@pytest.mark.parametrize(
  ('step', 'number', 'layers'),
  [(None, 11, 4), ('before_growth:6', 6, 2), ('after_growth:6', 6, 4)],
)
def test_its_models_open(folder, step, number, layers):
  found = saved.restore(folder, step)
  assert (found.step, found.model.config.num_layers) == (number, layers)


def test_the_command_line_and_the_report_open_it(folder, capsys):
  assert cli.main(['evaluate', f'--workdir={folder}']) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  before = next(r for r in metrics.read(folder) if 'growth/loss_after' in r)
  (found,) = result['eval'].values()
  assert found['loss'] < before['growth/loss_after']
  (run,) = runs.read([folder])
  assert run.config['sparsity']['head_rate'] == 0.5


def test_a_key_that_came_later_has_the_default_of_the_day_it_came(
  folder, monkeypatch
):
  path = folder / 'config.json'
  values = json.loads(path.read_text())
  del values['train']['loss_chunk'], values['sparsity']['probe']
  path.write_text(json.dumps(values))
  with pytest.raises(errors.ConfigError, match=r'train\.loss_chunk is missing'):
    workdir.read_config(folder)
  added = (1, 'train.loss_chunk', 7), (2, 'sparsity.probe', 0.25)
  monkeypatch.setattr(history, 'ADDED', (*history.ADDED, *added))
  monkeypatch.setattr(history, 'VERSION', 2)
  config = workdir.read_config(folder)
  assert (config.train.loss_chunk, config.sparsity.probe) == (7, 0.25)
  # A file of version 1 must have what version 1 brought.
  path.write_text(json.dumps(values | {'version': 1}))
  with pytest.raises(errors.ConfigError, match=r'train\.loss_chunk is missing'):
    workdir.read_config(folder)


@pytest.mark.parametrize('version', [0, 1])
def test_plain_chats_of_an_older_run_are_written_as_they_were(folder, version):
  path = folder / 'config.json'
  values = workdir.read_config(folder).to_dict() | {'version': version}
  for before, now in (('plain', 'bare'), ('chatml', 'chatml')):
    values['data']['template'] = before
    path.write_text(json.dumps(values))
    assert workdir.read_config(folder).data.template == now
  values |= {'version': history.VERSION}
  values['data']['template'] = 'plain'
  path.write_text(json.dumps(values))
  assert workdir.read_config(folder).data.template == 'plain'


@pytest.mark.parametrize('version', [99, 'x', None, 1.5, True])
def test_a_later_or_damaged_version_is_refused(folder, version):
  path = folder / 'config.json'
  values = json.loads(path.read_text()) | {'version': version}
  path.write_text(json.dumps(values))
  with pytest.raises(errors.ConfigError, match='upgrade satjax'):
    workdir.read_config(folder)


def test_a_removed_key_is_refused_by_name_with_what_to_do(folder, monkeypatch):
  path = folder / 'config.json'
  values = json.loads(path.read_text())
  values['sparsity']['anneal'] = 3
  path.write_text(json.dumps(values))
  monkeypatch.setitem(history.REMOVED, 'sparsity.anneal', 'use rungs instead')
  with pytest.raises(errors.ConfigError) as caught:
    workdir.read_config(folder)
  for part in ('config.sparsity.anneal', 'use rungs instead'):
    assert part in str(caught.value)


def test_a_removed_option_of_an_operator_is_refused_alike(folder):
  path = folder / 'config.json'
  values = json.loads(path.read_text())
  options = {'width_factor': 2, 'faithful_to_release': True}
  values['growth']['hops'] = [[768, 'direct', options]]
  path.write_text(json.dumps(values))
  with pytest.raises(errors.ConfigError) as caught:
    workdir.read_config(folder)
  for part in ('faithful_to_release is no longer', 'leave it out'):
    assert part in str(caught.value)


def test_names_made_from_a_configuration_outlive_new_keys(folder, monkeypatch):
  values = workdir.read_config(folder).to_dict()
  old = {group: dict(keys) for group, keys in values.items()}
  del old['train']['loss_chunk']
  monkeypatch.setattr(history, 'ADDED', ((2, 'train.loss_chunk', 0),))
  assert history.first_form(values) == old
  values['train']['loss_chunk'] = 5
  assert history.first_form(values) == values
