"""Models by the hub's names, out of a cache as its library lays it out."""

from huggingface_hub import constants
import pytest

from satjax import cli, errors, hub
from satjax.data import tokenizers
from satjax.interop import huggingface, models
from tests import models as small

NAME = 'makers/little-model'


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A cache that holds two revisions of one model; nothing is asked for."""
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', tmp_path)
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  root = tmp_path / 'models--makers--little-model'
  for revision, tied in (('a' * 40, False), ('b' * 40, True)):
    model = small.make(tied=tied, vocab_size=258)
    snapshot = root / 'snapshots' / revision
    huggingface.save(
      snapshot,
      model,
      small.make_params(model),
      tokenizer=tokenizers.ByteTokenizer(),
    )
    for file in list(snapshot.iterdir()):
      blob = root / 'blobs' / f'{revision[0]}-{file.name}'
      blob.parent.mkdir(exist_ok=True)
      file.rename(blob)
      file.symlink_to(blob)
  (root / 'refs').mkdir()
  (root / 'refs' / 'main').write_text('a' * 40)
  return tmp_path


def test_a_name_is_where_its_files_are(cache):
  assert models.load(NAME).config.tied is False
  assert models.load(f'{NAME}@{"b" * 40}').config.tied is True
  assert hub.local(NAME).name == 'a' * 40


def test_a_name_serves_wherever_a_directory_does(cache, capsys):
  assert tokenizers.get_tokenizer(f'hf:{NAME}').encode('a').tolist() == [97]
  assert cli.main(['inspect', f'--model={NAME}']) == 0
  generate = ['generate', '--prompt=a', '--max_tokens=2']
  assert cli.main([*generate, f'--model={NAME}']) == 0
  assert cli.main(['fetch', NAME, f'--out={cache / "out"}']) == 0
  assert not (cache / 'out' / 'config.json').is_symlink()
  assert models.load(cache / 'out').config == models.load(NAME).config


def test_a_name_serves_as_the_start_of_a_run(cache, tmp_path):
  code = cli.main(
    [
      'train',
      '--config=configs/tiny.py',
      f'--workdir={tmp_path / "run"}',
      f'--config.model.init_from={NAME}',
      '--config.model.scan=False',
      '--config.growth.hops=()',
      '--config.sparsity.head_rate=0.0',
      '--config.sparsity.channel_rate=0.0',
      '--config.train.num_steps=2',
      '--config.train.batch_size=8',
      '--config.train.eval_every=0',
      '--config.optimizer.warmup_steps=1',
    ]
  )
  assert code == 0


@pytest.mark.parametrize('name', ['makers/none', f'{NAME}@v2', 'models/typo'])
def test_what_is_nowhere_is_named(cache, name, capsys):
  with pytest.raises(errors.ConfigError, match='no path here'):
    hub.local(name)
  assert cli.main(['inspect', f'--model={name}']) == 78
  assert f'{name} is no path here' in capsys.readouterr().err


def test_a_link_elsewhere_is_still_refused(cache, tmp_path):
  snapshot = hub.local(NAME)
  (snapshot / 'config.json').unlink()
  (tmp_path / 'other').mkdir()
  stray = tmp_path / 'other' / 'config.json'
  stray.write_text('{}')
  (snapshot / 'config.json').symlink_to(stray)
  with pytest.raises(errors.DataError, match='leaves the directory'):
    models.load(NAME)


def test_paths_are_left_alone(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'makers' / 'little-model').mkdir(parents=True)
  assert str(hub.local(NAME)) == NAME
  assert not hub.is_id('./models/none') and not hub.is_id('/a/b')
  assert not hub.is_id('one') and not hub.is_id('one/two/three')
  assert hub.is_id('one/two/three.gguf@main')
