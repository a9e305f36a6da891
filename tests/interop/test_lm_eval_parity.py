"""Our adaptor against the harness's own model for Hugging Face directories."""

import json
import os

import pytest

os.environ['HF_HUB_OFFLINE'] = '1'  # read when transformers is imported
pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytest.importorskip('accelerate')

import jax  # noqa: E402

from satjax import sharding  # noqa: E402
from satjax.config.groups import MeshConfig  # noqa: E402
from satjax.data import tokenizers  # noqa: E402
from satjax.interop import huggingface, lm_eval  # noqa: E402
from tests import models  # noqa: E402
from tests.data import subword_samples  # noqa: E402
from tests.interop import lm_eval_samples  # noqa: E402

pytestmark = pytest.mark.parity

LENGTH = 96  # shorter than most of the pages
# The vocabulary is no larger than the tokenizer's: what pads it is a token to
# transformers, and none to us.
SHAPES = {
  'byte': {'num_kv_heads': 2},
  'begins': {'num_kv_heads': 4, 'tied': True},
  'bytelevel': {'num_kv_heads': 1},
  'sentencepiece': {},
  'qwen': {},
  'smollm': {'tied': True},
}
TEXTS = ['import os', 'naïve "x"  y', 'a\n', '', ' a', '<s>import os']
TEXTS += ['<|im_start|>import os', 'import<|im_end|>']
# transformers takes a space at the start for the one that is put there, and
# finds special tokens in a text; the library of sentence pieces does neither.
_SAME = {'sentencepiece': TEXTS[:4]}


@pytest.fixture(scope='module')
def specs(tmp_path_factory):
  """Tokenizers, as configurations name them."""
  root = tmp_path_factory.mktemp('tokenizers')
  specs = subword_samples.write(root)
  (root / 'begins').mkdir()
  (root / 'begins' / 'tokenizer.json').write_text(
    json.dumps(lm_eval_samples.begins())
  )
  specs['qwen'] = lm_eval_samples.named(root, None)
  specs['smollm'] = lm_eval_samples.named(root, '<|im_start|>')
  return specs | {'begins': f'hf:{root}/begins'}


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  from lm_eval import tasks as library

  folder = tmp_path_factory.mktemp('lm_eval') / 'tasks'
  lm_eval_samples.write(folder, count=8)
  return library.TaskManager(include_path=folder, include_defaults=False)


@pytest.mark.parametrize('kind', SHAPES)
def test_same_numbers_as_the_harness(kind, specs, tasks, tmp_path):
  from lm_eval import evaluator
  from lm_eval.models import huggingface as theirs

  tokenizer = tokenizers.get_tokenizer(specs[kind])
  model = models.make(
    **{
      'embed_dim': 32,
      'head_dim': 8,
      'mlp_dim': 48,
      'vocab_size': tokenizer.vocab_size,
    }
    | SHAPES[kind]
  )
  params = jax.tree.map(lambda x: 0.4 * x, models.make_params(model))
  huggingface.save(
    tmp_path / 'model', model, params, tokenizer=tokenizer, seq_len=LENGTH
  )
  other = theirs.HFLM(
    str(tmp_path / 'model'), dtype='float32', device='cpu', batch_size=4
  )
  own = lm_eval.adaptor(
    model,
    params,
    tokenizer,
    max_length=huggingface.max_length(tmp_path / 'model'),
    mesh=sharding.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1)),
  )
  own._batch_tokens = 500
  assert other.max_length == own.max_length
  assert other.prefix_token_id == own.prefix_token_id
  for text in _SAME.get(kind, TEXTS):
    assert other.tok_encode(text) == own.tok_encode(text)
  found, expected = (
    evaluator.evaluate(
      lm,
      tasks.load(list(lm_eval_samples.TASKS)),
      bootstrap_iters=0,
      log_samples=True,
    )
    for lm in (own, other)
  )
  answers = set()
  for name in lm_eval_samples.TASKS:
    pairs = zip(responses(found, name), responses(expected, name))
    for ours, wanted in pairs:
      answers.add(str(ours))
      if name == 'finish':
        # Of a run of bytes that is no UTF-8, transformers decodes nothing.
        assert ours == wanted or (kind in _SAME and '\ufffd' in wanted)
      elif name == 'pages':
        assert ours == pytest.approx(wanted, abs=1e-4, rel=1e-6)
      else:
        assert ours[0] == pytest.approx(wanted[0], abs=1e-4)
        assert ours[1] == wanted[1]
    for key, value in expected['results'][name].items():
      if ',' in key and not isinstance(value, str):
        assert found['results'][name][key] == pytest.approx(value, rel=1e-4)
  assert len(answers) > 50


def responses(results, name):
  """What the model answered to each request of a task."""
  for sample in results['samples'][name]:
    for (response,) in sample['resps']:
      yield response
