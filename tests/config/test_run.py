"""Shipped configs build; wrong ones are refused in the user's words."""

import copy
import dataclasses
import functools
import importlib
import json
import math
import pathlib

import ml_collections
import pytest

from configs import base
from satjax import errors
from satjax.config import defaults, file, groups, history, run, schema
from satjax.config.run import Config
from satjax.sparsity import ladder

CONFIGS = sorted(
  path.stem
  for path in pathlib.Path(base.__file__).parent.glob('*.py')
  if path.stem != '__init__'
)
TOTAL_TOKENS = 1000 * 8 * 256  # num_steps x batch_size x seq_len of base.py
GONE = object()  # stands for a key that is left out


@functools.cache
def _base():
  return base.get_config().to_dict()


def with_values(changes):
  """The values of configs/base.py, with `{'group.key': value}` changed."""
  values = copy.deepcopy(_base())
  for path, value in changes.items():
    *groups, key = path.split('.')
    target = values
    for group in groups:
      target = target[group]
    if value is GONE:
      del target[key]
    else:
      target[key] = value
  return values


def refusal(values):
  with pytest.raises(errors.ConfigError) as caught:
    Config.from_dict(values)
  return str(caught.value)


@pytest.mark.parametrize('name', CONFIGS)
def test_shipped_config_builds(name):
  values = importlib.import_module(f'configs.{name}').get_config()
  config = Config.from_dict(values)
  for group, keys in config.to_dict().items():
    for key, value in keys.items():
      given = values[group][key]
      assert value == given or given == 'auto' or schema.is_share(given)
  assert Config.from_dict(config.to_dict()) == config


# (key, wrong value, what the error says is allowed)
WRONG_VALUES = [
  ('model.num_layers', 0, 'from 1 to below 10001'),
  ('model.num_layers', -3, 'from 1 to below 10001'),
  ('model.num_layers', 2.0, 'int'),
  ('model.num_layers', True, 'int'),
  ('model.num_layers', '2', 'int'),
  ('model.num_layers', None, 'int'),
  ('model.num_layers', math.nan, 'int'),
  ('model.embed_dim', 0, 'at least 1'),
  ('model.embed_dim', [64], 'int'),
  ('model.num_heads', 0, 'at least 1'),
  ('model.num_kv_heads', 0, 'at least 1'),
  ('model.head_dim', 15, 'even'),
  ('model.head_dim', 0, 'even, at least 2'),
  ('model.head_dim', -2, 'even, at least 2'),
  ('model.mlp_dim', -1, 'at least 1'),
  ('model.vocab_size', 1, 'at least 2'),
  ('model.tied', 1, 'bool'),
  ('model.tied', 'yes', 'bool'),
  ('model.rope_theta', 0, 'above 0'),
  ('model.rope_theta', math.inf, 'above 0'),
  ('model.norm_eps', 0.0, 'above 0'),
  ('model.norm_eps', math.nan, 'above 0'),
  ('model.dtype', 'float16', "'float32' | 'bfloat16'"),
  ('model.dtype', float, 'str'),
  ('model.dropout', 1.0, 'from 0 to below 1'),
  ('model.dropout', -0.1, 'from 0 to below 1'),
  ('model.scan', 0, 'bool'),
  ('model.remat', 'some', "'none' | 'minimal' | 'full'"),
  ('model.remat', True, 'str'),
  ('model.init_from', None, 'a model directory, or empty'),
  ('data.train', (), 'a tuple of sources'),
  ('data.train', 'stdlib:docs', 'tuple'),
  ('data.train', ('',), 'a tuple of sources'),
  ('data.train', (('stdlib:docs', 0),), 'weights above 0'),
  ('data.train', (('stdlib:docs', -1.0),), 'weights above 0'),
  ('data.train', (('stdlib:docs', math.inf),), 'weights above 0'),
  ('data.train', (('stdlib:docs', math.nan),), 'weights above 0'),
  ('data.train', (('stdlib:docs', True),), 'weights above 0'),
  ('data.train', (('stdlib:docs', 1, 2),), 'a tuple of sources'),
  ('data.train', ((1.0, 'stdlib:docs'),), 'a tuple of sources'),
  ('data.train', (1,), 'a tuple of sources'),
  ('data.eval', (None,), 'a tuple of sources'),
  ('data.seq_len', 1, 'from 2 to below'),
  ('data.seq_len', 256.0, 'int'),
  ('data.held_out', -0.1, 'from 0 to below 1'),
  ('data.held_out', 1.0, 'from 0 to below 1'),
  ('data.test', -0.1, 'from 0 to below 1'),
  ('data.test', 1.0, 'from 0 to below 1'),
  ('data.seed', -1, 'at least 0'),
  ('train.num_steps', 0, 'at least 1'),
  ('train.num_steps', 1e3, 'int'),
  ('train.batch_size', 0, 'at least 1'),
  ('train.microbatch_size', -1, 'at least 0'),
  ('train.seed', '0', 'int'),
  ('train.log_every', 0, 'at least 1'),
  ('train.eval_every', -1, 'at least 0'),
  ('train.eval_batches', 0, 'at least 1'),
  ('train.checkpoint_every', False, 'int'),
  ('train.keep_checkpoints', 0, 'at least 1'),
  ('optimizer.name', 'adam', "'adamw'"),
  ('optimizer.schedule', 'linear', "'cosine' | 'wsd' | 'constant'"),
  ('optimizer.peak_lr', 0.0, 'above 0'),
  ('optimizer.peak_lr', -1e-3, 'above 0'),
  ('optimizer.peak_lr', '1e-3', 'float'),
  ('optimizer.peak_lr', math.nan, 'above 0'),
  ('optimizer.peak_lr', True, 'float'),
  ('optimizer.peak_lr', 10**400, 'float'),
  ('optimizer.end_lr', -1e-9, 'at least 0'),
  ('optimizer.warmup_steps', 2.5, 'int'),
  ('optimizer.decay_steps', -1, 'at least 0'),
  ('optimizer.b1', 1.0, 'from 0 to below 1'),
  ('optimizer.b2', -0.1, 'from 0 to below 1'),
  ('optimizer.b2', math.nan, 'from 0 to below 1'),
  ('optimizer.eps', 0.0, 'above 0'),
  ('optimizer.weight_decay', -0.1, 'at least 0'),
  ('optimizer.weight_decay', math.inf, 'at least 0'),
  ('optimizer.clip_norm', -1.0, 'at least 0'),
  ('optimizer.clip_norm', None, 'float'),
  ('sparsity.execution', 'dense', "'compact' | 'masked'"),
  ('sparsity.head_rate', 1.0, 'from 0 to below 1'),
  ('sparsity.head_rate', -0.5, 'from 0 to below 1'),
  ('sparsity.channel_rate', 1.5, 'from 0 to below 1'),
  ('sparsity.channel_rate', math.nan, 'from 0 to below 1'),
  ('sparsity.importance', 'maxIP', "'uniform' | 'magnitude' | 'wanda'"),
  ('sparsity.importance', {}, "by axis: 'heads' | 'mlp' | 'layers'"),
  ('sparsity.importance', ('heads', 'maxip'), "by axis: 'heads' | 'mlp'"),
  ('sparsity.omitted_forward', 'drop', "'skip' | 'mean' | 'exact' | 'through'"),
  ('sparsity.omitted_forward', ['layers', 'exact'], "by axis: 'heads'"),
  ('sparsity.omitted_forward', {'layers'}, "by axis: 'heads'"),
  ('sparsity.layer_rate', 1.0, 'from 0 to below 1'),
  ('sparsity.layer_rate', '2', 'float'),
  ('sparsity.layer_scale', (1.0, 1.5), 'a factor from 0 to 1 for each layer'),
  ('sparsity.layer_scale', ('depth',), "or 'depth'; one for all"),
  ('sparsity.layer_scale', 'deep', "or 'depth'; one for all"),
  ('sparsity.embed', 'freeze', "'train' | 'rest'"),
  ('sparsity.selection', 'random', "'top_k' | 'sample'"),
  ('sparsity.temperature', 0.0, 'above 0'),
  ('sparsity.split', 0.0, 'above 0, up to 1'),
  ('sparsity.split', 1.01, 'above 0, up to 1'),
  ('sparsity.rungs', 0, 'at least 1'),
  ('sparsity.refresh_every', 0, 'at least 1'),
  ('sparsity.probe', 0.0, 'above 0, up to 1'),
  ('sparsity.omitted', 'reset', "'frozen' | 'decayed'"),
  ('sparsity.channel_multiple', 0, 'at least 1'),
  ('growth.hops', 1000, 'tuple'),
  ('growth.learning_rate', 'rewarm', "'continue' | 'restart'"),
  ('growth.opt_state', 'keep', "'grow' | 'reset_new' | 'reset'"),
  ('mesh.data', 0, 'at least 1, or -1'),
  ('mesh.data', -2, 'at least 1, or -1'),
  ('mesh.fsdp', -1, 'at least 1'),
  ('mesh.tensor', 0, 'at least 1'),
]


@pytest.mark.parametrize(
  'path, value, allowed', WRONG_VALUES, ids=lambda value: repr(value)[:40]
)
def test_wrong_value_is_refused_with_key_value_and_allowed(
  path, value, allowed
):
  text = refusal(with_values({path: value}))
  assert f'config.{path}' in text
  assert errors.brief(value) in text
  assert allowed in text.partition('; allowed:')[2]
  assert len(text.splitlines()) == 1


# (changes, everything that the error has to say)
WRONG_KEYS = [
  ({'model.num_layer': 2}, ['config.model.num_layer ', 'model.num_layers?']),
  (
    {'sparsity.omitted_forward': {'layer': 'exact'}},
    ['omitted_forward.layer is', 'omitted_forward.layers?'],
  ),
  (
    {'sparsity.importance': {'channels': 'maxip'}},
    ['importance.channels is', 'allowed: heads, mlp, layers'],
  ),
  (
    {'sparsity.importance': {1: 'maxip'}},
    ['importance.1 is', 'allowed: heads, mlp, layers'],
  ),
  (
    {'sparsity.layer_scale': {'mlp': 'deep'}},
    ["layer_scale.mlp = 'deep'", "'depth'"],
  ),
  (
    {'sparsity.omitted_forward': (('mlp', 'skip'), ('mlp', 'mean'))},
    ["omitted_forward has 'mlp' twice; keep one of them"],
  ),
  (
    {'sparsity.omitted_forward': {'mlp': {'layers': 'skip'}}},
    ['omitted_forward.mlp = ', "'skip' | 'mean'"],
  ),
  ({'sparsity.headrate': 0.5}, ['config.sparsity.headrate', 'head_rate?']),
  ({'optimizer.learning_rate': 1.0}, ['optimizer.learning_rate', 'peak_lr']),
  ({'train.zzz': 1}, ['config.train.zzz', 'allowed: num_steps, batch_size']),
  ({'modle': {}}, ['config.modle is not a known key', 'config.model?']),
  ({'wandb': {}}, ['config.wandb', 'allowed: model, data, train']),
  ({'model.num_layers': GONE}, ['config.model.num_layers is missing']),
  ({'mesh.data': GONE}, ['config.mesh.data is missing', 'configs/base.py']),
  ({'growth': GONE}, ['config.growth is missing', 'configs/base.py']),
  ({'model': None}, ['config.model = None', 'allowed: a group of keys']),
  ({'mesh': (1, 1, 1)}, ['config.mesh = (1, 1, 1)', 'a group of keys']),
  ({'model': {}}, ['config.model.num_layers is missing']),
]


@pytest.mark.parametrize('changes, said', WRONG_KEYS)
def test_wrong_key_is_refused_by_name(changes, said):
  text = refusal(with_values(changes))
  for part in said:
    assert part in text


# (changes, everything that the error has to say)
CONTRADICTIONS = [
  ({'model.num_kv_heads': 3}, ['config.model', 'num_heads 8', 'kv_heads 3']),
  (
    {'data.held_out': 0.3, 'data.test': 0.7},
    ['config.data', 'held_out 0.3', 'test 0.7', 'below 1'],
  ),
  ({'model.num_kv_heads': 16}, ['num_heads 8', 'num_kv_heads 16']),
  (
    {'train.microbatch_size': 3},
    ['config.train', 'microbatch_size 3', 'batch_size 8'],
  ),
  ({'train.microbatch_size': 16}, ['microbatch_size 16', 'batch_size 8']),
  (
    {'optimizer.end_lr': 0.5},
    ['config.optimizer', 'end_lr 0.5', 'peak_lr 0.001'],
  ),
  (
    {'optimizer.warmup_steps': 1001},
    ['config.optimizer', 'warmup_steps 1001', 'train.num_steps 1000'],
  ),
  (
    {
      'optimizer.schedule': 'wsd',
      'optimizer.warmup_steps': 600,
      'optimizer.decay_steps': 401,
    },
    ['warmup_steps 600', 'decay_steps 401', 'train.num_steps 1000'],
  ),
  (
    {'optimizer.decay_steps': 5},
    ['config.optimizer.decay_steps 5', "'wsd'", "'cosine'"],
  ),
  (
    {'optimizer.name': 'adafactor', 'sparsity.head_rate': 0.5},
    ['config.optimizer.name', "'adafactor'", 'adamw, lion, muon'],
  ),
  (
    {'optimizer.name': 'adafactor', 'sparsity.channel_rate': 0.5},
    ['config.optimizer.name', "'adafactor'", 'rates to 0'],
  ),
  (
    {'sparsity.channel_rate': 0.01},
    ['channel_rate 0.01', 'nothing', 'multiples of 64', 'use 0.0833333'],
  ),
  # Nine heads in three groups lose a third of their heads, or two.
  (
    {
      'sparsity.head_rate': 0.1,
      'model.num_heads': 9,
      'model.num_kv_heads': 3,
    },
    ['head_rate 0.1', 'nothing', 'multiples of 3', 'use 0.333333'],
  ),
  (
    {
      'sparsity.head_rate': 0.9,
      'model.num_heads': 9,
      'model.num_kv_heads': 3,
    },
    ['head_rate 0.9', 'all', 'multiples of 3', 'use 0.666667'],
  ),
  (
    {
      'sparsity.head_rate': 0.2,
      'sparsity.granularity': 'group',
      'model.num_kv_heads': 2,
    },
    ['head_rate 0.2', 'multiples of 4', 'use 0.5'],
  ),
  (
    {'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 0},
    ['config.optimizer.decay_steps 0', "'wsd'", "'auto'", "'constant'"],
  ),
  (
    {'sparsity.head_rate': 0.5, 'sparsity.shards': 3},
    ['sparsity.shards 3', '8 heads'],
  ),
  (
    {'sparsity.channel_rate': 0.5, 'sparsity.shards': 8, 'model.mlp_dim': 772},
    ['sparsity.shards 8', '772 channels'],
  ),
  (
    {'sparsity.shape': 'linear', 'sparsity.channel_rate': 0.5},
    ["shape 'linear'", "'compact'", 'rungs=8', "'masked'"],
  ),
  (
    {'sparsity.granularity': 'free', 'sparsity.head_rate': 0.5},
    ["granularity 'free'", "'masked'", "'per_group'"],
  ),
  (
    {
      'sparsity.omitted': 'decayed',
      'sparsity.head_rate': 0.5,
      'sparsity.omitted_forward': 'exact',
    },
    ["omitted 'decayed'", "'exact'", "'frozen'"],
  ),
  (
    {
      'sparsity.omitted': 'decayed',
      'sparsity.layer_rate': 0.5,
      'sparsity.omitted_forward': {'layers': 'through'},
    },
    ["omitted 'decayed'", "'through'", "'frozen'"],
  ),
  (
    {
      'sparsity.omitted': 'decayed',
      'sparsity.omitted_forward': 'skip',
      'sparsity.head_rate': 0.5,
      'optimizer.name': 'muon',
    },
    ["'muon'", "'frozen'", "'masked'"],
  ),
  (
    {'sparsity.rest': 'host', 'sparsity.execution': 'masked'},
    ["rest 'host'", "'compact'", "'device'"],
  ),
  (
    {
      'sparsity.rescale': 'energy',
      'sparsity.channel_rate': 0.5,
      'sparsity.omitted_forward': {'mlp': 'mean'},
    },
    ["rescale 'energy'", "omitted_forward 'mean'"],
  ),
  (
    {
      'sparsity.bias_correction': 'per_neuron',
      'sparsity.head_rate': 0.5,
      'optimizer.name': 'lion',
    },
    ["bias_correction 'per_neuron'", "'adamw'", "'global'"],
  ),
  (
    {'sparsity.layer_scale': (1.0, 0.5), 'sparsity.head_rate': 0.5},
    ['layer_scale has 2 factors', 'num_layers 6'],
  ),
  (
    {
      'sparsity.layer_scale': {'layers': (1.0, 0.5)},
      'sparsity.layer_rate': 0.5,
    },
    ['layer_scale has 2 factors', 'num_layers 6'],
  ),
  # Layers: 1 to 5 of 6 may be left out, fewer where some stay whole.
  (
    {'sparsity.layer_rate': 0.08},
    ['layer_rate 0.08', 'nothing', '1 to 5', 'use 0.166667'],
  ),
  (
    {'sparsity.layer_rate': 0.99},
    ['layer_rate 0.99', '5.94 of 6', '1 to 5', 'use 0.833333'],
  ),
  (
    {'sparsity.layer_rate': 0.2, 'sparsity.dense_layers': (2, 2)},
    ['layer_rate 0.2', 'nothing', '1 to 2', 'use 0.5'],
  ),
  (
    {
      'sparsity.layer_rate': 0.5,
      'sparsity.layer_scale': {'layers': (0, 0, 0, 0, 0, 0)},
    },
    ['layer_rate 0.5', 'none may be', 'layer_scale', 'use 0'],
  ),
  (
    {'sparsity.layer_rate': 0.5, 'sparsity.dense_layers': (3, 3)},
    ['dense_layers (3, 3)', '6 layers', 'keep fewer'],
  ),
  # The grown model has enough of them, its base has not.
  (
    {
      'model.num_layers': 2,
      'sparsity.layer_rate': 0.2,
      'growth.hops': ((4096, 'stack', 2),),
    },
    ['layer_rate 0.2', 'nothing: of 2 layers', 'use 0.5'],
  ),
  (
    {'sparsity.layer_rate': 0.5, 'sparsity.omitted_forward': 'mean'},
    ["'mean'", 'heads and channels', "'layers': 'skip'}", "'through'"],
  ),
  (
    {'sparsity.layer_rate': 0.5, 'sparsity.importance': 'maxip'},
    ["importance 'maxip'", 'layers', "'influence'", "{'layers': "],
  ),
  (
    {
      'sparsity.head_rate': 0.5,
      'sparsity.importance': {'heads': 'cyclic', 'layers': 'uniform'},
    },
    ["importance 'cyclic'", 'heads', "'taylor'", "{'heads': "],
  ),
  (
    {
      'sparsity.layer_rate': 0.5,
      'sparsity.layer_scale': {'layers': (1, 1, 1, 1, 1, 0.5)},
      'growth.hops': ((4096, 'stack', 2),),
    },
    ['layer_scale names layers', 'growth.hops', "'depth'", 'dense_layers'],
  ),
  (
    {
      'sparsity.head_rate': 0.5,
      'sparsity.omitted_forward': {'heads': 'through'},
      'lora.rank': 4,
    },
    ["omitted_forward 'through'", 'lora.rank is 4', "'skip' of them"],
  ),
  (
    {
      'sparsity.layer_rate': 0.5,
      'sparsity.embed': 'rest',
      'lora.rank': 4,
    },
    ["embed 'rest'", 'lora.rank 4', "use 'train'"],
  ),
  (
    {'sparsity.rest': 'host', 'sparsity.layer_rate': 0.5}
    | {'sparsity.execution': 'masked'},
    ["rest 'host'", "'compact'", "'device'"],
  ),
  (
    {'sparsity.layer_rate': 0.5, 'optimizer.name': 'adafactor'},
    ["'adafactor'", 'adamw', 'rates'],
  ),
  (
    {'sparsity.layer_scale': (0.0,) * 6, 'sparsity.head_rate': 0.5},
    ['head_rate 0.5 leaves out nothing', 'layer_scale', 'raise it'],
  ),
  (
    {'sparsity.layer_scale': (0.01,) * 6, 'sparsity.layer_rate': 0.5},
    ['layer_rate 0.5 leaves out nothing', 'sum to 0.06; raise them'],
  ),
  (
    {'sparsity.dense_layers': (3, 3), 'sparsity.head_rate': 0.5},
    ['dense_layers (3, 3)', '6 layers'],
  ),
  (
    {'growth.hops': ((2000, 'stack', 2), (1000, 'stack', 2))},
    ['config.growth', '[2000, 1000]', 'increase'],
  ),
  (
    {'growth.hops': ((1000, 'stack', 2), (1000, 'stack', 2))},
    ['config.growth', '[1000, 1000]', 'increase'],
  ),
  (
    {'growth.hops': ((TOTAL_TOKENS, 'stack', 2),)},
    ['config.growth.hops', str(TOTAL_TOKENS), 'never happens'],
  ),
  # Rounded up to whole steps, this hop would come after the last one.
  (
    {'growth.hops': ((TOTAL_TOKENS - 1, 'stack', 2),)},
    ['config.growth.hops', str(TOTAL_TOKENS - 1), 'never happens'],
  ),
]


@pytest.mark.parametrize('changes, said', CONTRADICTIONS)
def test_settings_that_contradict_are_refused(changes, said):
  text = refusal(with_values(changes))
  for part in said:
    assert part in text
  assert len(text.splitlines()) == 1


def test_growths_that_fall_on_the_same_step_are_refused():
  hops = ((1, 'stack', 2), (2, 'stack', 2))  # Both after the first step.
  assert 'config.growth.hops' in refusal(with_values({'growth.hops': hops}))


def test_the_corpus_is_large():
  corpus = len(WRONG_VALUES) + len(WRONG_KEYS) + len(CONTRADICTIONS)
  assert corpus >= 80


def test_one_error_names_every_mistake():
  text = refusal(
    with_values(
      {
        'model.num_layer': 2,
        'model.head_dim': 15,
        'data.seq_len': 'long',
        'train.microbatch_size': 3,
        'train.log_every': GONE,
        'optimizer.peak_lr': math.nan,
        'sparsity.shape': 'linear',
        'nonsense': 1,
      }
    )
  )
  for part in (
    'config.model.num_layer ',
    'config.model.head_dim = 15',
    "config.data.seq_len = 'long'",
    'config.train.log_every is missing',
    'config.optimizer.peak_lr = nan',
    "shape 'linear'",
    'config.nonsense',
  ):
    assert part in text
  # Rules between keys wait until each key of the group is right.
  assert 'microbatch_size 3' not in text
  assert len(text.splitlines()) == 7


def test_rules_between_groups_are_reported_together():
  text = refusal(
    with_values(
      {
        'optimizer.warmup_steps': 2000,
        'optimizer.decay_steps': 1,
        'optimizer.end_lr': 1.0,
        'growth.hops': ((10 * TOTAL_TOKENS, 'stack', 2),),
      }
    )
  )
  assert len(text.splitlines()) == 4


def test_nothing_is_refused_with_every_group_named():
  text = refusal({})
  for field in dataclasses.fields(Config):
    assert f'config.{field.name} is missing' in text


def test_errors_carry_the_exit_code_of_a_bad_config():
  with pytest.raises(ValueError) as caught:
    Config.from_dict({})
  assert caught.value.exit_code == 78


# Values at the edge of what is allowed.
RIGHT_VALUES = [
  ('model.num_kv_heads', 1),
  ('model.head_dim', 2),
  ('model.vocab_size', 2),
  ('model.init_from', 'some/where'),
  ('data.eval', ()),
  ('data.train', ('stdlib:docs', ('text:a', 1), ('text:b', 0.5))),
  ('train.microbatch_size', 4),
  ('train.eval_every', 0),
  ('optimizer.warmup_steps', 1000),
  ('optimizer.end_lr', 1e-3),
  ('optimizer.clip_norm', 0),
  ('optimizer.b1', 0.0),
  ('sparsity.split', 1),
  ('sparsity.head_rate', 0.9),
  ('sparsity.channel_multiple', 768),
  ('growth.hops', ((1, 'stack', 1), (1000 * 2048 - 2048, 'stack', 3))),
  ('mesh.data', -1),
]


@pytest.mark.parametrize('path, value', RIGHT_VALUES)
def test_values_at_the_edge_are_accepted(path, value):
  config = Config.from_dict(with_values({path: value}))
  group, key = path.split('.')
  assert getattr(getattr(config, group), key) == value


def test_whole_numbers_become_floats():
  config = Config.from_dict(with_values({'optimizer.peak_lr': 1}))
  assert isinstance(config.optimizer.peak_lr, float)


def test_round_trip_through_json_is_equal_and_hashable():
  config = Config.from_dict(
    with_values(
      {
        'data.train': ('stdlib:docs', ('text:a', 0.3)),
        'growth.hops': ((2048, 'stack', 2), (8000, 'stack', 2)),
        'optimizer.peak_lr': 0.1 + 0.2,
      }
    )
  )
  again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
  assert again == config
  assert hash(again) == hash(config)
  assert again.growth.hops == ((2048, 'stack', 2), (8000, 'stack', 2))


def test_what_is_given_by_axis_reads_back_equal():
  values = with_values(
    {
      'sparsity.layer_rate': 0.5,
      'sparsity.head_rate': 0.5,
      'sparsity.layer_scale': {'layers': 'depth', 'mlp': [1, 0, 0, 0, 0, 1]},
      'sparsity.importance': {'layers': 'cyclic', 'heads': 'auto'},
      'sparsity.omitted_forward': {'layers': 'through'},
    }
  )
  config = Config.from_dict(values)
  sparsity = config.sparsity
  assert sparsity.importance == (('heads', 'auto'), ('layers', 'cyclic'))
  forwards = [sparsity.forward(axis) for axis in groups.AXES]
  assert forwards == ['exact', 'skip', 'through']
  assert sparsity.scale('mlp', 6) == (1, 0, 0, 0, 0, 1)
  assert sparsity.scale('layers', 4) == (0.25, 0.5, 0.75, 1)
  again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
  assert again == config
  assert hash(again) == hash(config)
  # One for all is the same as that for each.
  for value in ('exact', dict.fromkeys(groups.AXES, 'exact')):
    one = with_values({'sparsity.omitted_forward': value})
    one['sparsity'] |= {'head_rate': 0.5, 'layer_rate': 0.5}
    found = Config.from_dict(one).sparsity
    assert [found.forward(a) for a in groups.AXES] == ['exact', 'skip', 'exact']


def test_factors_by_depth_follow_growth():
  values = with_values(
    {
      'sparsity.layer_rate': 0.5,
      'sparsity.layer_scale': {'layers': 'depth'},
      'growth.hops': ((4096, 'stack', 2),),
    }
  )
  said = '\n'.join(Config.from_dict(values).remarks())
  assert 'layer_rate 0.5 becomes 2 of 6 layers' in said
  assert 'layer_rate 0.5 becomes 3 of 12 layers' in said


def test_a_run_from_before_layers_were_left_out_opens():
  values = Config.from_dict(with_values({'sparsity.head_rate': 0.5})).to_dict()
  for key in ('layer_rate', 'embed'):
    del values['sparsity'][key]
  values['sparsity'] |= {'importance': 'maxip', 'layer_scale': [1] * 6}
  config = Config.from_dict(history.upgrade({'version': 2, **values}))
  assert config.sparsity.layer_rate == 0
  assert config.sparsity.embed == 'train'
  assert config.sparsity.metric('heads') == 'maxip'


@pytest.mark.parametrize(
  'changes, forward',
  [
    ({}, 'exact'),
    ({'lora.rank': 4}, 'skip'),
    ({'lora.rank': 4, 'sparsity.head_rate': 0.0}, 'exact'),
    ({'sparsity.rescale': 'energy'}, 'skip'),
    ({'sparsity.omitted': 'decayed'}, 'skip'),
    (
      {'sparsity.omitted': 'decayed', 'sparsity.execution': 'masked'},
      'exact',
    ),
  ],
)
def test_what_is_left_out_counts_where_it_can(changes, forward):
  rates = {'sparsity.head_rate': 0.5, 'sparsity.layer_rate': 0.5}
  values = with_values(rates | changes)
  config = Config.from_dict(values)
  assert config.sparsity.omitted_forward == forward
  said = '\n'.join(defaults.said(values, config))
  assert ("becomes 'skip'" in said) == (forward == 'skip')
  assert Config.from_dict(config.to_dict()) == config


def test_a_run_keeps_what_its_omitted_units_did():
  """Whatever the default was then; by axis, too, where it says nothing."""
  begun = Config.from_dict(with_values({'sparsity.omitted_forward': 'skip'}))
  for how, expected in (
    ('auto', 'skip'),
    ('exact', 'exact'),
    (
      {'layers': 'through'},
      (('heads', 'skip'), ('mlp', 'skip'), ('layers', 'through')),
    ),
    (
      {'heads': 'auto', 'mlp': 'mean'},
      (('heads', 'skip'), ('mlp', 'mean'), ('layers', 'skip')),
    ),
  ):
    values = with_values({'sparsity.omitted_forward': how})
    found = Config.from_dict(defaults.as_begun(values, begun))
    assert found.sparsity.omitted_forward == expected


def test_axes_that_an_older_run_did_not_name_are_skipped():
  """As they were, where one that begins today has the default."""
  some = {'sparsity.head_rate': 0.5, 'sparsity.layer_rate': 0.5}
  values = Config.from_dict(with_values(some)).to_dict()
  values['sparsity']['omitted_forward'] = [['layers', 'through']]
  for version, heads in ((3, 'skip'), (history.VERSION, 'exact')):
    config = Config.from_dict(history.upgrade({'version': version, **values}))
    assert config.sparsity.forward('heads') == heads
    assert config.sparsity.forward('layers') == 'through'


def test_config_dict_and_plain_dict_build_the_same():
  values = base.get_config()
  assert isinstance(values, ml_collections.ConfigDict)
  plain = Config.from_dict(values.to_dict())
  assert Config.from_dict(values) == plain
  frozen = ml_collections.FrozenConfigDict(values)
  assert Config.from_dict(frozen) == plain


def test_building_leaves_the_input_alone():
  values = with_values({})
  Config.from_dict(values)
  assert values == _base()


def test_tokens_per_step_is_rows_times_row_length():
  config = Config.from_dict(_base())
  assert config.tokens_per_step == 8 * 256


@pytest.mark.parametrize('head, channel', [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)])
def test_sparsity_is_on_if_any_rate_is(head, channel):
  config = Config.from_dict(
    with_values({'sparsity.head_rate': head, 'sparsity.channel_rate': channel})
  )
  assert config.sparsity.is_on == bool(head or channel)


def test_the_schema_and_the_methods_know_the_same_names():
  assert all(
    groups.BEST[axis] in known for axis, known in groups.METRICS.items()
  )
  said = schema.allowed(run.field_of('sparsity', 'shape'))
  assert said == 'str, ' + ' | '.join(map(repr, ladder.SHAPES))


def _deep(levels):
  value = ()
  for _ in range(levels):
    value = (value,)
  return value


def _own():
  value = []
  value.append(value)
  return value


@pytest.mark.parametrize(
  'value',
  [10**5000, (10**5000,), _deep(3000), _own()],
  ids=['digits', 'digits inside', 'deep', 'holds itself'],
)
@pytest.mark.parametrize('key', ['sparsity.layer_scale', 'growth.hops'])
def test_what_python_cannot_print_is_refused_all_the_same(key, value):
  with pytest.raises(errors.ConfigError, match=rf'{key} = .*(a|holds)'):
    Config.from_dict(with_values({key: value}))


@pytest.mark.parametrize(
  'changes',
  [
    {'model.num_layers': 2**62},
    {'data.seq_len': 2**62},
    {'growth.hops': ((0, 'stack', 2**62),)},
    {'growth.hops': ((0, 'length', 1e300),)},
    {'growth.hops': ((0, 'partial', '1*99999999999'),)},
    {'growth.hops': ((0, 'partial', '1..99999999999'),)},
  ],
  ids=repr,
)
def test_no_size_takes_for_ever_to_check(changes):
  with pytest.raises(errors.ConfigError):
    Config.from_dict(with_values(changes))


@pytest.mark.parametrize(
  'version',
  [-1, None, True, '1', 10**5000],
  ids=['-1', '', 'True', '1', 'long'],
)
def test_a_version_that_is_none_is_refused(version):
  with pytest.raises(errors.ConfigError, match='repair the file'):
    history.upgrade({'version': version})


def test_a_multiple_leaves_channels_to_choose():
  for asked, dim, found in (769, 768, 384), (64, 64, 32), (64, 50, 32):
    values = with_values(
      {
        'sparsity.channel_multiple': asked,
        'sparsity.channel_rate': 0.5,
        'model.mlp_dim': dim,
      }
    )
    config = Config.from_dict(values)
    assert config.sparsity.channel_multiple == found
    said = '\n'.join(defaults.said(values, config))
    assert f'channel_multiple {asked} becomes {found}' in said


@pytest.mark.parametrize('steps', [1, 2])
def test_a_run_too_short_for_a_ladder_has_none_and_says_so(steps):
  values = {'sparsity.head_rate': 0.5, 'train.num_steps': steps}
  values |= {'optimizer.warmup_steps': 'auto'}
  config = Config.from_dict(with_values(values))
  assert f'leaves no step of {steps}' in '\n'.join(config.remarks())


@pytest.mark.parametrize('every, said', [(50, True), (5, False)])
def test_a_cycle_that_never_turns_is_said(every, said):
  changes = {'train.num_steps': 40, 'sparsity.refresh_every': every}
  options = [f'--config.{key}={value}' for key, value in changes.items()]
  config = file.load('configs/methods.py:badam:configs/cpt.py', options)
  assert ('at its first block' in '\n'.join(config.remarks())) == said
