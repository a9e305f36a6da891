"""Our reading of GGUF files against that of transformers."""

import os

import numpy as np
import pytest

os.environ['HF_HUB_OFFLINE'] = '1'  # read when transformers is imported
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

from satjax.interop import gguf_files, models  # noqa: E402
from tests import models as small  # noqa: E402
from tests.interop import gguf_samples  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
  'kind, changes',
  [
    ('llama', {'num_kv_heads': 4}),
    ('llama', {'tied': True}),
    ('qwen2', {'qkv_bias': True}),
  ],
)
def test_logits_are_those_of_transformers(tmp_path, kind, changes):
  model = small.make(
    vocab_size=11, embed_dim=16, mlp_dim=32, rope_theta=1e4, **changes
  )
  file = tmp_path / 'model.gguf'
  gguf_samples.write(
    file, model, small.make_params(model), kind, gguf_samples.LETTERS
  )
  gguf_files.convert(file, tmp_path / 'out')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='model.gguf', dtype=torch.float32
  )
  tokens = np.arange(11)[None]
  expected = theirs(torch.tensor(tokens)).logits.detach().numpy()
  ours = models.load(tmp_path / 'out')
  found = np.asarray(ours.apply(ours.params, tokens))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
