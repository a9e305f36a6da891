"""Subword tokenizers at work: bits per byte of text, and export."""

import dataclasses
import json
import random

import numpy as np
import pytest

from configs import base
from satjax import tree
from satjax.config.groups import ModelConfig
from satjax.data import pipeline, sources, table, tokenizers
from satjax.data.encode import Encoder
from satjax.interop import huggingface
from satjax.interop import models as models_lib
from satjax.train import evaluation, subjects
from tests import models
from tests.data import subword_samples
from tests.data.subword_samples import KINDS


@pytest.fixture(scope='module')
def specs(tmp_path_factory):
  return subword_samples.write(tmp_path_factory.mktemp('tokenizers'))


@pytest.fixture(scope='module')
def loaded(specs):
  return {k: tokenizers.get_tokenizer(spec) for k, spec in specs.items()}


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """Plain documents, and pairs of a prompt and an answer."""
  lines = subword_samples.lines()
  root, chance = tmp_path_factory.mktemp('texts'), random.Random(0)
  pairs = []
  for i in range(24):
    body = '\n'.join(chance.sample(lines, 6)) + ' é\U0001f389'
    (root / f'{i:02}.txt').write_text(body, 'utf-8')
    pairs.append({'prompt': lines[i], 'answer': f'b{body[:90]}'})
  (root / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)))
  return root


def data_config(spec, source, seq_len):
  return models.make_data(
    train=(source,),
    eval=(source,),
    tokenizer=spec,
    seq_len=seq_len,
    held_out=0.5,
  )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('form', ['text:{}/*.txt', 'jsonl:{}/pairs.jsonl'])
@pytest.mark.parametrize('packing', ['concat_then_split', 'best_fit'])
def test_bytes_per_token_are_those_of_the_source(
  specs, texts, kind, form, packing
):
  """One row holds every document, so that no byte can hide."""
  source = form.format(texts)
  documents = [
    d
    for d in sources.documents(source)
    if table.split_of(d.group or d.id, 0.5) == 'held_out'
  ]
  tokenizer = tokenizers.get_tokenizer(specs[kind])
  tokens = table.build_table(
    source, Encoder(tokenizer), split='held_out', held_out=0.5
  ).tokens
  data = data_config(specs[kind], source, len(tokens) - 1)
  data = dataclasses.replace(data, packing=packing)
  evaluator = evaluation.Evaluator(
    data, vocab_size=700, mesh=None, batch_size=2, max_rows=2
  )
  # Nothing foretells the first token of a document, its begin or not.
  skipped = [
    tokenizer.encode(d.text)[:1]
    for d in documents
    if tokenizer.bos_id is None and not d.messages
  ]
  said = [d.messages[-1].content if d.messages else d.text for d in documents]
  num_bytes = sum(len(text.encode()) for text in said)
  num_bytes -= sum(int(tokenizer.id_bytes[ids].sum()) for ids in skipped)
  targets = sum(len(tokenizer.encode(text)) + 1 for text in said)
  targets -= len(skipped)
  assert evaluator.bytes_per_token() == {source: num_bytes / targets}


def test_bytes_per_token_of_bytes_are_as_ever():
  data = data_config('byte', 'stdlib:docs', 128)
  options = {'vocab_size': 320, 'batch_size': 4}
  evaluator = evaluation.Evaluator(data, mesh=None, max_rows=12, **options)
  batches = pipeline.eval_batches(
    data,
    'stdlib:docs',
    tokenizer=tokenizers.ByteTokenizer(),
    max_rows=12,
    **options,
  )
  plain = sum(b['weights'][b['targets'] < 256].sum() for b in batches)
  total = sum(b['weights'].sum() for b in batches)
  assert evaluator.bytes_per_token() == {
    'stdlib:docs': float(plain) / float(total)
  }


SMALL = ModelConfig(
  **base.get_config().model.to_dict()
  | {
    'num_layers': 1,
    'embed_dim': 8,
    'num_heads': 2,
    'num_kv_heads': 2,
    'head_dim': 4,
    'mlp_dim': 8,
    'vocab_size': 640,
  }
)


def export(directory, tokenizer, **options):
  shapes = tree.shapes(SMALL)
  params = {path: np.zeros(s, np.float32) for path, s in shapes.items()}
  huggingface.save(
    directory,
    SMALL,
    huggingface.tree.unflatten(params),
    tokenizer=tokenizer,
    **options,
  )


def test_an_export_is_evaluated_with_its_own_tokenizer(loaded, texts, tmp_path):
  export(tmp_path, loaded['llama'])
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert (stored['bos_token_id'], stored['eos_token_id']) == (1, 2)
  source = f'text:{texts}/*.txt'
  data = data_config(f'hf:{tmp_path}', source, 32)
  subject = subjects.of_model(
    tmp_path, models_lib.load(tmp_path), loaded['llama']
  )
  subject = dataclasses.replace(subject, data=data)
  result = subjects.evaluate(subject, max_batches=1)
  values = result['eval'][source]
  # Zeros know nothing: every token costs log(640) nats.
  assert values['loss'] == pytest.approx(np.log(640), rel=1e-5)
  evaluator = evaluation.Evaluator(
    data, vocab_size=640, mesh=None, batch_size=8, max_rows=8
  )
  assert values['bits_per_byte'] == pytest.approx(
    np.log2(640) / evaluator.bytes_per_token()[source], rel=1e-5
  )


def test_an_export_holds_one_tokenizer(loaded, tmp_path):
  def names():
    return {path.name for path in tmp_path.iterdir()} - {
      'checksums.json',
      'config.json',
      'generation_config.json',
      'model.safetensors',
    }

  described = {'tokenizer.json', 'tokenizer_config.json'}
  for kind, more in (
    ('byte', set()),
    ('sentencepiece', {'tokenizer.model'}),
    ('bytelevel', set()),
    ('byte', set()),
  ):
    export(tmp_path, loaded[kind])
    assert names() == described | more
  (tmp_path / 'notes.txt').write_text('mine')
  export(tmp_path, loaded['llama'])
  assert 'notes.txt' in names()
  again = tokenizers.get_tokenizer(f'hf:{tmp_path}')
  assert again.vocab_size <= SMALL.vocab_size
  assert again.fingerprint == loaded['llama'].fingerprint


@pytest.mark.parity
@pytest.mark.parametrize('kind', KINDS[1:])
def test_transformers_reads_the_export(loaded, tmp_path, kind):
  transformers = pytest.importorskip('transformers')
  tokenizer = loaded[kind]
  export(tmp_path, tokenizer)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  text = 'def f(x):\n    return  x  # é \U0001f389'
  ids = theirs(text, add_special_tokens=False)['input_ids']
  assert ids == tokenizer.encode(text).tolist()
  assert theirs.bos_token_id == tokenizer.bos_id
  assert theirs.eos_token_id == tokenizer.eos_id


def test_another_tokenizer_than_that_of_the_model_is_noticed(
  specs, tmp_path, caplog
):
  llama = tokenizers.get_tokenizer(specs['llama'])
  export(tmp_path / 'out', llama)
  models_lib.load(tmp_path / 'out', llama)
  assert not caplog.records
  models_lib.load(tmp_path / 'out', tokenizers.get_tokenizer('byte'))
  assert 'ends texts with id 257 (<end>)' in caplog.text
  assert 'to end them with 2: is it the tokenizer' in caplog.text


def test_a_chat_ends_where_generation_ends(specs, tmp_path):
  llama = tokenizers.get_tokenizer(specs['llama'])
  for stop_id, ends in ((None, 2), (2, 2), (7, [2, 7])):
    export(tmp_path / 'out', llama, stop_id=stop_id)
    path = tmp_path / 'out' / 'generation_config.json'
    assert json.loads(path.read_text())['eos_token_id'] == ends
