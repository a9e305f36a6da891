"""Our model directories against transformers: weights, logits, tokens."""

import dataclasses
import os

import numpy as np
import pytest

os.environ['HF_HUB_OFFLINE'] = '1'  # read when transformers is imported
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import jax  # noqa: E402
import safetensors.torch  # noqa: E402

from satjax.data import tokenizers  # noqa: E402
from satjax.interop import huggingface, llama  # noqa: E402
from satjax.model import decoder  # noqa: E402
from tests import models  # noqa: E402
from tests.interop import test_export  # noqa: E402

pytestmark = pytest.mark.parity

SHAPES = {
  'multi_head': {},
  'grouped': {'num_key_value_heads': 2},
  'tied': {'tie_word_embeddings': True},
  'wide_heads': {'head_dim': 12, 'num_key_value_heads': 1},
  'long_rope': {'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5}},
}
CONFIG = models.make(
  embed_dim=16,
  head_dim=6,
  mlp_dim=24,
  vocab_size=320,
  rope_theta=500_000.0,
)


def random_llama(changes):
  """A float32 Llama of transformers, its norm gains random too."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    initializer_range=0.2,
    **changes,
  )
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for name, tensor in model.named_parameters():
      if 'norm' in name:
        tensor.uniform_(0.5, 1.5)
  return model


def assert_same_logits(model, config, params):
  tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 17))
  with torch.no_grad():
    expected = model(torch.tensor(tokens)).logits.numpy()
  logits = decoder.apply(config, params, {'tokens': tokens.astype(np.int32)})
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('max_shard_size', ['1GB', '8KB'])
@pytest.mark.parametrize('changes', SHAPES.values(), ids=SHAPES)
def test_logits_match_transformers(tmp_path, changes, max_shard_size):
  model = random_llama(changes)
  model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
  assert len(list(tmp_path.glob('*.safetensors'))) > (max_shard_size == '8KB')
  config, params = huggingface.load(tmp_path)
  assert_same_logits(model, config, params)


# Of each family: the configuration's class, and what it is given.
LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 1e4,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8,
}
FAMILIES = {
  'llama 3.1': ('Llama', {'rope_parameters': LLAMA3, 'head_dim': 32}),
  'linear': (
    'Llama',
    {
      'rope_parameters': {
        'rope_type': 'linear',
        'rope_theta': 1e4,
        'factor': 4.0,
      }
    },
  ),
  'mistral': ('Mistral', {'sliding_window': None, 'num_key_value_heads': 2}),
  'mistral with a window': (
    'Mistral',
    {'sliding_window': 5, 'num_key_value_heads': 2},
  ),
  'qwen2': ('Qwen2', {'num_key_value_heads': 2}),
  'qwen2 with a window': (
    'Qwen2',
    {
      'use_sliding_window': True,
      'sliding_window': 5,
      'max_window_layers': 0,
    },
  ),
  'qwen2 tied': ('Qwen2', {'tie_word_embeddings': True}),
  'qwen3': ('Qwen3', {'head_dim': 12, 'num_key_value_heads': 2}),
}


SLOW = {'linear', 'qwen2 tied', 'mistral', 'qwen2 with a window'}


def random_model(kind, changes):
  """A float32 model of transformers whose every number is random."""
  torch.manual_seed(0)
  config = getattr(transformers, f'{kind}Config')(
    **{
      'vocab_size': 64,
      'hidden_size': 32,
      'intermediate_size': 48,
      'num_hidden_layers': 3,
      'num_attention_heads': 4,
      'num_key_value_heads': 4,
      'initializer_range': 0.2,
      'max_position_embeddings': 64,
    }
    | changes
  )
  model = getattr(transformers, f'{kind}ForCausalLM')(config).eval()
  with torch.no_grad():
    for name, tensor in model.named_parameters():
      if 'norm' in name:
        tensor.uniform_(0.5, 1.5)
      elif 'bias' in name:
        tensor.uniform_(-0.5, 0.5)
  return model


@pytest.mark.parametrize(
  'family',
  [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in FAMILIES
  ],
)
def test_families_have_their_logits_and_come_back_bitwise(tmp_path, family):
  model = random_model(*FAMILIES[family])
  model.save_pretrained(tmp_path / 'theirs')
  config, params = huggingface.load(tmp_path / 'theirs')
  assert_same_logits(model, config, params)
  huggingface.save(tmp_path / 'ours', config, params)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  assert_same_logits(again.eval(), config, params)
  state = again.state_dict()
  for name, tensor in model.state_dict().items():
    assert torch.equal(state[name], tensor), name
  assert huggingface.load(tmp_path / 'ours')[0] == config


@pytest.mark.parametrize('window', [None, 5])
def test_phi3_is_a_llama_or_a_mistral_with_fused_matrices(tmp_path, window):
  changes = {'num_key_value_heads': 2, 'pad_token_id': 0}
  model = random_model('Phi3', {'sliding_window': window, **changes})
  model.save_pretrained(tmp_path / 'theirs')
  config, params = huggingface.load(tmp_path / 'theirs')
  assert_same_logits(model, config, params)
  huggingface.save(tmp_path / 'ours', config, params)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  assert again.config.model_type == ('mistral' if window else 'llama')
  assert_same_logits(again.eval(), config, params)


@pytest.mark.parametrize('kind', ['Llama', 'Mistral', 'Qwen2', 'Phi3'])
def test_absent_keys_mean_what_transformers_assumes(kind):
  stored = {
    'model_type': kind.lower(),
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 40,
    'num_attention_heads': 4,
    'num_key_value_heads': 4,
    'vocab_size': 64,
  }
  if kind == 'Qwen2':
    stored |= {'use_sliding_window': True, 'max_window_layers': 0}
  config, problems = llama.config_of(stored)
  assert not problems
  theirs = getattr(transformers, f'{kind}Config')(**stored)
  assert config.norm_eps == theirs.rms_norm_eps
  assert config.tied == theirs.tie_word_embeddings
  assert config.rope_theta == theirs.rope_parameters['rope_theta']
  window = getattr(theirs, 'sliding_window', None)
  assert config.sliding_window == (window or 0)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('max_shard_bytes', [2**30, 10_000])
@pytest.mark.parametrize('tied', [False, True])
def test_transformers_reads_the_bits_that_were_saved(
  tmp_path, dtype, max_shard_bytes, tied
):
  config = dataclasses.replace(CONFIG, tied=tied)
  params = decoder.init_params(config, jax.random.key(0))
  huggingface.save(
    tmp_path, config, params, dtype=dtype, max_shard_bytes=max_shard_bytes
  )
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype='auto', output_loading_info=True
  )
  assert not any(report.values()), report
  assert model.dtype == getattr(torch, dtype)
  state = model.state_dict()
  files = list(tmp_path.glob('*.safetensors'))
  assert (len(files) > 1) == (max_shard_bytes < 2**30)
  stored = {
    n: t for f in files for n, t in safetensors.torch.load_file(f).items()
  }
  assert stored.keys() == state.keys() - ({'lm_head.weight'} if tied else set())
  for name, tensor in stored.items():
    assert torch.equal(tensor, state[name]), name
  query = np.asarray(params['blocks']['attention']['query'].astype(dtype)[1])
  name = 'model.layers.1.self_attn.q_proj.weight'
  expected = query.astype(np.float32).reshape(24, 16)
  assert np.array_equal(state[name].float().numpy(), expected)
  if dtype == 'float32':
    assert_same_logits(model.eval(), config, params)


def test_model_goes_to_transformers_and_back_without_a_change(tmp_path):
  model = random_llama(SHAPES['grouped'])
  model.save_pretrained(tmp_path / 'theirs')
  config, params = huggingface.load(tmp_path / 'theirs')
  huggingface.save(tmp_path / 'ours', config, params)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  for name, tensor in model.state_dict().items():
    assert torch.equal(again.state_dict()[name], tensor), name


TEXTS = (
  'plain',
  'Grüße, Ärger & Öl',
  '🦊👩‍🔬 emoji',
  '\n\n  spaces \t and , punctuation !\r\n ',
  '\x00\x7f\xa0\xad\u2028',
  '',
)


@pytest.fixture(scope='module')
def their_tokenizer(tmp_path_factory):
  directory = tmp_path_factory.mktemp('tokenizer')
  huggingface.save(
    directory,
    CONFIG,
    decoder.init_params(CONFIG, jax.random.key(0)),
    tokenizer=tokenizers.ByteTokenizer(),
  )
  return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize('text', TEXTS)
def test_byte_tokenizer_gives_bytes_and_text_back(their_tokenizer, text):
  ids = their_tokenizer(text)['input_ids']
  assert ids == list(text.encode())
  assert ids == tokenizers.ByteTokenizer().encode(text).tolist()
  assert their_tokenizer.decode(ids) == text


def test_every_byte_has_its_own_id(their_tokenizer):
  vocab = their_tokenizer.get_vocab()
  assert sorted(vocab.values()) == list(range(258))
  every_byte = ''.join(map(chr, range(0x800)))
  assert their_tokenizer(every_byte)['input_ids'] == list(every_byte.encode())


def test_special_tokens_begin_and_end_a_text(their_tokenizer):
  assert their_tokenizer.bos_token_id == 256
  assert their_tokenizer.eos_token_id == 257
  text = '<|begin_of_text|>hé<|end_of_text|>'
  ids = [256, *'hé'.encode(), 257]
  assert their_tokenizer(text)['input_ids'] == ids
  assert their_tokenizer.decode(ids) == text
  assert their_tokenizer.decode(ids, skip_special_tokens=True) == 'hé'


def test_templates_with_names_are_the_same_for_autotokenizer(tmp_path):
  own = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
  named = {'default': own, 'rag': 'rag' + own, 'tool_use': 'tools' + own}
  theirs = transformers.AutoTokenizer.from_pretrained(
    test_export.write_tokenizer(tmp_path / 'bare').name.removeprefix('hf:')
  )
  theirs.chat_template = named
  theirs.save_pretrained(tmp_path / 'theirs')
  assert (tmp_path / 'theirs/additional_chat_templates/rag.jinja').is_file()
  tokenizer = tokenizers.get_tokenizer(f'hf:{tmp_path}/theirs')
  test_export.export(tmp_path / 'ours', None, tokenizer, template=own)
  huggingface.copy(tmp_path / 'ours', tmp_path / 'copy')
  for name in ('ours', 'copy'):
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
    assert again.chat_template == named
