"""A run is whole without the folder, base and tokenizer that it came from."""

import dataclasses
import json
import shutil

import jax
import pytest

from satjax import cli, errors
from satjax.config.run import Config
from satjax.data.tokenizers import ByteTokenizer
from satjax.interop import models
from satjax.train import kept, loop, saved, workdir
from tests import models as small_models
from tests.train.test_loop import losses, small


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """One, so that programs compile quickly."""
  one = jax.devices()[:1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda: one)
    yield


def make(train='jsonl:chats.jsonl', base='base', steps=2):
  """A run of relative paths."""
  values = small(num_steps=steps).to_dict()
  values['model'] |= {'init_from': base, 'dtype': 'float32'}
  values['optimizer'] |= {'schedule': 'constant', 'warmup_steps': 1}
  values['data'] |= {
    'train': (train,),
    'eval': (train,),
    'tokenizer': f'hf:{base}',
    'held_out': 0.3,
  }
  return models.resolve(Config.from_dict(values))


def write_project(folder):
  """A base model with its tokenizer, and text."""
  model = small_models.make(vocab_size=258)
  params = small_models.make_params(model)
  folder.mkdir()
  models.save(
    models.Model(model, params), folder / 'base', tokenizer=ByteTokenizer()
  )
  lines = [{'prompt': f'ask {n}', 'answer': f'{n} ' * 9} for n in range(40)]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'chats.jsonl').write_text(text)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A project with a finished run."""
  folder = tmp_path_factory.mktemp('kept') / 'project'
  write_project(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    loop.train(make(), 'run')
  return folder


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
  """A copy of it, where it was; this process is elsewhere."""
  away = trained.with_name('away')
  monkeypatch.chdir(tmp_path)
  yield trained
  if away.exists():
    away.rename(trained / 'base')


def test_the_workdir_holds_tokenizer_base_and_folder(trained):
  run = trained / 'run'
  for name, content in ByteTokenizer().files().items():
    assert (run / 'tokenizer' / name).read_bytes() == content
  base = trained / 'base' / 'config.json'
  assert (run / 'base' / 'config.json').read_bytes() == base.read_bytes()
  assert json.loads((run / 'paths.json').read_text())['folder'] == str(trained)
  # What was typed stays, for whoever reads it.
  assert workdir.read_config(run).data.train == ('jsonl:chats.jsonl',)


def test_its_model_opens_from_any_folder_after_its_base_has_moved(
  project, tmp_path, capsys
):
  (project / 'base').rename(project.with_name('away'))
  run = f'--workdir={project / "run"}'
  assert cli.main(['generate', run, '--prompt=a', '--max_tokens=2']) == 0
  assert cli.main(['export', run, f'--out={tmp_path / "out"}']) == 0
  capsys.readouterr()
  assert cli.main(['evaluate', run]) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert [*result['eval']] == [f'jsonl:{project / "chats.jsonl"}']
  spec = f'hf:{project.with_name("away")}'
  assert saved.restore(project / 'run', tokenizer=spec).tokenizer.name == spec


def test_the_same_file_here_is_not_taken_for_that_of_the_run(project, tmp_path):
  (tmp_path / 'chats.jsonl').write_text('{"text": "another"}\n')
  config = workdir.read_config(project / 'run')
  found = kept.opened(project / 'run', config)
  assert found.data.train == (f'jsonl:{project / "chats.jsonl"}',)


@pytest.mark.parametrize('how', ['from elsewhere', 'moved', 'linked', 'alone'])
def test_a_run_goes_on_wherever_it_is(project, tmp_path, monkeypatch, how):
  folder, config = tmp_path / 'copy', make_longer(project)
  shutil.copytree(project / 'run', folder / 'run', symlinks=True)
  run = folder / 'run'
  if how == 'moved':  # with all that it came from
    shutil.copytree(project / 'base', folder / 'base')
    shutil.copy(project / 'chats.jsonl', folder)
    monkeypatch.chdir(folder)
  elif how == 'linked':
    run = tmp_path / 'link'
    run.symlink_to(folder / 'run')
  elif how == 'alone':  # with its text, and without its base
    (project / 'base').rename(project.with_name('away'))
  loop.train(config, run)
  assert sorted(losses(run)) == [1, 2, 3]
  names = {name for line in read(run) for name in line if 'eval/' in name}
  assert names == {'eval/jsonl:chats.jsonl/loss'}
  where = json.loads((run / 'paths.json').read_text())['folder']
  assert where == str(folder if how == 'moved' else project)


def make_longer(project):
  """The run's configuration, but for its length, as a user would give it."""
  values = workdir.read_config(project / 'run').to_dict()
  values['train']['num_steps'] = 3
  return Config.from_dict(values)


def read(run):
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  return map(json.loads, lines)


def test_a_tokenizer_that_is_left_open_is_that_of_the_run(project, monkeypatch):
  monkeypatch.chdir(project)
  old = make()
  data = dataclasses.replace(old.data, tokenizer='auto')
  asked = dataclasses.replace(old, data=data)
  assert kept.resumed('run', old, asked)[0] == old


def test_other_text_or_another_kind_of_it_is_refused(project, tmp_path):
  run = shutil.copytree(project / 'run', tmp_path / 'run')
  config = workdir.read_config(run)
  for train in ('text:chats.jsonl', 'stdlib:docs'):
    values = config.to_dict()
    values['data']['train'] = (train,)
    with pytest.raises(errors.ConfigError, match='data.train'):
      loop.train(Config.from_dict(values), run)
  (tmp_path / 'chats.jsonl').write_text('{"text": "another"}\n' * 40)
  with pytest.raises(errors.DataError, match='data has changed'):
    loop.train(config, run)


def test_a_run_without_what_is_kept_opens_as_before(project, monkeypatch):
  for name in ('tokenizer', 'base', 'paths.json'):
    (project / 'run' / name).rename(project / name.replace('base', 'kept'))
  try:
    with pytest.raises(errors.ConfigError, match='cannot be read'):
      saved.restore(project / 'run')
    monkeypatch.chdir(project)
    assert saved.restore('run').step == 2
  finally:
    for name in ('tokenizer', 'base', 'paths.json'):
      (project / name.replace('base', 'kept')).rename(project / 'run' / name)


def test_globs_and_weights_are_followed_and_names_are_not():
  config = small()
  values = config.to_dict()
  values['data'] |= {
    'train': (('text:books/*.txt', 2.0), 'tokens:table', 'tfds:x?train[:5]'),
    'eval': ('stdlib:docs',),
    'tokenizer': 'sentencepiece:a.model',
  }
  asked = []
  found = kept._with_paths(
    Config.from_dict(values),
    lambda path, is_glob: asked.append((path, is_glob)) or f'/{path}',
  )
  assert found.data.train == (
    ('text:/books/*.txt', 2.0),
    'tokens:/table',
    'tfds:/x?train[:5]',
  )
  assert found.data.eval == ('stdlib:docs',)
  assert found.data.tokenizer == 'sentencepiece:/a.model'
  assert dict(asked)['books/*.txt'] and not dict(asked)['table']
