"""GGUF files become model directories with the same numbers and tokens."""

import dataclasses
import json

import gguf
import jax
import numpy as np
import pytest

from satjax import cli, errors, tree
from satjax.data import tokenizers
from satjax.interop import gguf_files, huggingface
from tests import models
from tests.interop import gguf_samples

LLAMA = models.make(vocab_size=11, head_dim=4, embed_dim=32, mlp_dim=32)

TOKENS = 'tokenizer.ggml.tokens'
WINDOW = 'llama.attention.sliding_window'
WITHOUT_MERGES = {
  n: x for n, x in gguf_samples.LETTERS.items() if not n.endswith('.merges')
}
NANS = np.full(32, np.nan, np.float32)


def convert(tmp_path, model=LLAMA, **how):
  file = tmp_path / 'model.gguf'
  how.setdefault('fields', gguf_samples.LETTERS)
  gguf_samples.write(file, model, models.make_params(model), **how)
  gguf_files.convert(file, tmp_path / 'out')
  return tmp_path / 'out'


@pytest.mark.parametrize(
  'kind, changes',
  [
    ('llama', {}),
    ('llama', {'tied': True, 'num_kv_heads': 4}),
    ('qwen2', {'qkv_bias': True}),
    ('qwen3', {'qk_norm': True}),
  ],
)
def test_a_file_gives_the_model_that_it_was_written_of(tmp_path, kind, changes):
  model = dataclasses.replace(LLAMA, **changes)
  config, params = huggingface.load(convert(tmp_path, model, kind=kind))
  assert config == dataclasses.replace(model, rope_theta=config.rope_theta)
  assert config.rope_theta == pytest.approx(model.rope_theta)
  jax.tree.map(
    np.testing.assert_array_equal, params, dict(models.make_params(model))
  )


@pytest.mark.parametrize('stored', ['F16', 'BF16', 'Q8_0', 'Q4_1'])
def test_quantised_weights_are_what_the_library_says(tmp_path, stored):
  kind = gguf.GGMLQuantizationType[stored]

  def change(found):
    return {
      name: (x, kind) if x.ndim > 1 and x.shape[-1] % 32 == 0 else x
      for name, x in found.items()
    }

  _, params = huggingface.load(convert(tmp_path, change=change))
  expected = models.make_params(LLAMA)['embed']
  rounded = gguf.quants.dequantize(
    gguf.quants.quantize(np.asarray(expected), kind), kind
  )
  np.testing.assert_array_equal(params['embed'], rounded)
  worst = max(
    float(np.abs(a - b).max())
    for a, b in zip(
      tree.flatten(params).values(),
      tree.flatten(dict(models.make_params(LLAMA))).values(),
    )
  )
  assert 0 < worst < 0.2


def test_rotations_are_scaled_as_the_file_says(tmp_path):
  slow = dataclasses.replace(LLAMA, rope_theta=1e8)

  def change(found):
    return found | {'rope_freqs.weight': np.array([1.0, 8.0], np.float32)}

  config, _ = huggingface.load(convert(tmp_path, slow, change=change))
  assert config.rope_scaling == ('llama3', 8.0, 1.0, 4.0, 8192.0)
  with pytest.raises(errors.DataError, match='not those of Llama 3.1'):
    convert(tmp_path, change=change)
  scaled = {
    'llama.rope.scaling.type': 'linear',
    'llama.rope.scaling.factor': 2.0,
  }
  for more in (scaled, {'llama.rope.scale_linear': 2.0}):  # new and old
    fields = gguf_samples.LETTERS | more
    config, _ = huggingface.load(convert(tmp_path, fields=fields))
    assert config.rope_scaling == ('linear', 2.0)


def test_bytes_are_merged_as_the_file_says(tmp_path):
  found = tokenizers.get_tokenizer(f'hf:{convert(tmp_path)}')
  # Digits stand alone for this way to cut, so that 12 is never merged.
  assert found.encode('ab ab12').tolist() == [8, 9, 5, 6]
  assert found.decode([8, 9, 5, 6]) == 'ab ab12'
  assert (found.markers['</s>'], found.eos_id) == (1, 1)


def test_pieces_are_merged_by_their_scores(tmp_path):
  model = dataclasses.replace(LLAMA, vocab_size=10)
  out = convert(tmp_path, model, fields=gguf_samples.PIECES)
  found = tokenizers.get_tokenizer(f'hf:{out}')
  assert found.encode('ab\nab').tolist() == [8, 9, 6]
  assert found.decode([8, 9, 6]) == 'ab\nab'
  assert (found.bos_id, found.eos_id) == (1, 2)
  settings = json.loads((out / 'tokenizer_config.json').read_text())
  assert settings['add_bos_token'] is True


@pytest.mark.parametrize('rule, begin', [('llama-bpe', 0), ('qwen2', None)])
def test_begin_and_fillers_are_what_llama_cpp_takes_them_for(
  tmp_path, rule, begin
):
  fields = dict(gguf_samples.LETTERS)
  fields['tokenizer.ggml.pre'] = rule
  fields['tokenizer.ggml.tokens'] = [*fields[TOKENS], '[PAD11]']
  fields['tokenizer.ggml.token_type'] = [3, 3, *[1] * 9, 5]
  model = dataclasses.replace(LLAMA, vocab_size=12)
  found = tokenizers.get_tokenizer(
    f'hf:{convert(tmp_path, model, fields=fields)}'
  )
  assert (found.bos_id, found.vocab_size) == (begin, 11)


def test_templates_and_ends_go_along(tmp_path):
  more = {
    'tokenizer.chat_template': '{{ 1 }}',
    'tokenizer.chat_templates': ['tools'],
    'tokenizer.chat_template.tools': '{{ 2 }}',
    'tokenizer.ggml.eot_token_id': 4,
    'tokenizer.ggml.padding_token_id': 1,
  }
  out = convert(tmp_path, fields=gguf_samples.LETTERS | more)
  settings = json.loads((out / 'tokenizer_config.json').read_text())
  assert settings['chat_template'] == [
    {'name': 'default', 'template': '{{ 1 }}'},
    {'name': 'tools', 'template': '{{ 2 }}'},
  ]
  generation = json.loads((out / 'generation_config.json').read_text())
  assert generation == {
    'bos_token_id': 0,
    'eos_token_id': [1, 4],
    'pad_token_id': 1,
  }


@pytest.mark.parametrize(
  'how, said',
  [
    ({'kind': 'gpt2'}, "architecture = 'gpt2'; supported: llama, qwen2"),
    (
      {'fields': gguf_samples.LETTERS | {'tokenizer.ggml.pre': 'other'}},
      "pre = 'other', a way to cut text that is not known",
    ),
    (
      {'fields': gguf_samples.LETTERS | {'tokenizer.ggml.model': 't5'}},
      "model = 't5'; supported",
    ),
    (
      {'fields': WITHOUT_MERGES},
      'tokenizer.ggml.merges is missing',
    ),
    (
      {'fields': gguf_samples.LETTERS | {'tokenizer.ggml.merges': ['a c']}},
      "'a c' is no pair of tokens that are one",
    ),
    (
      {'fields': gguf_samples.LETTERS | {'tokenizer.ggml.eot_token_id': 11}},
      'eot_token_id = 11; allowed: below 11',
    ),
    (
      {'fields': gguf_samples.PIECES | {'tokenizer.ggml.scores': [0]}},
      'scores: found 1, expected 10',
    ),
    (
      {'fields': gguf_samples.LETTERS | {'split.count': 3}},
      'is one of 3 parts; join them',
    ),
    (
      {'fields': gguf_samples.LETTERS | {'llama.rope.dimension_count': 2}},
      'rope.dimension_count = 2; supported: 4, all',
    ),
    (
      {'fields': gguf_samples.LETTERS | {WINDOW: 16}},
      'sliding_window = 16; supported: null',
    ),
    (
      {'change': lambda x: {n: x[n] for n in x if n != 'output_norm.weight'}},
      'output_norm.weight: found nothing',
    ),
    (
      {'change': lambda x: x | {'blk.0.ffn_gate_inp.weight': np.zeros(4, 'f')}},
      'ffn_gate_inp.weight: found .4,., expected nothing',
    ),
    (
      {
        'change': lambda x: x | {'output_norm.weight': np.full(32, np.nan, 'f')}
      },
      'norm.weight: found NaN',
    ),
    (
      {'fields': gguf_samples.LETTERS | {'llama.rope.scaling.type': 'yarn'}},
      "rope_type = 'yarn'",
    ),
  ],
)
def test_what_is_not_known_is_refused(tmp_path, how, said):
  with pytest.raises(errors.DataError, match=said):
    convert(tmp_path, **how)
  assert not (tmp_path / 'out' / 'model.safetensors').exists()


def test_no_gguf_file_and_half_of_one(tmp_path, capsys):
  file = tmp_path / 'model.gguf'
  gguf_samples.write(
    file, LLAMA, models.make_params(LLAMA), fields=gguf_samples.LETTERS
  )
  content = file.read_bytes()
  for part in (b'', b'GGUF', b'no file of that kind', content[:700]):
    file.write_bytes(part)
    assert cli.main(['fetch', str(file), f'--out={tmp_path / "out"}']) == 65
    assert 'is no whole GGUF file' in capsys.readouterr().err
  file.write_bytes(content[: len(content) // 2])
  assert cli.main(['fetch', str(file), f'--out={tmp_path / "out"}']) == 65
  missing = tmp_path / 'none.gguf'
  assert cli.main(['fetch', str(missing), f'--out={tmp_path / "out"}']) == 65
