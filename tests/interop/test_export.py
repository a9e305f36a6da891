"""What an export says besides its weights: settings, tokenizer, template."""

import dataclasses
import json

import numpy as np
import pytest

from satjax import errors
from satjax.data import special_tokens, tokenizers
from satjax.data.encode import Encoder
from satjax.interop import grow, huggingface, models, small_files
from satjax.interop.small_files import Settings
from tests import models as samples

MARKERS = (
  '<|im_start|>',
  '<|im_end|>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|eot_id|>',
)
MODEL = samples.make(vocab_size=272)
SCALED = dataclasses.replace(
  MODEL, rope_theta=5e5, rope_scaling=('llama3', 8.0, 1.0, 4.0, 8192.0)
)


def write_tokenizer(folder, markers=(), **config):
  """Bytes as a tokenizer.json, with some markers after them."""
  folder.mkdir(exist_ok=True)
  contents = {
    name: json.loads(content)
    for name, content in tokenizers.ByteTokenizer().files().items()
  }
  contents['tokenizer.json']['added_tokens'] += [
    special_tokens.entry(number, marker)
    for number, marker in enumerate(markers, 258)
  ]
  contents['tokenizer_config.json'] |= config
  for name, content in contents.items():
    (folder / name).write_text(json.dumps(content))
  return tokenizers.get_tokenizer(f'hf:{folder}')


def write_named(folder):
  """Templates with names, as transformers writes them."""
  write_tokenizer(folder, MARKERS)
  own = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
  (folder / 'chat_template.jinja').write_text(own)
  more = folder / 'additional_chat_templates'
  more.mkdir(exist_ok=True)
  for name in ('rag', 'tool_use'):
    (more / f'{name}.jinja').write_text(f'{name} {own}')
  return tokenizers.get_tokenizer(f'hf:{folder}')


def stored(folder, name='config.json'):
  return json.loads((folder / name).read_text())


def write_base(folder, model=SCALED, generation=None, **changes):
  """A model directory of somebody else."""
  huggingface.save(folder, model, samples.make_params(model), seq_len=64)
  config = stored(folder) | changes
  (folder / 'config.json').write_text(json.dumps(config))
  if generation is not None:
    path = folder / 'generation_config.json'
    path.write_text(json.dumps(generation))
  return Settings.read(folder)


def export(folder, base, tokenizer, model=SCALED, **options):
  huggingface.save(
    folder,
    model,
    samples.make_params(model),
    base=base,
    tokenizer=tokenizer,
    **options,
  )
  return stored(folder), stored(folder, 'generation_config.json')


# --- settings of the base ---------------------------------------------------


def test_what_the_base_says_stays_as_it_is_written(tmp_path):
  rope = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
  }
  base = write_base(
    tmp_path / 'base',
    generation={
      '_from_model_config': True,
      'eos_token_id': [257, 9],
      'pad_token_id': 5,
      'do_sample': True,
      'temperature': 0.6,
      'top_k': None,
    },
    max_position_embeddings=131072,
    rope_theta=500000,
    rope_scaling=rope,
    rope_parameters=rope | {'rope_theta': 500000.0},
    eos_token_id=[257, 9],
    bos_token_id=7,
    initializer_range=0.02,
    _name_or_path='somebody/model',
  )
  tokenizer = write_tokenizer(tmp_path / 'tokenizer')
  config, generation = export(tmp_path / 'out', base, tokenizer, seq_len=16)
  assert config['max_position_embeddings'] == 131072
  assert config['rope_scaling'] == rope
  for name in ('rope_scaling', 'rope_parameters'):
    assert type(config[name]['original_max_position_embeddings']) is int
    assert type(config[name]['factor']) is float
  assert type(config['rope_theta']) is int
  assert config['initializer_range'] == 0.02
  assert '_name_or_path' not in config
  ids = [config[f'{name}_token_id'] for name in ('bos', 'eos', 'pad')]
  assert ids == [7, [257, 9], 5]
  assert generation == {
    'bos_token_id': 7,
    'eos_token_id': [257, 9],
    'pad_token_id': 5,
    'do_sample': True,
    'temperature': 0.6,
    'suppress_tokens': [*range(258, 272)],
  }
  assert huggingface.load(tmp_path / 'out')[0] == SCALED


def test_rows_that_are_longer_than_the_base_had_make_the_context_longer(
  tmp_path,
):
  base = write_base(tmp_path / 'base', max_position_embeddings=64)
  tokenizer = tokenizers.ByteTokenizer()
  for seq_len, context in ((16, 64), (128, 128)):
    config, _ = export(tmp_path / 'out', base, tokenizer, seq_len=seq_len)
    assert config['max_position_embeddings'] == context
  base = write_base(tmp_path / 'base', max_position_embeddings=None)
  config, _ = export(tmp_path / 'out', base, tokenizer, seq_len=16)
  assert config['max_position_embeddings'] == 2048  # as transformers has it
  config, _ = export(tmp_path / 'new', None, tokenizer, seq_len=16)
  assert config['max_position_embeddings'] == 16


def test_all_ends_are_those_of_base_tokenizer_and_chat(tmp_path):
  base = write_base(tmp_path / 'base', generation={'eos_token_id': [9, 257]})
  tokenizer = write_tokenizer(tmp_path / 'tokenizer', MARKERS)
  _, generation = export(tmp_path / 'out', base, tokenizer, stop_id=259)
  assert generation['eos_token_id'] == [9, 257, 259]
  _, generation = export(tmp_path / 'new', None, tokenizer, stop_id=257)
  assert generation['eos_token_id'] == 257
  loaded = models.load(tmp_path / 'out', tokenizer)
  assert loaded.end_ids == (9, 257, 259)


def test_ids_of_another_tokenizer_are_not_kept(tmp_path):
  base = write_base(
    tmp_path / 'base',
    generation={'eos_token_id': 2, 'pad_token_id': 3, 'temperature': 0.5},
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=3,
  )
  config, generation = export(
    tmp_path / 'out', base, tokenizers.ByteTokenizer()
  )
  assert (config['bos_token_id'], config['eos_token_id']) == (256, 257)
  assert not {'pad_token_id'} & {*config, *generation}
  assert generation['eos_token_id'] == 257
  assert generation['temperature'] == 0.5


def test_a_pad_token_of_the_tokenizer_is_named(tmp_path):
  tokenizer = write_tokenizer(tmp_path / 't', MARKERS, pad_token='<|eot_id|>')
  for said in export(tmp_path / 'out', None, tokenizer):
    assert said['pad_token_id'] == 262


def test_rows_without_a_token_are_suppressed_in_gaps_too(tmp_path):
  tokenizer = write_tokenizer(tmp_path / 'tokenizer')
  described = stored(tmp_path / 'tokenizer', 'tokenizer.json')
  ends = {tokenizers.BEGIN: 256, tokenizers.END: 257}
  described['model']['vocab'] |= ends | {'<x>': 260}
  path = tmp_path / 'tokenizer' / 'tokenizer.json'
  path.write_text(json.dumps(described))
  tokenizer = tokenizers.get_tokenizer(f'hf:{tmp_path}/tokenizer')
  assert tokenizer.vocab_size == 261
  _, generation = export(tmp_path / 'out', None, tokenizer)
  assert generation['suppress_tokens'] == [258, 259, *range(261, 272)]


def test_a_run_finds_its_base_in_its_folder_or_where_it_was(tmp_path):
  said = write_base(tmp_path / 'base', max_position_embeddings=77)
  found = small_files.base_of(tmp_path / 'run', str(tmp_path / 'base'))
  assert found == said
  (tmp_path / 'run' / 'base').mkdir(parents=True)
  for name, content in small_files.files_of(tmp_path / 'base').items():
    (tmp_path / 'run' / 'base' / name).write_bytes(content)
  assert small_files.base_of(tmp_path / 'run', str(tmp_path / 'gone')) == said
  assert small_files.base_of(tmp_path / 'new', '') == Settings()


# --- the tokenizer ----------------------------------------------------------


# The first is known to transformers 5 alone; transformers 4 puts a begin before
# every text for the second, and neither reads bytes with the third.
@pytest.mark.parametrize(
  'name', ['TokenizersBackend', 'LlamaTokenizer', 'GemmaTokenizer']
)
def test_the_class_is_one_that_reads_the_tokenizer_as_it_is(tmp_path, name):
  tokenizer = write_tokenizer(
    tmp_path / 'tokenizer',
    MARKERS,
    tokenizer_class=name,
    backend='tokenizers',
    extra_special_tokens=['<|im_start|>'],
  )
  export(tmp_path / 'out', None, tokenizer)
  config = stored(tmp_path / 'out', 'tokenizer_config.json')
  assert config['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert config['additional_special_tokens'] == ['<|im_start|>']
  assert not {'backend', 'extra_special_tokens'} & {*config}


def test_the_tokenizer_of_a_directory_is_found(tmp_path):
  assert models.tokenizer_spec(tmp_path) == 'byte'
  (tmp_path / 'vocab.json').write_text('{}')
  with pytest.raises(errors.ConfigError, match=r'vocab\.json.*--tokenizer'):
    models.tokenizer_spec(tmp_path)
  (tmp_path / 'tokenizer.model').write_bytes(b'')
  expected = f'sentencepiece:{tmp_path}/tokenizer.model'
  assert models.tokenizer_spec(tmp_path) == expected
  write_tokenizer(tmp_path, MARKERS)
  assert models.tokenizer_spec(tmp_path) == f'hf:{tmp_path}'
  assert models.tokenizer_of(tmp_path).markers['<|eot_id|>'] == 262
  write_tokenizer(tmp_path)
  assert models.tokenizer_of(tmp_path).name == 'byte'


# --- the chat template ------------------------------------------------------


def test_an_export_has_the_template_that_was_trained(tmp_path):
  own = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
  tokenizer = write_tokenizer(tmp_path / 't', MARKERS, chat_template=own)
  out = tmp_path / 'out'
  for name in ('chatml', 'llama3'):
    template = Encoder(tokenizer, name).chat.source
    export(out, None, tokenizer, template=template)
    assert (out / 'chat_template.jinja').read_text() == template
    assert 'chat_template' not in stored(out, 'tokenizer_config.json')
    assert models.template_of(out, tokenizer) == name
  source = Encoder(tokenizer, 'auto').chat.source
  export(out, None, tokenizer, template=source)  # trained by its own
  assert not (out / 'chat_template.jinja').exists()
  assert stored(out, 'tokenizer_config.json')['chat_template'] == own
  assert models.template_of(out, tokenizer) == 'auto'


def test_templates_with_names_go_along(tmp_path):
  tokenizer = write_named(tmp_path / 't')
  assert set(tokenizer.chat_templates) == {'default', 'rag', 'tool_use'}
  source = Encoder(tokenizer, 'auto').chat.source
  out, kept = tmp_path / 'out', tmp_path / 'kept'
  export(out, None, tokenizer, template=source)
  kept.mkdir()
  for name, content in tokenizer.files().items():  # as a run keeps them
    (kept / name).write_bytes(content)
  huggingface.copy(out, tmp_path / 'copy')
  for folder in (out, kept, tmp_path / 'copy'):
    again = tokenizers.get_tokenizer(f'hf:{folder}')
    assert again.chat_templates == tokenizer.chat_templates
    assert again.fingerprint == tokenizer.fingerprint
  # Of another template than its own, none of these is true.
  write_named(out)  # files of before
  export(out, None, tokenizer, template='{{ 1 }}')
  again = tokenizers.get_tokenizer(f'hf:{out}')
  assert again.chat_templates == {'default': '{{ 1 }}'}


def test_files_of_templates_are_copied(tmp_path):
  source, copy, grown = (tmp_path / name for name in ('a', 'b', 'c'))
  write_base(source)
  tokenizer = write_named(source)
  huggingface.copy(source, copy)
  grow.grow(source, grown, (('stack', 2),))
  for folder in (copy, grown):
    again = tokenizers.get_tokenizer(f'hf:{folder}')
    assert again.chat_templates == tokenizer.chat_templates


# --- the card ---------------------------------------------------------------


def test_a_card_of_somebody_else_stays(tmp_path):
  out, tokenizer = tmp_path / 'out', tokenizers.ByteTokenizer()
  ours = 'written_by: satjax\n'
  export(out, None, tokenizer, card=ours + '1')
  export(out, None, tokenizer, card=ours + '2')
  assert (out / 'README.md').read_text() == ours + '2'
  assert 'README.md' not in stored(out, 'checksums.json')['files']
  (out / 'README.md').write_text('mine')
  export(out, None, tokenizer, card=ours + '3')
  assert (out / 'README.md').read_text() == 'mine'
  export(tmp_path / 'none', None, tokenizer)
  assert not (tmp_path / 'none' / 'README.md').exists()


# --- rows of the tables -----------------------------------------------------


def test_rows_are_added_as_the_mean_of_the_others(tmp_path):
  write_base(tmp_path / 'base', MODEL)
  before = huggingface.load(tmp_path / 'base')[1]
  config, params = huggingface.load(tmp_path / 'base', vocab_size=280)
  assert config == dataclasses.replace(MODEL, vocab_size=280)
  for name in ('embed', 'unembed'):
    np.testing.assert_array_equal(params[name][:272], before[name])
    mean = np.broadcast_to(before[name].mean(axis=0), (8, 8))
    np.testing.assert_allclose(params[name][272:], mean, rtol=1e-5, atol=1e-7)
  same = huggingface.load(tmp_path / 'base', vocab_size=5)[0]
  assert same == MODEL
