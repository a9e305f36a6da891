"""Families by their `config.json`: windows, positions, fused matrices."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from satjax import errors, files, tree
from satjax.interop import grow, huggingface, llama
from tests import models

CONFIG = models.make(head_dim=2, mlp_dim=10)
WINDOWED = dataclasses.replace(CONFIG, sliding_window=5)
LLAMA3 = ('llama3', 8.0, 1.0, 4.0, 64.0)


def described(config, **changes):
  stored = llama.describe(config, 'float32', 64) | changes
  # As it is read from a file.
  return json.loads(
    json.dumps({key: v for key, v in stored.items() if v is not ...})
  )


def problems_of(stored):
  _, problems = llama.config_of(stored)
  return '\n'.join(problems)


def of_family(name, **changes):
  architecture = llama.FAMILIES[name][0]
  stored = described(CONFIG, model_type=name, architectures=[architecture])
  return stored | {'num_hidden_layers': 4} | changes


SLIDING = {'use_sliding_window': True, 'sliding_window': 8}
LAYERS = {kind: [f'{kind}_attention'] * 4 for kind in ('full', 'sliding')}
MIXED = LAYERS['full'][:2] + LAYERS['sliding'][:2]


@pytest.mark.parametrize(
  'family, changes, window',
  [
    ('llama', {}, 0),
    ('llama', {'sliding_window': 64}, 0),  # as long as the longest row
    ('llama', {'layer_types': LAYERS['full']}, 0),
    ('mistral', {'sliding_window': 8}, 8),
    ('mistral', {'sliding_window': None}, 0),
    ('mistral', {}, 4096),
    ('phi3', {'sliding_window': 8}, 8),
    ('phi3', {}, 0),
    ('qwen2', {'sliding_window': 8}, 0),
    ('qwen2', SLIDING, 0),  # from layer 28 on
    ('qwen2', SLIDING | {'max_window_layers': 4}, 0),
    ('qwen2', SLIDING | {'max_window_layers': 0}, 8),
    ('qwen3', SLIDING | {'layer_types': LAYERS['sliding']}, 8),
    ('qwen3', SLIDING | {'layer_types': LAYERS['full']}, 0),
    ('qwen2', {'use_sliding_window': True, 'max_window_layers': 0}, 4096),
  ],
)
def test_windows_are_read_as_transformers_has_them(family, changes, window):
  config, problems = llama.config_of(of_family(family, **changes))
  assert not problems
  assert config.sliding_window == window


@pytest.mark.parametrize(
  'family, changes, problem',
  [
    ('llama', {'sliding_window': 8}, 'sliding_window = 8; supported: null, or'),
    ('mistral', {'sliding_window': 0}, 'sliding_window = 0; allowed: null'),
    ('mistral', {'sliding_window': 8.0}, 'sliding_window = 8.0; allowed'),
    (
      'mistral',
      {'sliding_window': None, 'layer_types': LAYERS['sliding']},
      "supported: 'full_attention' in all layers, where sliding_window = null",
    ),
    (
      'mistral',
      {'sliding_window': 8, 'layer_types': MIXED},
      "supported: 'sliding_attention' in all layers",
    ),
    (
      'qwen2',
      SLIDING | {'max_window_layers': 2},
      'max_window_layers = 2 of 4 layers; supported: 0',
    ),
    (
      'qwen3',
      SLIDING | {'layer_types': MIXED},
      "supported: 'sliding_attention' or 'full_attention' in all layers",
    ),
    ('qwen3', {'layer_types': 'sliding_attention'}, 'layer_types = '),
  ],
)
def test_other_windows_are_refused(family, changes, problem):
  found = problems_of(of_family(family, **changes))
  assert problem in found
  assert '\n' not in found


@pytest.mark.parametrize(
  'changes, family',
  [
    ({}, 'llama'),
    ({'sliding_window': 5}, 'mistral'),
    ({'rope_scaling': ('linear', 2.0)}, 'llama'),
    ({'rope_scaling': LLAMA3, 'tied': True}, 'llama'),
    ({'qkv_bias': True, 'sliding_window': 5}, 'qwen2'),
    ({'qkv_bias': True}, 'qwen2'),
    ({'qk_norm': True, 'rope_scaling': LLAMA3}, 'qwen3'),
    ({'qk_norm': True, 'sliding_window': 5}, 'qwen3'),
  ],
)
def test_the_old_and_the_new_spelling_say_the_same(changes, family):
  config = dataclasses.replace(CONFIG, **changes)
  whole = described(config)
  # Of transformers 4; those of transformers 5 are the other ones.
  old = {'torch_dtype', 'rope_theta', 'rope_scaling'} & whole.keys()
  assert ('rope_scaling' in old) == bool(config.rope_scaling)
  for gone in (old, {'dtype', 'rope_parameters'}):
    left = {key: value for key, value in whole.items() if key not in gone}
    assert left != whole
    assert llama.config_of(left) == (config, [])
  assert whole['model_type'] == family
  assert whole['dtype'] == whole['torch_dtype']
  scaled = whole['rope_parameters']
  assert scaled['rope_theta'] == whole['rope_theta']
  assert whole.get('rope_scaling', {}).items() <= scaled.items()


@pytest.mark.parametrize('kind', ['dynamic', 'yarn', 'longrope', 'su'])
@pytest.mark.parametrize('key', ['rope_scaling', 'rope_parameters'])
def test_other_scalings_are_refused_with_a_remedy(kind, key):
  scaling = {'rope_type': kind, 'factor': 2.0, 'rope_theta': 100.0}
  stored = described(CONFIG, rope_parameters=...) | {key: scaling}
  assert problems_of(stored) == (
    f"{key}.rope_type = '{kind}'; supported: 'default', 'linear', 'llama3';"
    ' take a release of the model without it'
  )


def random_params(config):
  draw = np.random.default_rng(0).normal
  return tree.unflatten(
    {
      path: draw(size=shape).astype(np.float32)
      for path, shape in tree.shapes(config).items()
    }
  )


def layer(number, name):
  return f'model.layers.{number}.{name}.weight'


@pytest.fixture
def phi3(tmp_path):
  """What huggingface.save writes of WINDOWED, as Phi-3 stores it."""
  directory = tmp_path / 'phi3'
  huggingface.save(directory, WINDOWED, random_params(WINDOWED), seq_len=64)
  rewrite(directory, fuse)
  stored = json.loads((directory / 'config.json').read_text())
  stored |= {'model_type': 'phi3', 'architectures': ['Phi3ForCausalLM']}
  (directory / 'config.json').write_text(json.dumps(stored))
  return directory


def rewrite(directory, change):
  path = directory / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def fuse(tensors):
  for n in range(WINDOWED.num_layers):
    for whole, parts in {
      'self_attn.qkv_proj': [f'self_attn.{x}_proj' for x in 'qkv'],
      'mlp.gate_up_proj': ['mlp.gate_proj', 'mlp.up_proj'],
    }.items():
      rows = [tensors.pop(layer(n, part)) for part in parts]
      tensors[layer(n, whole)] = np.concatenate(rows)


def assert_same_bits(found, expected):
  found, expected = tree.flatten(found), tree.flatten(expected)
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_fused_matrices_are_read_as_those_of_a_llama(phi3):
  config, params = huggingface.load(phi3)
  assert config == WINDOWED
  assert_same_bits(params, random_params(WINDOWED))


def test_a_model_with_fused_matrices_grows_and_keeps_its_window(phi3, tmp_path):
  grow.grow(phi3, tmp_path / 'deep', [('stack', 2)])
  config, params = huggingface.load(tmp_path / 'deep')
  assert config == dataclasses.replace(WINDOWED, num_layers=4)
  old = random_params(WINDOWED)['blocks']['attention']['value']
  new = params['blocks']['attention']['value']
  np.testing.assert_array_equal(new, np.concatenate([old, old]))
  stored = json.loads((tmp_path / 'deep' / 'config.json').read_text())
  assert (stored['model_type'], stored['sliding_window']) == ('mistral', 5)


def test_fused_matrices_that_are_wrong_are_named(phi3):
  def damage(tensors):
    del tensors[layer(0, 'self_attn.qkv_proj')]
    name = layer(1, 'mlp.gate_up_proj')
    tensors[name] = tensors[name][1:].copy()
    name = layer(1, 'self_attn.qkv_proj')
    tensors[name] = tensors[name].astype(np.int32)

  rewrite(phi3, damage)
  with pytest.raises(errors.DataError) as caught:
    huggingface.load(phi3)
  message = str(caught.value)
  qkv, gate_up = (
    layer(n, name)
    for n, name in enumerate(['self_attn.qkv_proj', 'mlp.gate_up_proj'])
  )
  assert f'{qkv}: found nothing, expected [16, 8]' in message
  assert f'{gate_up}: found F32 [19, 8], expected [20, 8]' in message
  for part in 'qkv':
    assert f'{layer(1, f"self_attn.{part}_proj")}: found I32' in message
  assert len(message.splitlines()) == 6


@pytest.mark.parametrize(
  'changes, problem',
  [
    ({'partial_rotary_factor': 0.75}, 'partial_rotary_factor = 0.75; supp'),
    (
      {'rope_scaling': {'type': 'longrope', 'short_factor': [1.0]}},
      "rope_scaling.rope_type = 'longrope'; supported",
    ),
  ],
)
def test_other_positions_of_phi3_are_refused(phi3, changes, problem):
  stored = json.loads((phi3 / 'config.json').read_text()) | changes
  stored.pop('rope_parameters')
  (phi3 / 'config.json').write_bytes(files.to_json(stored))
  with pytest.raises(errors.DataError, match=problem):
    huggingface.load(phi3)
