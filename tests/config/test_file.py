"""What is read of files and of the command line."""

import json

import pytest

from configs import base
from satjax import errors
from satjax.config import file as config_file


def override(*arguments):
  given = [f'--config.{argument}' for argument in arguments]
  return config_file.override(base.get_config(), given)


@pytest.mark.parametrize(
  'argument, value',
  [
    ('train.num_steps=12', 12),
    ('train.eval_every=0.5', 0.5),
    ('optimizer.peak_lr=auto', 'auto'),
    ('optimizer.peak_lr=1e-5', 1e-5),
    ('optimizer.schedule=wsd', 'wsd'),
    ('model.tied=true', True),
    ('model.scan=False', False),
    ('model.init_from=7', '7'),
    ('data.train=stdlib:docs', ('stdlib:docs',)),
    ("data.train=(('text:a', 0.5), 'text:b')", (('text:a', 0.5), 'text:b')),
    ('growth.hops=()', ()),
    ('lora.alpha=8', 8),
    ('sparsity.importance=maxip', 'maxip'),
    ('sparsity.layer_scale=depth', 'depth'),
    ('sparsity.layer_scale=(1, 0.5)', (1, 0.5)),
  ],
)
def test_overrides_are_read_as_their_key_wants_them(argument, value):
  group, key = argument.partition('=')[0].split('.')
  assert override(argument)[group][key] == value


@pytest.mark.parametrize(
  'key, value',
  [
    ('omitted_forward', {'layers': 'exact', 'mlp': 'skip'}),
    ('importance', {'layers': 'cyclic'}),
    ('layer_scale', {'layers': 'depth', 'heads': (1.0, 0.5)}),
  ],
)
def test_a_setting_is_given_by_axis_on_the_command_line(key, value):
  found = override(f'sparsity.{key}={value}').to_dict()
  assert found['sparsity'][key] == value


KEY = '--config.sparsity.omitted_forward'


@pytest.mark.parametrize(
  'argument',
  [
    "sparsity.omitted_forward={'layers': exact}",
    "sparsity.omitted_forward={'layers'}",
    "sparsity.omitted_forward={[]: 'exact'}",
    "sparsity.omitted_forward={'la.yers': 'exact'}",
    'sparsity.omitted_forward={}',
    "sparsity.omitted_forward={1: 'exact'}",
  ],
)
def test_what_is_no_mapping_of_axes_is_refused(argument):
  given = [f'--config.{argument}', '--config.sparsity.layer_rate=0.5']
  with pytest.raises(errors.ConfigError, match='heads.*mlp.*layers'):
    config_file.load('configs/base.py', given)


def test_an_axis_that_is_given_twice_is_refused():
  given = "{'layers': 'exact', 'layers': 'skip'}"
  with pytest.raises(errors.ConfigError, match="has 'layers' twice"):
    config_file.load('configs/base.py', [f'{KEY}={given}'])


@pytest.mark.parametrize('before', ['skip', "{'mlp': 'mean'}"])
def test_one_axis_is_no_key_of_its_own(before):
  given = [f'sparsity.omitted_forward={before}']
  given += ['sparsity.omitted_forward.layers=exact']
  with pytest.raises(errors.ConfigError, match="forward=\"{'layers': VALUE}"):
    override(*given)


def test_steps_take_the_place_of_a_share(tmp_path):
  given = ['--config.train.eval_every=0', '--config.optimizer.warmup_steps=12']
  found = config_file.load('configs/cpt.py', given)
  assert (found.train.eval_every, found.optimizer.warmup_steps) == (0, 12)


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch, capsys):
  expected = config_file.load('configs/tiny.py')
  assert capsys.readouterr().err == ''
  monkeypatch.chdir(tmp_path)
  assert config_file.load('configs/tiny.py') == expected
  shipped = config_file.RECIPES / 'tiny.py'
  assert f'configs/tiny.py is not here; {shipped} is' in capsys.readouterr().err
  (tmp_path / 'configs').mkdir()
  own = 'def get_config(): raise ValueError("mine")'
  (tmp_path / 'configs/tiny.py').write_text(own)
  with pytest.raises(errors.ConfigError, match='mine'):
    config_file.load('configs/tiny.py')
  for path in ('configs/none.py', 'tiny.py', 'other/tiny.py'):
    with pytest.raises(errors.ConfigError, match='comes with satjax: .*tiny'):
      config_file.load(path)


def test_a_key_is_given_once():
  with pytest.raises(errors.ConfigError, match='num_steps is given twice'):
    override('train.num_steps=1', 'train.seed=1', 'train.num_steps=2')


def test_a_json_file_says_everything_once(tmp_path):
  file = tmp_path / 'run.json'
  file.write_text('{"train": {"num_steps": 1, "num_steps": 2}}')
  with pytest.raises(errors.ConfigError, match="'num_steps' twice"):
    config_file.load(str(file))


@pytest.fixture
def older(tmp_path):
  """The record of a run that held its rate, under a schedule with decay."""
  values = config_file.load('configs/tiny.py').to_dict()
  values['optimizer'] |= {'schedule': 'wsd', 'decay_steps': 0}
  values['sparsity']['head_rate'] = 0.95  # of 4 heads
  file = tmp_path / 'config.json'
  file.write_text(json.dumps({'version': 1, **values}))
  return file


def test_a_run_stays_as_it_began(older):
  found = config_file.read_json(older)
  assert found.optimizer.schedule == 'constant'
  assert found.sparsity.head_rate == 0.95


def test_another_run_decays_if_its_schedule_does(older):
  change = ['--config.sparsity.head_rate=0.5']
  assert config_file.load(str(older), change).optimizer.decay_steps == 12


@pytest.mark.parametrize('rate, expected', [(0.0, 'exact'), (0.25, 'skip')])
def test_what_a_dense_run_never_left_out_is_no_choice(tmp_path, rate, expected):
  values = config_file.load('configs/tiny.py').to_dict()
  values['sparsity'] |= {'omitted_forward': 'skip', 'head_rate': rate}
  values['sparsity']['channel_rate'] = 0.0
  file = tmp_path / 'config.json'
  file.write_text(json.dumps({'version': 3, **values}))
  change = ['--config.sparsity.head_rate=0.5']
  found = config_file.load(str(file), change).sparsity
  assert found.omitted_forward == expected
  assert config_file.read_json(file).sparsity.omitted_forward == 'skip'
