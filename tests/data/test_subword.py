"""Tokenizers from files: text survives, and spells no special token."""

import json
import sys

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tokenizers as library

from satjax import errors
from satjax.data import tokenizers
from tests.data import subword_samples
from tests.data.subword_samples import KINDS, VOCAB

ANY = st.text(st.characters(codec='utf-8', exclude_characters='\u2581'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('tokenizers')


@pytest.fixture(scope='module')
def specs(folder):
  return subword_samples.write(folder)


@pytest.fixture
def llama_like():
  return subword_samples.llama_like()


@pytest.fixture(scope='module')
def loaded(specs):
  return {k: tokenizers.get_tokenizer(spec) for k, spec in specs.items()}


@pytest.fixture(params=KINDS)
def tokenizer(request, loaded):
  return loaded[request.param]


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(text=ANY)
@hypothesis.settings(max_examples=60, deadline=None)
def test_decode_inverts_encode(loaded, kind, text):
  ids = loaded[kind].encode(text)
  assert loaded[kind].decode(ids) == text
  document = [*tokenizers.begun(loaded[kind], text), loaded[kind].eos_id]
  assert loaded[kind].decode(document) == text


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(text=ANY)
@hypothesis.settings(max_examples=60, deadline=None)
def test_bytes_of_the_ids_are_those_of_the_text(loaded, kind, text):
  hypothesis.assume(text)
  tokenizer = loaded[kind]
  counted = tokenizer.id_bytes[tokenizer.encode(text)].sum()
  assert counted - tokenizer.prefix_bytes == len(text.encode())


def test_special_tokens_are_found(loaded):
  ids = {k: (t.bos_id, t.eos_id, t.vocab_size) for k, t in loaded.items()}
  assert ids == {
    'byte': (256, 257, 258),
    'llama': (1, 2, VOCAB),
    'sentencepiece': (1, 2, VOCAB),
    'bytelevel': (None, 0, VOCAB + 1),
  }


def test_text_can_not_spell_a_special_token(tokenizer):
  text = '<s>a</s> <unk><|endoftext|> b</s><|x|>'
  ids = tokenizer.encode(text).tolist()
  assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
  assert tokenizer.decode(ids) == text


def test_nothing_is_added_to_a_text(tokenizer):
  assert len(tokenizer.encode('')) == 0
  assert tokenizer.decode([]) == ''


def test_ids_that_are_no_text_are_skipped(tokenizer):
  ids = tokenizer.encode('Hi, you').tolist()
  strange = [tokenizer.bos_id or 0, -1, *ids, 2**40, tokenizer.eos_id]
  assert tokenizer.decode(np.array([strange])) == 'Hi, you'


def test_lone_surrogates_are_replaced(loaded):
  for kind in KINDS[1:]:
    ids = loaded[kind].encode('a\ud800b')
    assert loaded[kind].decode(ids) == 'a\ufffdb'


def test_ids_are_those_of_the_library(loaded, llama_like):
  llama_like['added_tokens'][2]['special'] = True
  plain = library.Tokenizer.from_str(json.dumps(llama_like))
  text = 'def f(x):\n    return  x  # the sum of é'
  ids = loaded['llama'].encode(text)
  assert ids.tolist() == plain.encode(text).ids
  assert len(ids) < len(text)


def test_the_content_is_the_fingerprint(specs, loaded, folder, tmp_path):
  prints = {tokenizer.fingerprint for tokenizer in loaded.values()}
  assert len(prints) == len(KINDS)
  (tmp_path / 'moved.model').write_bytes((folder / 'sp.model').read_bytes())
  moved = tokenizers.get_tokenizer(f'sentencepiece:{tmp_path}/moved.model')
  assert moved.fingerprint == loaded['sentencepiece'].fingerprint
  content = (folder / 'llama' / 'tokenizer.json').read_text()
  (tmp_path / 'tokenizer.json').write_text(content)
  write(tmp_path / 'tokenizer_config.json', {'add_bos_token': True})
  assert load(tmp_path).fingerprint == loaded['llama'].fingerprint
  write(tmp_path / 'generation_config.json', {'eos_token_id': [7, 8]})
  assert load(tmp_path).fingerprint != loaded['llama'].fingerprint


def write(path, content):
  path.write_text(json.dumps(content))


def load(path):
  return tokenizers.get_tokenizer(f'hf:{path}')


@pytest.mark.parametrize(
  'files, expected',
  [
    ({}, (None, 2)),
    ({'tokenizer_config': {'add_bos_token': True}}, (1, 2)),
    ({'tokenizer_config': {'add_bos_token': False}}, (None, 2)),
    (
      {
        'tokenizer_config': {'add_bos_token': True},
        'generation_config': {'bos_token_id': 5, 'eos_token_id': [7, 8]},
      },
      (5, 7),
    ),
    ({'special_tokens_map': {'eos_token': {'content': '<s>'}}}, (None, 1)),
    (
      {
        'generation_config': {'eos_token_id': 7},
        'tokenizer_config': {
          'add_bos_token': True,
          'bos_token': None,
          'eos_token': '<s>',
        },
      },
      (None, 1),
    ),
  ],
)
def test_settings_beside_it_name_special_tokens(
  tmp_path, llama_like, files, expected
):
  for name, content in files.items():
    write(tmp_path / f'{name}.json', content)
  write(tmp_path / 'tokenizer.json', llama_like)
  found = load(tmp_path)
  assert (found.bos_id, found.eos_id) == expected
  bare = load(tmp_path / 'tokenizer.json')
  assert (bare.bos_id, bare.eos_id) == (None, 2)


def test_a_post_processor_names_special_tokens(tmp_path, llama_like):
  tokenizer = library.Tokenizer.from_str(json.dumps(llama_like))
  tokenizer.add_tokens(['[A]', '[B]'])
  tokenizer.post_processor = library.processors.TemplateProcessing(
    single='[A] $A [B]', special_tokens=[('[A]', VOCAB), ('[B]', VOCAB + 1)]
  )
  tokenizer.enable_truncation(3)
  tokenizer.enable_padding(length=8)
  tokenizer.save(str(tmp_path / 'mine.json'))
  found = load(tmp_path / 'mine.json')
  assert (found.bos_id, found.eos_id) == (VOCAB, VOCAB + 1)
  text = 'one [A][B] text of many words'
  assert found.decode(found.encode(text)) == text
  assert found.encode(text).max() < VOCAB


def without_end(described):
  model = described['model']
  vocab = {
    ('end' if token == '</s>' else token): number
    for token, number in model['vocab'].items()
  }
  return described | {
    'model': model | {'vocab': vocab},
    'added_tokens': described['added_tokens'][:2],
  }


def test_an_end_of_text_must_exist(tmp_path, llama_like):
  write(tmp_path / 'tokenizer.json', without_end(llama_like))
  with pytest.raises(errors.ConfigError, match='no end of text.*eos_token'):
    load(tmp_path)
  write(tmp_path / 'tokenizer_config.json', {'eos_token': '<gone>'})
  with pytest.raises(errors.ConfigError, match="'<gone>' is not in the voc"):
    load(tmp_path)
  path = tmp_path / 'endless.model'
  path.write_bytes(subword_samples.sentencepiece_model(eos_id=-1))
  with pytest.raises(errors.ConfigError, match='no end of text; train it'):
    tokenizers.get_tokenizer(f'sentencepiece:{path}')


@pytest.mark.parametrize('kind', ['hf', 'sentencepiece'])
def test_files_that_can_not_be_used(tmp_path, kind):
  with pytest.raises(errors.ConfigError, match='cannot be read'):
    tokenizers.get_tokenizer(f'{kind}:{tmp_path}/none')
  for content in (b'', b'no', b'[1]', b'{"model": 3}'):
    (tmp_path / 'bad').write_bytes(content)
    with pytest.raises(errors.DataError, match='bad'):
      tokenizers.get_tokenizer(f'{kind}:{tmp_path}/bad')


@pytest.mark.parametrize(
  'kind, name', [('hf', 'tokenizers'), ('sentencepiece', 'sentencepiece')]
)
def test_a_missing_library_is_named(monkeypatch, kind, name):
  monkeypatch.setitem(sys.modules, name, None)
  command = rf"library {name}.*pip install 'satjax\[data\]'"
  with pytest.raises(errors.ConfigError, match=command):
    tokenizers.get_tokenizer(f'{kind}:x')
