"""Model directories: what is written is read back, what is wrong is named."""

import dataclasses
import json
import subprocess
import sys
import types

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from satjax import errors, tree
from satjax.config import ModelConfig
from satjax.interop import byte_tokenizer, huggingface

GROUPED = ModelConfig(
  num_layers=2,
  embed_dim=8,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  mlp_dim=10,
  vocab_size=12,
  tied=False,
  rope_theta=500_000.0,
  norm_eps=1e-5,
  dtype='float32',
  scan=True,
  remat='none',
  init_from='',
)
TIED = dataclasses.replace(GROUPED, tied=True, num_kv_heads=4, head_dim=2)
BYTES = types.SimpleNamespace(name='byte', bos_id=256, eos_id=257)
TENSORS = 3 + 2 * 9


def random_params(config, dtype=np.float32):
  c, draw = config, np.random.default_rng(0).normal
  heads = (c.num_layers, c.num_heads, c.head_dim, c.embed_dim)
  kv_heads = (c.num_layers, c.num_kv_heads, c.head_dim, c.embed_dim)
  attention = {
    'query': draw(size=heads),
    'key': draw(size=kv_heads),
    'value': draw(size=kv_heads),
    'output': draw(size=heads),
  }
  channels = (c.num_layers, c.mlp_dim, c.embed_dim)
  params = {
    'embed': draw(size=(c.vocab_size, c.embed_dim)),
    'final_norm': draw(size=c.embed_dim),
    'blocks': {
      'attention': attention,
      'attention_norm': draw(size=(c.num_layers, c.embed_dim)),
      'mlp': {name: draw(size=channels) for name in ('gate', 'up', 'down')},
      'mlp_norm': draw(size=(c.num_layers, c.embed_dim)),
    },
  }
  if not c.tied:
    params['unembed'] = draw(size=(c.vocab_size, c.embed_dim))
  return tree.map_with_path(lambda _, leaf: leaf.astype(dtype), params)


def assert_same_bits(params, expected):
  params, expected = tree.flatten(params), tree.flatten(expected)
  assert params.keys() == expected.keys()
  for path, leaf in expected.items():
    assert params[path].dtype == leaf.dtype, path
    assert params[path].shape == leaf.shape, path
    assert params[path].tobytes() == np.asarray(leaf).tobytes(), path


def tensors_in(directory):
  tensors = {}
  for path in directory.glob('*.safetensors'):
    tensors |= safetensors.numpy.load_file(path)
  return tensors


def rewrite(directory, change, file='model.safetensors'):
  """Applies `change` to the dictionary of tensors of one file."""
  tensors = safetensors.numpy.load_file(directory / file)
  change(tensors)
  tensors = {n: np.ascontiguousarray(tensors[n]) for n in tensors}
  safetensors.numpy.save_file(tensors, directory / file)


def rewrite_json(directory, file, **changes):
  content = json.loads((directory / file).read_text()) | changes
  content = {k: v for k, v in content.items() if v is not ...}
  (directory / file).write_text(json.dumps(content))


def problems_of(directory):
  with pytest.raises(errors.DataError) as caught:
    huggingface.load(directory)
  return str(caught.value)


@pytest.fixture
def saved(tmp_path):
  directory = tmp_path / 'model'
  huggingface.save(directory, GROUPED, random_params(GROUPED))
  return directory


@pytest.fixture
def sharded(tmp_path):
  directory = tmp_path / 'model'
  params = random_params(GROUPED)
  huggingface.save(directory, GROUPED, params, max_shard_bytes=4000)
  return directory


@pytest.mark.parametrize('config', [GROUPED, TIED], ids=['grouped', 'tied'])
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize('max_shard_bytes', [2**30, 1000, 1])
def test_round_trip_keeps_every_bit(tmp_path, config, dtype, max_shard_bytes):
  params = random_params(config, dtype)
  huggingface.save(tmp_path, config, params, max_shard_bytes=max_shard_bytes)
  loaded_config, loaded = huggingface.load(tmp_path)
  assert loaded_config == config
  assert_same_bits(loaded, params)
  is_sharded = (tmp_path / 'model.safetensors.index.json').exists()
  assert is_sharded == (max_shard_bytes < 2**30)
  files = len(list(tmp_path.glob('*.safetensors')))
  assert files == (len(tensors_in(tmp_path)) if max_shard_bytes == 1 else files)


def test_matrices_have_the_orientation_of_hugging_face(saved):
  blocks = random_params(GROUPED)['blocks']
  stored = tensors_in(saved)
  assert len(stored) == TENSORS
  layer, head, dim, column, heads_x_dim = 1, 3, 5, 7, 3 * 6 + 5
  name = f'model.layers.{layer}.self_attn.q_proj.weight'
  assert stored[name].shape == (24, 8)
  query = blocks['attention']['query'][layer, head, dim, column]
  assert stored[name][heads_x_dim, column] == query
  name = f'model.layers.{layer}.self_attn.o_proj.weight'
  assert stored[name].shape == (8, 24)
  output = blocks['attention']['output'][layer, head, dim, column]
  assert stored[name][column, heads_x_dim] == output
  name = f'model.layers.{layer}.mlp.down_proj.weight'
  assert stored[name].shape == (8, 10)
  assert stored[name][column, 9] == blocks['mlp']['down'][layer, 9, column]
  name = f'model.layers.{layer}.mlp.up_proj.weight'
  assert stored[name][9, column] == blocks['mlp']['up'][layer, 9, column]


def test_jax_arrays_and_strided_views_are_saved_as_their_values(tmp_path):
  params = random_params(GROUPED)
  huggingface.save(
    tmp_path / 'jax',
    GROUPED,
    tree.map_with_path(lambda _, leaf: jnp.asarray(leaf), params),
  )
  assert_same_bits(huggingface.load(tmp_path / 'jax')[1], params)
  strided = tree.map_with_path(
    lambda _, leaf: np.asfortranarray(leaf)[..., ::-1][..., ::-1], params
  )
  huggingface.save(tmp_path / 'strided', GROUPED, strided)
  assert_same_bits(huggingface.load(tmp_path / 'strided')[1], params)


def test_cast_rounds_to_nearest_and_is_noted(tmp_path):
  params = random_params(GROUPED)
  huggingface.save(tmp_path, GROUPED, params, dtype='bfloat16')
  rounded = random_params(GROUPED, ml_dtypes.bfloat16)
  assert_same_bits(huggingface.load(tmp_path)[1], rounded)
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert stored['dtype'] == stored['torch_dtype'] == 'bfloat16'


def test_config_serves_old_and_new_transformers(tmp_path):
  params = random_params(GROUPED)
  huggingface.save(tmp_path, GROUPED, params, tokenizer=BYTES, seq_len=64)
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert stored['rope_theta'] == 500_000.0
  assert stored['rope_parameters'] == {
    'rope_type': 'default',
    'rope_theta': 500_000.0,
  }
  assert stored['architectures'] == ['LlamaForCausalLM']
  assert stored['head_dim'] == 6
  assert stored['max_position_embeddings'] == 64
  assert (stored['bos_token_id'], stored['eos_token_id']) == (256, 257)
  assert 'scan' not in stored


def test_index_lists_every_tensor_and_the_total_size(sharded):
  index = json.loads((sharded / 'model.safetensors.index.json').read_text())
  tensors = tensors_in(sharded)
  assert index['weight_map'].keys() == tensors.keys()
  assert index['metadata']['total_size'] == sum(
    tensor.nbytes for tensor in tensors.values()
  )


def test_new_save_leaves_no_old_weights_and_keeps_other_files(sharded):
  (sharded / 'README.md').write_text('mine')
  (sharded / '.saving-killed').mkdir()
  params = random_params(TIED)
  huggingface.save(sharded, TIED, params)
  assert sorted(path.name for path in sharded.iterdir()) == [
    'README.md',
    'config.json',
    'generation_config.json',
    'model.safetensors',
  ]
  assert_same_bits(huggingface.load(sharded)[1], params)
  assert (sharded / 'model.safetensors').stat().st_mode == (
    (sharded / 'config.json').stat().st_mode
  )


def test_model_of_somebody_else_is_not_overwritten(saved):
  rewrite_json(saved, 'config.json', written_by=...)
  before = (saved / 'model.safetensors').read_bytes()
  with pytest.raises(errors.StorageError, match='did not write'):
    huggingface.save(saved, TIED, random_params(TIED))
  assert (saved / 'model.safetensors').read_bytes() == before


def test_path_that_can_not_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.StorageError, match='file/model can not be'):
    huggingface.save(tmp_path / 'file/model', TIED, random_params(TIED))


def test_wrongly_written_numbers_are_noticed(saved, monkeypatch):
  write = safetensors.numpy.save_file

  def write_wrongly(tensors, path, **options):
    wrong = {name: tensor.copy() for name, tensor in tensors.items()}
    wrong['model.norm.weight'][3] += 1
    write(wrong, path, **options)

  monkeypatch.setattr(safetensors.numpy, 'save_file', write_wrongly)
  with pytest.raises(errors.StorageError, match='model.norm.weight .* back'):
    huggingface.save(saved, TIED, random_params(TIED))
  monkeypatch.undo()
  # The model that was there before is untouched.
  assert_same_bits(huggingface.load(saved)[1], random_params(GROUPED))
  assert not list(saved.glob('.saving-*'))


def test_parameters_of_another_model_are_listed_and_not_written(tmp_path):
  params = random_params(GROUPED)
  params['embed'] = params['embed'][:5]
  params['more'] = params['embed']
  del params['blocks']['mlp']['up']
  params['final_norm'] = params['final_norm'].astype(np.float16)
  with pytest.raises(errors.DataError) as caught:
    huggingface.save(tmp_path / 'model', GROUPED, params)
  message = str(caught.value)
  assert 'embed: found (5, 8), expected (12, 8)' in message
  assert 'more: found (5, 8), expected nothing' in message
  assert 'blocks/mlp/up: found nothing, expected (2, 10, 8)' in message
  assert 'found dtypes float16, float32' in message
  assert not (tmp_path / 'model').exists()
  with pytest.raises(errors.ConfigError, match="'int8'"):
    huggingface.save(tmp_path, TIED, random_params(TIED), dtype='int8')


def test_special_ids_of_a_text_without_tokenizer_are_null(saved):
  stored = json.loads((saved / 'config.json').read_text())
  assert stored['bos_token_id'] is stored['eos_token_id'] is None
  assert not (saved / 'tokenizer.json').exists()


def test_byte_vocabulary_is_the_one_of_byte_level_bpe():
  vocab = byte_tokenizer.files()['tokenizer.json']['model']['vocab']
  assert sorted(vocab.values()) == list(range(256))
  assert vocab['A'] == 65
  assert vocab['Ġ'] == ord(' ')
  assert vocab['Ċ'] == ord('\n')
  assert vocab['Ã'] == 0xC3
  assert vocab['Ń'] == 0xAD


def test_import_needs_no_framework():
  code = (
    'import sys; from satjax.interop import huggingface;'
    "print([n for n in ('torch', 'transformers', 'tokenizers', 'flax')"
    ' if n in sys.modules])'
  )
  run = [sys.executable, '-c', code]
  assert subprocess.check_output(run, text=True).strip() == '[]'
