"""SmolLM2-135M-Instruct (`make real-model`) against transformers."""

import pathlib

import numpy as np
import pytest

from satjax import sharding
from satjax.config.groups import MeshConfig
from satjax.data import tokenizers
from satjax.generation import generate
from satjax.interop import huggingface, lm_eval, models
from tests.interop import lm_eval_samples

MODEL = pathlib.Path(__file__).parents[2] / 'models' / 'smollm2'
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not (MODEL / 'config.json').exists(), reason='make real-model brings it'
  ),
]
TEXT = 'The capital of France is'


@pytest.fixture(scope='module')
def both():
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(MODEL)
  return theirs, models.load(MODEL), tokenizers.get_tokenizer(f'hf:{MODEL}')


def test_logits_are_those_of_transformers(both):
  theirs, ours, tokenizer = both
  torch = pytest.importorskip('torch')
  ids = tokenizer.encode(f'{TEXT} Paris. 1 234, def f(x):\n  return x')
  expected = theirs(torch.tensor(ids[None].astype(int))).logits.detach()
  found = ours.apply(ours.params, ids[None])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_text_is_that_of_transformers(both):
  theirs, ours, tokenizer = both
  torch = pytest.importorskip('torch')
  ids = tokenizer.encode(TEXT)
  found = generate.run(
    ours.config,
    ours.params,
    tokenizer,
    [ids],
    generate.Options(max_tokens=30),
  )
  (text,) = found.texts
  assert text.startswith(' Paris')
  expected = theirs.generate(
    torch.tensor(ids[None].astype(int)), max_new_tokens=30, do_sample=False
  )[0, len(ids) :]
  assert text == tokenizer.decode(expected.tolist())


def test_tasks_score_as_with_the_model_of_the_harness(both, tmp_path):
  """One as PIQA, one as LAMBADA: choices, and the last word of a text."""
  pytest.importorskip('accelerate')
  evaluator = pytest.importorskip('lm_eval.evaluator')
  from lm_eval import tasks as library
  from lm_eval.models import huggingface as theirs

  _, ours, tokenizer = both
  names = ['choices', 'last']
  folder = lm_eval_samples.write(tmp_path / 'tasks', names, count=12)
  tasks = library.TaskManager(include_path=folder, include_defaults=False)
  length = huggingface.max_length(MODEL)
  mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
  own = lm_eval.adaptor(
    ours.config, ours.params, tokenizer, max_length=length, mesh=mesh
  )
  # Its cache takes texts that are split elsewhere for the same request.
  options = {'dtype': 'float32', 'batch_size': 4, 'logits_cache': False}
  other = theirs.HFLM(str(MODEL), device='cpu', **options)
  found, expected = (
    evaluator.evaluate(lm, tasks.load(names), bootstrap_iters=0)['results']
    for lm in (own, other)
  )
  for name in names:
    numbers = {k: v for k, v in expected[name].items() if k[-5:] == ',none'}
    assert len(numbers) > 1
    for key, value in numbers.items():
      if not isinstance(value, str):
        assert found[name][key] == pytest.approx(value, rel=1e-4), key
