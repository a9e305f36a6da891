"""Exports open alike in transformers 4 and 5, and say what was trained.

`make test-parity` puts the older release beside the environment's own.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from satjax.data import chat, tokenizers  # noqa: E402
from satjax.interop import huggingface  # noqa: E402
from satjax.interop.small_files import Settings  # noqa: E402
from tests import models  # noqa: E402
from tests.data import chat_samples, subword_samples  # noqa: E402
from tests.interop import opened  # noqa: E402

OLDER = pathlib.Path(sys.prefix) / 'transformers4'
ROOT = pathlib.Path(__file__).parents[2]

pytestmark = [
  pytest.mark.parity,
  pytest.mark.skipif(
    not OLDER.is_dir(), reason='no transformers 4; make test-parity brings it'
  ),
]

LLAMA3 = ('llama3', 8.0, 1.0, 4.0, 64)
# Of each export: what the model is, and what its tokenizer's files say.
EXPORTS = {
  'smollm2': ({'tied': True}, {'tokenizer_class': 'TokenizersBackend'}),
  'llama2': ({}, {'tokenizer_class': 'LlamaTokenizerFast', 'space': 'legacy'}),
  'llama3': ({'rope_scaling': LLAMA3}, {'pad_token': '<|eot_id|>'}),
  'qwen2.5': (
    {'qkv_bias': True},
    {
      'tokenizer_class': 'TokenizersBackend',
      'backend': 'tokenizers',
      'extra_special_tokens': ['<|im_start|>', '<|im_end|>'],
    },
  ),
  'qwen3': ({'qk_norm': True}, {'extra_special_tokens': {'a': '<|im_end|>'}}),
  'mistral': (
    {'sliding_window': 5},
    {'tokenizer_class': 'LlamaTokenizer', 'space': 'first'},
  ),
  'gemma': ({'rope_scaling': ('linear', 2.0)}, {'model_max_length': 10**30}),
}

# Those of a tokenizer that puts a begin of text before a text.
BEGIN = ('llama2', 'llama3', 'mistral', 'gemma')


def export(folder, tokenizer, changes, template=None, **said):
  model = models.make(vocab_size=tokenizer.vocab_size + 3, **changes)
  params = models.make_params(model)
  written = template and chat.built_in(tokenizer, template)
  huggingface.save(
    folder, model, params, tokenizer=tokenizer, template=written, **said
  )
  return folder


@pytest.fixture(scope='module')
def exports(tmp_path_factory):
  root = tmp_path_factory.mktemp('two')
  found, made = {}, {}
  for name, (changes, settings) in EXPORTS.items():
    tokenizer = chat_samples.load(
      root / f'{name}-base', name, begins=name in BEGIN, **settings
    )
    found[name] = export(root / name, tokenizer, changes)
    made[name] = tokenizer
  base = Settings(
    {'max_position_embeddings': 8192},
    {'eos_token_id': [3, tokenizer.eos_id], 'temperature': 0.7},
  )
  found['another template'] = export(
    root / 'alpaca', tokenizer, {}, 'alpaca', base=base, stop_id=5
  )
  named = chat_samples.write(root / 'named-base', 'chatml')
  path = named / 'tokenizer_config.json'
  config = json.loads(path.read_text())
  config['chat_template'] = [
    {'name': n, 'template': chat_samples.TEMPLATES[n][2]}
    for n in ('smollm2', 'chatml')
  ]
  config['chat_template'][0]['name'] = 'default'
  path.write_text(json.dumps(config))
  tokenizer = tokenizers.get_tokenizer(f'hf:{named}')
  found['several templates'] = export(root / 'named', tokenizer, {})
  for kind, spec in subword_samples.write(root).items():
    made[kind] = tokenizers.get_tokenizer(spec)
    found[kind] = export(root / kind, made[kind], {})
  return found, made


@pytest.fixture(scope='module')
def older(exports):
  """What the older release says of each export."""
  folders, _ = exports
  done = subprocess.run(
    [sys.executable, '-m', 'tests.interop.opened', *map(str, folders.values())],
    env=os.environ | {'PYTHONPATH': f'{OLDER}:{ROOT}'},
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  release, *found = json.loads(done.stdout.splitlines()[-1])
  assert release['release'].startswith('4.')
  assert transformers.__version__.startswith('5.')
  return dict(zip(folders, found))


NAMES = (
  *EXPORTS,
  *('another template', 'several templates'),
  *subword_samples.KINDS,
)


@pytest.mark.parametrize('name', NAMES)
def test_both_releases_open_an_export_alike(exports, older, name):
  newer, old = opened.look(str(exports[0][name])), dict(older[name])
  np.testing.assert_allclose(old.pop('logits'), newer.pop('logits'), atol=1e-5)
  assert old == newer


@pytest.mark.parametrize('name', [*EXPORTS, *subword_samples.KINDS])
def test_they_read_text_as_the_run_did(exports, older, name):
  tokenizer = exports[1][name]
  # The files of bytes put no begin of text, as the harness reads them.
  is_bare = tokenizer.bos_id is None or name == 'byte'
  begin = [] if is_bare else [tokenizer.bos_id]
  for text, ids in zip(opened.TEXTS, older[name]['tokens']):
    assert ids == [*begin, *tokenizer.encode(text)]


def test_they_read_what_was_trained(older):
  for name in (*EXPORTS, 'several templates'):
    assert len(set(older[name]['chats'])) == len(older[name]['chats']) > 0
  found = older['another template']
  assert '### Instruction:' in found['chats'][0]
  assert found['config']['max_position_embeddings'] == 8192
  assert {3, 5} <= set(found['generation']['eos_token_id'])
  assert len(found['generation']['suppress_tokens']) >= 3
