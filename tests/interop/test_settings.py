"""Commands plan and check the model that will train, and say what differs."""

import json
import pathlib
import shutil

import pytest

from satjax import cli, errors
from satjax.config import file as config_file
from satjax.data import tokenizers
from satjax.interop import llama, settings
from satjax.lab.experiment import spec
from tests import models
from tests.data import subword_samples

SMOL = {
  'num_layers': 30,
  'embed_dim': 576,
  'num_heads': 9,
  'num_kv_heads': 3,
  'head_dim': 64,
  'mlp_dim': 1536,
  'vocab_size': 49152,
  'tied': True,
  'rope_theta': 100_000.0,
}


@pytest.fixture
def smol(tmp_path):
  """A directory with the shape of SmolLM2-135M, and no weights."""
  values = llama.describe(models.make(**SMOL), 'float32', 8192)
  (tmp_path / 'smol').mkdir()
  (tmp_path / 'smol/config.json').write_text(json.dumps(values))
  return str(tmp_path / 'smol')


@pytest.mark.parametrize('name', ['tinyllama_1b_cpt', 'schedules', 'cpt'])
def test_shipped_configs_fit_another_model(name, smol, capsys):
  config = settings.load(
    f'configs/{name}.py',
    [f'--config.model.init_from={smol}', '--config.train.num_steps=30'],
  )
  assert {key: getattr(config.model, key) for key in SMOL} == SMOL
  error = capsys.readouterr().err
  assert 'head_rate 0.5 becomes 0.333333: 9 heads' in error
  assert 'channel_rate' not in error


@pytest.mark.parametrize(
  'name', sorted(p.stem for p in pathlib.Path('configs').glob('[!_]*.py'))
)
@pytest.mark.parametrize('tied', [False, True])
def test_every_config_reads_as_the_model_does(name, tied, tmp_path):
  tokenizer = tokenizers.get_tokenizer(subword_samples.write(tmp_path)['llama'])
  values = llama.describe(
    models.make(**{**SMOL, 'vocab_size': 1024, 'tied': tied}), 'float32', 8192
  )
  for file, content in tokenizer.files().items():
    (tmp_path / file).write_bytes(content)
  (tmp_path / 'config.json').write_text(json.dumps(values))
  config = settings.load(
    f'configs/{name}.py', [f'--config.model.init_from={tmp_path}']
  )
  assert config.data.tokenizer == f'hf:{tmp_path}'
  assert (config.model.num_heads, config.model.tied) == (9, tied)
  given = ['--config.data.tokenizer=byte']
  again = settings.load(f'configs/{name}.py', given, begun=config)
  assert again.data.tokenizer == 'byte'
  again = settings.load(f'configs/{name}.py', begun=config)
  assert again.data.tokenizer == config.data.tokenizer


def test_a_model_of_bytes_reads_bytes(smol):
  config = settings.load(
    'configs/base.py', [f'--config.model.init_from={smol}']
  )
  assert config.data.tokenizer == 'byte'
  assert settings.load('configs/base.py').data.tokenizer == 'byte'


def test_the_plan_is_of_the_model_that_will_train(smol, capsys):
  plan = ['plan', '--config=configs/tiny.py', '--config.growth.hops=()']
  rates = ['--config.sparsity.head_rate=0.333333']
  assert cli.main([*plan, *rates, f'--config.model.init_from={smol}']) == 0
  out, error = capsys.readouterr()
  assert '| 30 | 576 | all | 6 | 768 |' in out
  assert 'head_rate' not in error


@pytest.mark.parametrize(
  'rate, said', [('0.1', 'nothing'), ('0.9', 'all'), ('1', 'below 1')]
)
def test_a_rate_that_leaves_out_nothing_or_all_is_refused(rate, said, smol):
  with pytest.raises(errors.ConfigError, match=said):
    settings.load(
      'configs/cpt.py',
      [
        f'--config.model.init_from={smol}',
        f'--config.sparsity.head_rate={rate}',
      ],
    )


def test_a_shape_that_is_written_is_no_reason_to_refuse(smol, tmp_path):
  # 5 heads share no 4 key/value heads; the directory has others.
  file = tmp_path / 'mine.py'
  file.write_text(
    'from configs import cpt\n\n\ndef get_config():\n'
    '  config = cpt.get_config()\n'
    '  config.model.num_heads, config.model.num_kv_heads = 5, 4\n'
    f'  config.model.init_from = {smol!r}\n'
    '  return config\n'
  )
  assert settings.load(str(file)).model.num_heads == 9
  with pytest.raises(errors.ConfigError, match='num_heads 5'):
    config_file.load(str(file))


def test_a_directory_that_is_none_is_bad_data(tmp_path):
  with pytest.raises(errors.DataError):
    settings.load(
      'configs/cpt.py', [f'--config.model.init_from={tmp_path / "none"}']
    )


def test_a_run_that_goes_on_keeps_its_shape_and_numbers(smol, capsys):
  given = [f'--config.model.init_from={smol}']
  first = settings.load('configs/cpt.py', given)
  shutil.rmtree(smol)
  capsys.readouterr()
  longer = [*given, '--config.train.num_steps=300']
  again = settings.load('configs/cpt.py', longer, first)
  assert again.changes(first) == {
    'train.num_steps': (300, 200),
    'optimizer.decay_steps': (60, 40),  # still to come: of the longer run
  }
  assert 'peak_lr' not in capsys.readouterr().err


@pytest.mark.parametrize(
  'overrides, said',
  [
    (['sparsity.rungs=8'], 'sparsity.rungs 8 has no effect'),
    (
      [
        'sparsity.head_rate=0.5',
        'sparsity.importance=uniform',
        'sparsity.omitted_forward=exact',
        'sparsity.probe=0.5',
      ],
      'sparsity.probe 0.5 has no effect',
    ),
    (['sparsity.embed=rest'], 'all rates of sparsity are 0'),
    (['sparsity.dense_layers=(1, 1)'], 'all rates of sparsity are 0'),
    (
      ['sparsity.head_rate=0.5', "sparsity.importance={'layers': 'cyclic'}"],
      "importance 'cyclic' of 'layers' has no effect: sparsity.layer_rate is 0",
    ),
    (
      ['sparsity.layer_rate=0.5']
      + ["sparsity.omitted_forward={'layers': 'exact', 'mlp': 'mean'}"],
      "'mean' of 'mlp' has no effect: sparsity.channel_rate is 0",
    ),
    (
      ['sparsity.layer_rate=0.5', "sparsity.layer_scale={'heads': 'depth'}"],
      "'depth' of 'heads' has no effect: sparsity.head_rate is 0",
    ),
    (
      ['sparsity.layer_rate=0.5', 'sparsity.importance=cyclic']
      + ['sparsity.selection=top_k'],
      "selection 'top_k' has no effect",
    ),
    (
      ['sparsity.layer_rate=0.5', 'sparsity.importance=uniform']
      + ['sparsity.temperature=2'],
      'temperature 2.0 has no effect',
    ),
    (
      ['sparsity.layer_rate=0.5', 'sparsity.rescale=inverse'],
      'only layers are left out',
    ),
    (['lora.alpha=8'], 'lora.rank is 0'),
    (['growth.opt_state=reset'], 'growth.hops is ()'),
    (['optimizer.name=lion', 'optimizer.eps=1e-5'], "optimizer.name is 'lion'"),
    (['optimizer.schedule=constant', 'optimizer.end_lr=1e-5'], 'end_lr 1e-05'),
  ],
)
def test_a_setting_without_effect_is_not_silent(overrides, said, capsys):
  settings.load('configs/base.py', [f'--config.{one}' for one in overrides])
  assert said in capsys.readouterr().err


def test_defaults_and_what_has_an_effect_are_silent(capsys):
  given = ['sparsity.head_rate=0.5', 'sparsity.rungs=2', 'growth.hops=()']
  settings.load('configs/base.py', [f'--config.{one}' for one in given])
  assert not capsys.readouterr().err


def test_an_experiment_is_of_the_model_that_it_is_given(smol):
  given = [f'--config.model.init_from={smol}']
  found = spec.load('experiments/sat_sft.py', 'paper', given)
  assert found.scenario.config.model.num_layers == 30
  with pytest.raises(errors.ConfigError, match='leave it out'):
    spec.load('experiments/sat_sft.py', 'smoke', given)
