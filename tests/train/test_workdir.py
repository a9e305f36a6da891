"""A workdir belongs to one process, and to one configuration."""

import json
import os
import subprocess
import sys

import pytest

from configs import tiny
from satjax import errors
from satjax.config.run import Config
from satjax.train import workdir


def make_config(**changes):
  """configs/tiny.py for two shards, with `group__key=value` changed."""
  values = tiny.get_config().to_dict()
  values['sparsity']['shards'] = 2
  for name, value in changes.items():
    group, key = name.split('__')
    assert key in values[group]
    values[group][key] = value
  return Config.from_dict(values)


def begin(folder):
  """A run that has logged its first steps."""
  with workdir.claim(folder, make_config()) as path:
    (path / 'metrics.jsonl').write_text('{"step": 1}\n')


def test_a_claim_makes_the_folder_and_writes_what_the_run_is(tmp_path):
  folder = tmp_path / 'deep' / 'run'
  with workdir.claim(folder, make_config()) as path:
    assert path == folder
  assert workdir.read_config(folder) == make_config()
  environment = json.loads((folder / 'environment.json').read_text())
  assert environment['packages']['jax']
  assert environment['devices'].endswith('x cpu')
  assert not list(folder.glob('*.tmp'))


def test_a_second_claim_is_refused_while_the_first_holds(tmp_path):
  with (
    workdir.claim(tmp_path, make_config()),
    pytest.raises(errors.StorageError, match='another process') as caught,
    workdir.claim(tmp_path, make_config()),
  ):
    pass
  assert str(tmp_path) in str(caught.value)
  with workdir.claim(tmp_path, make_config()):
    pass


def test_the_refused_claim_does_not_free_the_folder(tmp_path):
  with workdir.claim(tmp_path, make_config()):
    for _ in range(2):
      with (
        pytest.raises(errors.StorageError),
        workdir.claim(tmp_path, make_config()),
      ):
        pass


def test_an_error_in_the_run_frees_the_folder(tmp_path):
  with pytest.raises(KeyError), workdir.claim(tmp_path, make_config()):
    raise KeyError
  with workdir.claim(tmp_path, make_config()):
    pass


def test_another_process_is_refused_until_it_is_killed(tmp_path):
  program = (
    'import fcntl, sys, time\n'
    f'file = open({str(tmp_path / "lock")!r}, "w")\n'
    'fcntl.flock(file, fcntl.LOCK_EX)\n'
    'print("locked", flush=True)\n'
    'time.sleep(60)\n'
  )
  holder = subprocess.Popen(
    [sys.executable, '-c', program], stdout=subprocess.PIPE
  )
  try:
    assert holder.stdout.readline() == b'locked\n'
    with (
      pytest.raises(errors.StorageError, match='another process'),
      workdir.claim(tmp_path, make_config()),
    ):
      pass
  finally:
    holder.kill()
    holder.communicate()
  # The lock file is still there; its owner is not.
  assert (tmp_path / 'lock').exists()
  with workdir.claim(tmp_path, make_config()):
    pass


@pytest.mark.parametrize(
  'name, value, said',
  [
    ('model__num_layers', 3, 'config.model.num_layers: 2 -> 3'),
    ('optimizer__peak_lr', 0.5, 'config.optimizer.peak_lr: 0.001 -> 0.5'),
    ('sparsity__split', 0.75, 'config.sparsity.split: 0.5 -> 0.75'),
    ('model__dropout', 0.1, 'config.model.dropout: 0.0 -> 0.1'),
    ('data__seed', 1, 'config.data.seed: 0 -> 1'),
    ('data__held_out', 0.1, 'config.data.held_out: 0.05 -> 0.1'),
    ('data__test', 0.1, 'config.data.test: 0.0 -> 0.1'),
    ('train__batch_size', 8, 'config.train.batch_size: 4 -> 8'),
    ('growth__hops', (), 'config.growth.hops'),
  ],
)
def test_a_changed_setting_is_refused_by_name(tmp_path, name, value, said):
  begin(tmp_path)
  with (
    pytest.raises(errors.ConfigError) as caught,
    workdir.claim(tmp_path, make_config(**{name: value})),
  ):
    pass
  assert said in str(caught.value)
  # The old record stands, and the folder is free.
  assert workdir.read_config(tmp_path) == make_config()
  with workdir.claim(tmp_path, make_config()):
    pass


def test_every_changed_setting_is_listed(tmp_path):
  begin(tmp_path)
  changed = make_config(
    data__seed=1, train__seed=2, optimizer__b1=0.5, train__log_every=7
  )
  with (
    pytest.raises(errors.ConfigError) as caught,
    workdir.claim(tmp_path, changed),
  ):
    pass
  text = str(caught.value)
  for key in ('data.seed', 'train.seed', 'optimizer.b1'):
    assert f'config.{key}:' in text
  assert 'log_every' not in text


def test_before_a_run_has_begun_its_settings_may_change(tmp_path):
  with workdir.claim(tmp_path, make_config()):
    pass
  changed = make_config(model__num_layers=3)
  with workdir.claim(tmp_path, changed):
    pass
  assert workdir.read_config(tmp_path) == changed


def test_a_run_that_has_saved_has_begun(tmp_path):
  with workdir.claim(tmp_path, make_config()):
    pass
  # Its log is lost, its state is not.
  (tmp_path / 'checkpoints' / '5').mkdir(parents=True)
  with (
    pytest.raises(errors.ConfigError, match='data.seed'),
    workdir.claim(tmp_path, make_config(data__seed=1)),
  ):
    pass


FREE = {
  'model.attention': 'xla',
  'model.scan': False,
  'model.remat': 'minimal',
  'data.eval': ('stdlib:docs',),
  'train.loss_chunk': 64,
  'train.log_every': 7,
  'train.eval_every': 7,
  'train.eval_batches': 7,
  'train.checkpoint_every': 7,
  'train.keep_checkpoints': 7,
  'train.keep_best': 1,
  'train.sample_prompts': ('A question',),
  'train.sample_tokens': 7,
  'mesh.data': 1,
  'mesh.fsdp': 2,
  'mesh.tensor': 2,
}


def test_every_free_setting_is_tested():
  assert set(workdir._FREE) == set(FREE)


@pytest.mark.parametrize('path', FREE)
def test_a_free_setting_may_change(tmp_path, path):
  begin(tmp_path)
  changed = make_config(**{path.replace('.', '__'): FREE[path]})
  assert changed != make_config()
  with workdir.claim(tmp_path, changed):
    pass
  assert workdir.read_config(tmp_path) == changed


def test_a_file_is_not_a_workdir(tmp_path):
  (tmp_path / 'file').write_text('')
  for path in ('file', 'file/below'):
    with (
      pytest.raises(errors.StorageError, match='--workdir') as caught,
      workdir.claim(tmp_path / path, make_config()),
    ):
      pass
    assert str(tmp_path / path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_without_permission_is_refused(tmp_path):
  tmp_path.chmod(0o555)
  with (
    pytest.raises(errors.StorageError, match='Permission denied'),
    workdir.claim(tmp_path / 'run', make_config()),
  ):
    pass


def test_a_record_that_can_not_be_written_is_a_storage_error(
  tmp_path, monkeypatch
):
  def fail(source, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(workdir.os, 'replace', fail)
  with (
    pytest.raises(errors.StorageError, match='No space left'),
    workdir.claim(tmp_path, make_config()),
  ):
    pass


def test_a_folder_without_a_run_has_no_config(tmp_path):
  with pytest.raises(errors.ConfigError, match='no config.json') as caught:
    workdir.read_config(tmp_path)
  assert str(tmp_path) in str(caught.value)
  with pytest.raises(errors.ConfigError, match='not a workdir'):
    workdir.read_config(tmp_path / 'nowhere')


@pytest.mark.parametrize(
  'content, error, said',
  [
    (b'{', errors.DataError, 'not valid JSON'),
    (b'', errors.DataError, 'not valid JSON'),
    (b'\xff\xfe', errors.DataError, 'config.json'),
    (b'{}', errors.ConfigError, 'config.model is missing'),
    (b'[]', errors.ConfigError, 'a mapping of groups'),
    (b'null', errors.SatjaxError, 'config'),
    (b'7', errors.SatjaxError, 'config'),
  ],
)
def test_a_damaged_config_is_refused(tmp_path, content, error, said):
  (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(error, match=said):
    workdir.read_config(tmp_path)


@pytest.mark.parametrize(
  'program', ['/usr/bin/satjax', '/a/satjax/__main__.py']
)
def test_a_command_is_what_anybody_would_type(monkeypatch, program):
  monkeypatch.setattr(sys, 'argv', [program, 'train', '--workdir=runs/a'])
  assert workdir.command() == ['satjax', 'train', '--workdir=runs/a']
