"""Words that are added, and words that nobody has trained."""

import dataclasses

from absl import logging
import jax
import numpy as np
import pytest

from satjax import errors
from satjax.config.groups import LoraConfig
from satjax.data.encode import Encoder
from satjax.interop import grow, huggingface, models, vocabulary
from satjax.train import setup as setup_lib
from tests import models as samples
from tests.interop.test_export import MARKERS, stored, write_tokenizer
from tests.train import helpers


def write_model(folder, zero=(), vocab_size=262, **changes):
  """A model with a tokenizer of 263 tokens; rows of zeros for some."""
  model = samples.make(vocab_size=vocab_size, **changes)
  params = jax.tree.map(np.array, samples.make_params(model))
  for name in {'embed', 'unembed'} & set(params):
    params[name][list(zero)] = 0
  huggingface.save(folder, model, params)
  write_tokenizer(folder, MARKERS)
  return model


def make_config(folder, vocab_size=258, multiple=0, **changes):
  return helpers.make_config(
    model__init_from=str(folder),
    model__vocab_size=vocab_size,
    model__vocab_multiple=multiple,
    data__tokenizer=f'hf:{folder}',
    data__template='chatml',
    **changes,
  )


def test_a_run_adds_rows_for_tokens_that_have_none(tmp_path):
  write_model(tmp_path)
  for asked, multiple, rows in (
    (258, 0, 262),
    (300, 0, 300),
    (258, 64, 320),
    (258, 1, 263),
  ):
    config = models.resolve(make_config(tmp_path, asked, multiple))
    assert config.model.vocab_size == rows
  with pytest.raises(errors.ConfigError, match='vocab_multiple=64'):
    setup_lib.make_setup(models.resolve(make_config(tmp_path)))


def test_rows_are_not_added_where_every_token_has_one(tmp_path):
  write_model(tmp_path, vocab_size=272)
  assert models.resolve(make_config(tmp_path, 4096)).model.vocab_size == 272
  config = make_config(tmp_path, multiple=128)
  assert models.resolve(config).model.vocab_size == 384


def test_growth_adds_words_with_an_operator_and_without(tmp_path):
  write_model(tmp_path / 'old', tied=True)
  before = huggingface.load(tmp_path / 'old')[1]
  for number, specs in enumerate([(), (('stack', 2),)]):
    out = tmp_path / f'{number}'
    grow.grow(tmp_path / 'old', out, specs, vocab_multiple=64)
    config, params = huggingface.load(out)
    assert (config.vocab_size, config.num_layers) == (320, 2 + 2 * number)
    np.testing.assert_array_equal(params['embed'][:262], before['embed'])
    mean = np.broadcast_to(before['embed'].mean(axis=0), (58, 8))
    np.testing.assert_allclose(params['embed'][262:], mean, atol=1e-6)
    generation = stored(out, 'generation_config.json')
    assert generation['suppress_tokens'] == [*range(263, 320)]
    assert generation['eos_token_id'] == 257


def rows_of(folder, template='chatml'):
  tokenizer = models.tokenizer_of(folder)
  return vocabulary.untrained(folder, Encoder(tokenizer, template))


def test_rows_that_are_zero_or_alike_are_untrained(tmp_path):
  start, stop = 258, 259
  write_model(tmp_path, vocab_size=272)
  assert rows_of(tmp_path) == {}
  write_model(tmp_path, [stop, 261], vocab_size=272)
  assert rows_of(tmp_path) == {'embed': [stop], 'unembed': [stop]}
  write_model(tmp_path, [start], vocab_size=272)  # never an answer
  assert rows_of(tmp_path) == {'embed': [start]}
  assert rows_of(tmp_path, 'llama3') == {}
  write_model(tmp_path, [start], vocab_size=272, tied=True)
  assert rows_of(tmp_path) == {'embed': [start]}


def test_rows_that_will_be_added_are_untrained(tmp_path):
  write_model(tmp_path)  # 262 has none
  assert rows_of(tmp_path, 'llama3') == {'embed': [262], 'unembed': [262]}


def test_a_start_names_the_markers_and_what_trains_them(tmp_path, monkeypatch):
  write_model(tmp_path, [258, 259], vocab_size=272)
  said = []
  monkeypatch.setattr(logging, 'warning', said.append)
  config = models.resolve(make_config(tmp_path))
  encoder = Encoder(models.tokenizer_of(tmp_path), 'chatml')
  for targets, words in (
    (None, 'begin to learn'),
    (('query',), "has 'embed' and 'unembed'"),
    (('embed', 'unembed'), 'begin to learn'),
  ):
    adapters = LoraConfig(1 if targets else 0, 1.0, targets or ('query',))
    changed = dataclasses.replace(config, lora=adapters)
    vocabulary.warn_of_markers(changed, encoder)
    assert '<|im_end|>, <|im_start|>' in said[-1] and words in said[-1]
  vocabulary.warn_of_markers(config, Encoder(encoder.tokenizer, 'plain'))
  assert len(said) == 3
