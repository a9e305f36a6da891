"""Adapter directories: what is in them, and when there is none."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from satjax import errors
from satjax.config.groups import LoraConfig
from satjax.data import tokenizers
from satjax.interop import huggingface, peft, small_files
from satjax.model import lora
from tests import models

LORA = LoraConfig(rank=3, alpha=6.0, targets=('query', 'output', 'up', 'down'))


def save_base(folder, config=LORA, **changes):
  """A model with a directory of its own, and random adapters of it."""
  model = models.make(**changes)
  huggingface.save(folder, model, models.make_params(model))
  model = models.make(**changes, init_from=str(folder))
  rng = np.random.default_rng(0)
  adapters = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
    jax.eval_shape(
      functools.partial(lora.init, config, model), jax.random.key(1)
    ),
  )
  return model, adapters


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return save_base(tmp_path_factory.mktemp('base'))


def test_a_card_of_somebody_else_stays(base, tmp_path):
  model, adapters = base
  own = {'README.md': b'written_by: satjax', 'tokenizer.json': b'{}'}
  card = tmp_path / 'README.md'
  for found in (own['README.md'], b'mine'):
    peft.save(tmp_path, LORA, model, adapters, contents=own)
    assert card.read_bytes() == own['README.md']
    card.write_bytes(found)
  peft.save(tmp_path, LORA, model, adapters, contents=own)
  assert card.read_bytes() == b'mine'


def test_the_names_shapes_and_products_of_peft(base, tmp_path):
  model, adapters = base
  peft.save(tmp_path, LORA, model, adapters)
  stored = safetensors.numpy.load_file(tmp_path / peft.WEIGHTS)
  assert len(stored) == 2 * 2 * 4  # factors, layers, targets
  places = {
    'query': ('attention', 'self_attn.q_proj'),
    'output': ('attention', 'self_attn.o_proj'),
    'up': ('mlp', 'mlp.up_proj'),
    'down': ('mlp', 'mlp.down_proj'),
  }
  params = huggingface.load(model.init_from)[1]
  merged = jax.jit(lora.merge)(adapters, params, LORA.scale)
  for target, (group, module) in places.items():
    for layer in range(2):
      name = f'base_model.model.model.layers.{layer}.{module}.lora_'
      a, b = (stored[f'{name}{letter}.weight'] for letter in 'AB')
      assert a.shape[0] == b.shape[1] == 3
      before, after = (
        np.asarray(p['blocks'][group][target][layer]).reshape(-1, 8)
        for p in (params, merged)
      )
      product = b @ a
      if target in ('output', 'down'):  # theirs is [outputs, inputs]
        product = product.T
      np.testing.assert_allclose(
        after, before + 2 * product, rtol=1e-5, atol=1e-6
      )


@pytest.mark.parametrize('tied', [False, True])
def test_tables_of_words_have_the_names_of_peft(tmp_path, tied):
  config = LoraConfig(rank=3, alpha=6.0, targets=('embed', 'unembed'))
  model, adapters = save_base(tmp_path / 'base', config, tied=tied)
  assert set(adapters) == ({'embed'} if tied else {'embed', 'unembed'})
  peft.save(tmp_path / 'out', config, model, adapters)
  stored = safetensors.numpy.load_file(tmp_path / 'out' / peft.WEIGHTS)
  params = huggingface.load(model.init_from)[1]
  merged = lora.merge(adapters, params, config.scale)
  head = 'embed' if tied else 'unembed'  # of which `lm_head` is the same
  for name, path, factors in (
    ('model.embed_tokens', 'embed', ('embedding_B', 'embedding_A')),
    ('lm_head', head, ('B.weight', 'A.weight')),
  ):
    left, right = (
      stored.pop(f'base_model.model.{name}.lora_{kind}') for kind in factors
    )
    product = left @ right if name == 'lm_head' else (left @ right).T
    np.testing.assert_allclose(
      merged[path], params[path] + 2 * product, rtol=1e-5, atol=1e-6
    )
  assert not stored
  told = json.loads((tmp_path / 'out' / peft.CONFIG).read_text())
  assert set(told['target_modules']) == {'embed_tokens', 'lm_head'}


def test_adapters_of_a_run_that_added_words_are_refused(base, tmp_path):
  model, adapters = base
  more = dataclasses.replace(model, vocab_size=64)
  with pytest.raises(errors.ConfigError, match='16 words, and the run 64'):
    peft.save(tmp_path, LORA, more, adapters)


def test_the_configuration_of_peft(base, tmp_path):
  model, adapters = base
  peft.save(tmp_path, LORA, model, adapters)
  told = json.loads((tmp_path / peft.CONFIG).read_text())
  assert told['peft_type'] == 'LORA' and told['task_type'] == 'CAUSAL_LM'
  assert (told['r'], told['lora_alpha'], told['bias']) == (3, 6.0, 'none')
  assert told['base_model_name_or_path'] == model.init_from
  modules = {'q_proj', 'o_proj', 'up_proj', 'down_proj'}
  assert set(told['target_modules']) == modules


def test_the_tokenizer_goes_along_with_the_template_that_was_trained(
  base, tmp_path
):
  model, adapters = base
  contents = small_files.tokenizer_files(tokenizers.ByteTokenizer(), 'said')
  peft.save(tmp_path, LORA, model, adapters, contents=contents)
  found = tokenizers.get_tokenizer(f'hf:{tmp_path}')
  assert found.chat_templates == {'default': 'said'}


def test_adapters_of_ours_are_replaced_and_others_are_not(base, tmp_path):
  model, adapters = base
  peft.save(tmp_path, LORA, model, adapters)
  peft.save(tmp_path, LORA, model, adapters, dtype='bfloat16')
  with safetensors.safe_open(tmp_path / peft.WEIGHTS, 'numpy') as file:
    name = next(iter(file.keys()))
    assert file.get_slice(name).get_dtype() == 'BF16'
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    peft.CONFIG,
    peft.WEIGHTS,
  ]
  theirs = {'x': np.zeros(2, np.float32)}
  safetensors.numpy.save_file(theirs, tmp_path / peft.WEIGHTS)
  with pytest.raises(errors.StorageError, match='satjax did not write'):
    peft.save(tmp_path, LORA, model, adapters)
  assert 'x' in safetensors.numpy.load_file(tmp_path / peft.WEIGHTS)


def test_what_has_no_adapters_or_no_base_is_refused(base, tmp_path):
  model, adapters = base
  off = LoraConfig(rank=0, alpha=1.0, targets=('query',))
  out = tmp_path / 'out'
  with pytest.raises(errors.ConfigError, match='rank is 0'):
    peft.save(out, off, model, None)
  with pytest.raises(errors.ConfigError, match='random weights.*--adapter'):
    peft.save(out, LORA, models.make(), adapters)
  shutil.copytree(model.init_from, tmp_path / 'phi')
  told = json.loads((tmp_path / 'phi' / 'config.json').read_text())
  told |= {'architectures': ['Phi3ForCausalLM'], 'model_type': 'phi3'}
  (tmp_path / 'phi' / 'config.json').write_text(json.dumps(told))
  phi = models.make(init_from=str(tmp_path / 'phi'))
  with pytest.raises(errors.ConfigError, match='Phi-3.*--adapter'):
    peft.save(out, LORA, phi, adapters)
  gone = models.make(init_from=str(tmp_path / 'gone'))
  with pytest.raises(errors.DataError, match='config.json is missing'):
    peft.save(out, LORA, gone, adapters)
  assert not out.exists()
