"""Model directories: what is written is read back, what is wrong is named."""

import contextlib
import dataclasses
import json
import os
import pickle
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from satjax import errors, tree
from satjax.data import tokenizers
from satjax.interop import huggingface
from tests import models

GROUPED = models.make(
  head_dim=6,
  mlp_dim=10,
  vocab_size=12,
  rope_theta=500_000.0,
)
TIED = dataclasses.replace(GROUPED, tied=True, num_kv_heads=4, head_dim=2)
BYTES = tokenizers.ByteTokenizer()
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
  huggingface.save(directory, GROUPED, params, max_shard_bytes=2000)
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
    'checksums.json',
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
  with pytest.raises(errors.StorageError, match='file/model cannot be'):
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


@pytest.mark.parametrize('max_shard_bytes', [2000, 2**30])
def test_interrupted_save_is_refused_and_can_be_repeated(
  sharded, monkeypatch, max_shard_bytes
):
  params = random_params(TIED)
  replace, moved = os.replace, 0

  def replace_some(source, target):
    nonlocal left
    left -= 1
    if left < 0:
      raise OSError('interrupted')
    replace(source, target)

  monkeypatch.setattr(os, 'replace', replace_some)
  while True:
    left = moved
    try:
      huggingface.save(sharded, TIED, params, max_shard_bytes=max_shard_bytes)
    except errors.StorageError:
      assert 'expected model.safetensors, or shards' in problems_of(sharded)
      moved += 1
    else:
      break
  assert moved >= 3
  assert_same_bits(huggingface.load(sharded)[1], params)


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
  described = json.loads(tokenizers.ByteTokenizer().files()['tokenizer.json'])
  vocab = described['model']['vocab']
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


NAMES = sorted(
  ['model.embed_tokens.weight', 'model.norm.weight', 'lm_head.weight']
  + [
    f'model.layers.{layer}.{name}.weight'
    for layer in range(2)
    for name in (
      'input_layernorm',
      'self_attn.q_proj',
      'self_attn.k_proj',
      'self_attn.v_proj',
      'self_attn.o_proj',
      'post_attention_layernorm',
      'mlp.gate_proj',
      'mlp.up_proj',
      'mlp.down_proj',
    )
  ]
)


def longer(tensor):
  return np.concatenate([tensor, tensor[:1]])


def with_nan(tensor):
  tensor = tensor.copy()
  tensor.flat[-1] = np.nan
  return tensor


@pytest.mark.parametrize(
  'change, found',
  [
    (longer, 'found F32 ['),
    (lambda tensor: tensor[None], 'found F32 [1,'),
    (lambda tensor: tensor.T[..., None], 'found F32 ['),
    (lambda tensor: tensor.astype(np.float16), 'found F16 ['),
    (lambda tensor: tensor.astype(np.int32), 'found I32 ['),
    (with_nan, 'found NaN'),
  ],
  ids=['longer', 'nested', 'transposed', 'float16', 'int32', 'nan'],
)
def test_every_damaged_tensor_is_named_and_no_other(saved, change, found):
  whole = (saved / 'model.safetensors').read_bytes()
  for name in NAMES:
    (saved / 'model.safetensors').write_bytes(whole)
    rewrite(saved, lambda t, name=name: t.update({name: change(t[name])}))
    message = problems_of(saved)
    assert f'{name}: {found}' in message
    assert len(message.splitlines()) == 2, message


def test_every_missing_tensor_is_named_with_its_shape(saved):
  rewrite(saved, lambda tensors: [tensors.pop(name) for name in NAMES[1:]])
  message = problems_of(saved)
  for name in NAMES[1:]:
    assert f'{name}: found nothing, expected F32 [' in message
  assert f'{NAMES[0]}:' not in message


def test_one_error_lists_all_kinds_of_problems(saved):
  def damage(tensors):
    del tensors['model.layers.1.mlp.up_proj.weight']
    tensors['model.norm.weight'] = np.zeros(9, np.float32)
    tensors['lm_head.weight'] = np.zeros((12, 8), np.float64)
    tensors['model.layers.2.mlp.up_proj.weight'] = np.zeros((10, 8), np.int8)
    tensors['model.layers.0.self_attn.q_proj.bias'] = np.zeros(24, np.float32)
    tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.zeros(3)

  rewrite(saved, damage)
  message = problems_of(saved)
  for problem in (
    'model.layers.1.mlp.up_proj.weight: found nothing, expected F32 [10, 8]',
    'model.norm.weight: found F32 [9], expected F32 [8]',
    'lm_head.weight: found F64 [12, 8], expected F32 [12, 8]',
    'model.layers.2.mlp.up_proj.weight: found I8 [10, 8], expected no such',
    'q_proj.bias: found F32 [24], expected no such tensor',
  ):
    assert problem in message
  assert 'inv_freq' not in message
  assert len(message.splitlines()) == 6


def test_one_error_lists_all_broken_shards(sharded):
  shards = sorted(sharded.glob('*.safetensors'))
  assert len(shards) >= 3
  index = 'model.safetensors.index.json'
  shards[0].write_bytes(shards[0].read_bytes()[:-1])
  shards[1].unlink()
  weight_map = json.loads((sharded / index).read_text())['weight_map']
  last = [n for n in weight_map if weight_map[n] == shards[-1].name]
  twice = next(n for n in weight_map if weight_map[n] == shards[2].name)
  copied = safetensors.numpy.load_file(shards[2])[twice]
  rewrite(sharded, lambda t: t.update({twice: copied}), shards[-1].name)
  rewrite_json(
    sharded,
    index,
    weight_map=weight_map | {'ghost': shards[-1].name, last[0]: 'no.bin'},
  )
  message = problems_of(sharded)
  assert f'{shards[0].name} is not a whole safetensors file' in message
  assert f'{shards[1].name} is missing' in message
  assert f'{twice}: found again in {shards[-1].name}' in message
  assert f'ghost: found nowhere, expected in {shards[-1].name}' in message
  assert f"{last[0]}: found 'no.bin' in {index}" in message
  assert len(message.splitlines()) == 6, message


@pytest.mark.parametrize('size', [0, 7, 100, -1])
def test_truncated_file_is_refused(saved, size):
  whole = (saved / 'model.safetensors').read_bytes()
  (saved / 'model.safetensors').write_bytes(whole[:size])
  assert 'model.safetensors is not a whole safetensors' in problems_of(saved)


def test_pickles_are_refused_by_name_with_the_remedy(saved):
  (saved / 'model.safetensors').unlink()
  for name in ('pytorch_model.bin', 'a.pt', 'b.pth', 'c.pkl', 'd.ckpt'):
    (saved / name).write_bytes(b'')
    assert name in problems_of(saved)
  message = problems_of(saved)
  assert 'a.pt, b.pth, c.pkl, d.ckpt, pytorch_model.bin' in message
  assert 'convert them to safetensors' in message


class Canary:
  def __reduce__(self):
    raise_alarm = 'import pathlib; pathlib.Path("alarm").write_text("")'
    return exec, (raise_alarm,)


def test_pickles_are_never_opened(saved, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  payload = pickle.dumps(Canary())
  (saved / 'pytorch_model.bin').write_bytes(payload)
  huggingface.load(saved)
  (saved / 'model.safetensors').write_bytes(payload)
  assert 'not a whole safetensors file' in problems_of(saved)
  assert not (tmp_path / 'alarm').exists()


def test_index_can_not_lead_out_of_the_directory(sharded, tmp_path):
  shards = sorted(sharded.glob('*.safetensors'))
  outside = tmp_path / 'outside.safetensors'
  shards[0].rename(outside)
  shards[0].symlink_to(outside)
  index = 'model.safetensors.index.json'
  weight_map = json.loads((sharded / index).read_text())['weight_map']
  bad = ['../outside.safetensors', str(outside), 'a\\b.safetensors', '', 7]
  bad += ['sub/../../outside.safetensors', '..', 'nul\0.safetensors', None]
  names = [n for n in weight_map if weight_map[n] != shards[0].name]
  rewrite_json(sharded, index, weight_map=weight_map | dict(zip(names, bad)))
  message = problems_of(sharded)
  assert f'{shards[0].name} is a link that leaves the directory' in message
  for name, file in zip(names, bad):
    assert f'{name}: found {file!r} in' in message


def test_linked_config_that_leaves_the_directory_is_refused(saved, tmp_path):
  (saved / 'config.json').rename(tmp_path / 'config.json')
  (saved / 'config.json').symlink_to(tmp_path / 'config.json')
  assert 'leaves the directory' in problems_of(saved)


@pytest.mark.parametrize('content', [{}, {'weight_map': []}, [1]])
def test_index_without_map_is_refused(sharded, content):
  index = sharded / 'model.safetensors.index.json'
  index.write_text(json.dumps(content))
  assert 'model.safetensors.index.json' in problems_of(sharded)


def test_ambiguous_and_absent_weights_are_refused(saved):
  (saved / 'model.safetensors.index.json').write_text('{}')
  assert 'remove the stale one' in problems_of(saved)
  (saved / 'model.safetensors.index.json').unlink()
  (saved / 'model.safetensors').rename(saved / 'other.safetensors')
  assert 'other.safetensors: found' in problems_of(saved)
  (saved / 'other.safetensors').unlink()
  assert 'no weights found' in problems_of(saved)


def test_tied_output_may_be_stored_if_it_is_the_embedding(tmp_path):
  params = random_params(TIED)
  huggingface.save(tmp_path, TIED, params)
  head, embed = 'lm_head.weight', params['embed']
  rewrite(tmp_path, lambda t: t.update({head: embed}))
  assert_same_bits(huggingface.load(tmp_path)[1], params)
  rewrite(tmp_path, lambda t: t.update({head: embed + 1, 'more': embed}))
  message = problems_of(tmp_path)
  assert 'lm_head.weight: found numbers that differ' in message
  assert 'more: found F32' in message
  rewrite(tmp_path, lambda t: t.update({head: embed[:4]}))
  assert 'lm_head.weight: found F32 [4, 8], expected F32 [12, 8]' in (
    problems_of(tmp_path)
  )


@pytest.mark.parametrize(
  'changes, theta',
  [
    ({'rope_parameters': ...}, 500_000.0),
    ({'rope_parameters': ..., 'rope_scaling': None}, 500_000.0),
    ({'rope_parameters': ..., 'rope_theta': 7}, 7.0),
    ({'rope_parameters': ..., 'rope_theta': ...}, 10_000.0),
    ({'rope_theta': ...}, 500_000.0),
    ({'rope_scaling': {'type': 'default'}}, 500_000.0),
  ],
)
def test_old_and_new_forms_of_rope_are_read(saved, changes, theta):
  rewrite_json(saved, 'config.json', **changes)
  assert huggingface.read_config(saved).rope_theta == theta


def test_absent_keys_mean_what_transformers_assumes(saved):
  absent = dict.fromkeys(['num_key_value_heads', 'tie_word_embeddings'], ...)
  rewrite_json(saved, 'config.json', head_dim=None, rms_norm_eps=..., **absent)
  config = huggingface.read_config(saved)
  assert (config.num_kv_heads, config.head_dim) == (4, 2)
  assert (config.tied, config.norm_eps) == (False, 1e-6)


def test_unsupported_features_are_listed_together(saved):
  rewrite_json(
    saved,
    'config.json',
    model_type='gpt2',
    architectures=['GPT2LMHeadModel'],
    hidden_act='gelu',
    attention_bias=True,
    mlp_bias=True,
    sliding_window=8,
    layer_types=['sliding_attention'],
    rope_scaling={'type': 'dynamic', 'factor': 2.0},
    rope_parameters={'rope_type': 'llama3', 'rope_theta': 1.0},
    quantization_config={'bits': 4},
    num_hidden_layers=10**12,
    hidden_size='8',
    intermediate_size=...,
    rms_norm_eps=float('nan'),
    vocab_size=True,
  )
  message = problems_of(saved)
  for problem in (
    "architectures = ['GPT2LMHeadModel']; supported: one of LlamaForCausalLM",
    "hidden_act = 'gelu'; supported: 'silu'",
    'attention_bias = True',
    'mlp_bias = True',
    "rope_scaling.rope_type = 'dynamic'; supported: 'default', 'linear'",
    'rope_parameters.factor = None; allowed: above 0',
    'sliding_window = 8; supported: null, or no less than',
    "layer_types = ['sliding_attention']; supported: 'full_attention'",
    'differ; expected one value',
    "quantization_config = {'bits': 4}; supported: None",
    'num_hidden_layers = 1000000000000; allowed: from 1 to below 10001',
    "hidden_size = '8'; allowed: at least 1",
    'intermediate_size is missing',
    'rms_norm_eps = nan',
    'vocab_size = True',
  ):
    assert problem in message
  assert len(message.splitlines()) == 16, message


def test_heads_that_can_not_be_grouped_are_refused(saved):
  rewrite_json(saved, 'config.json', num_key_value_heads=3)
  assert 'not a multiple' in problems_of(saved)


@pytest.mark.parametrize(
  'text', ['', '{', '[]', '[' * 100_000, '{"a": ' * 100_000, '9' * 5000, '\x80']
)
def test_malformed_config_is_refused_by_name(saved, text):
  (saved / 'config.json').write_text(text, encoding='latin-1')
  assert 'config.json' in problems_of(saved)


def test_huge_and_missing_config_is_refused(saved):
  os.truncate(saved / 'config.json', 2**40)  # sparse
  assert 'config.json is larger than 67108864 bytes' in problems_of(saved)
  (saved / 'config.json').unlink()
  assert 'config.json is missing' in problems_of(saved)


def test_random_damage_is_explained_or_harmless(sharded):
  rng = np.random.default_rng(0)
  shard = next(sharded.glob('*.safetensors')).name
  for file in ('config.json', 'model.safetensors.index.json', shard):
    whole = (sharded / file).read_bytes()
    for _ in range(100):
      damaged = bytearray(whole)
      for at in rng.integers(0, len(whole), 2):
        damaged[at] = rng.integers(256)
      (sharded / file).write_bytes(damaged)
      with contextlib.suppress(errors.DataError):
        huggingface.load(sharded)
    (sharded / file).write_bytes(whole)
