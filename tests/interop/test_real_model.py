"""SmolLM2-135M-Instruct (`make real-model`) against transformers."""

import pathlib

import numpy as np
import pytest

from satjax.data import tokenizers
from satjax.generation import generate
from satjax.interop import models

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
