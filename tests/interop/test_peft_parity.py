"""Our adapters in PEFT: the same logits as ours, and as the merged model's."""

import os

import numpy as np
import pytest

os.environ['HF_HUB_OFFLINE'] = '1'  # read when transformers is imported
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
theirs = pytest.importorskip('peft')

import jax  # noqa: E402

from satjax.config.groups import LORA_TARGETS, LoraConfig  # noqa: E402
from satjax.interop import huggingface, peft  # noqa: E402
from satjax.model import decoder, lora  # noqa: E402
from tests import models  # noqa: E402

pytestmark = pytest.mark.parity

FAMILIES = {
  'llama': {},
  'qwen2': {'qkv_bias': True, 'tied': True},
}


@pytest.mark.parametrize('targets', [('query', 'value'), LORA_TARGETS])
@pytest.mark.parametrize('family', FAMILIES)
def test_peft_computes_what_we_compute(tmp_path, family, targets):
  config = LoraConfig(rank=3, alpha=4.0, targets=targets)
  folder = {name: str(tmp_path / name) for name in ('base', 'merged', 'peft')}
  model = models.make(**FAMILIES[family], init_from=folder['base'])
  params = decoder.init_params(model, jax.random.key(0))
  rng = np.random.default_rng(0)
  adapters = jax.tree.map(
    lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32),
    lora.init(config, model, jax.random.key(1)),
  )
  merged = lora.merge(adapters, params, config.scale)
  huggingface.save(folder['base'], model, params)
  huggingface.save(folder['merged'], model, merged)
  peft.save(folder['peft'], config, model, adapters)

  tokens = rng.integers(0, model.vocab_size, (2, 9)).astype(np.int32)
  batch = {'tokens': tokens}
  attached = lora.attach(adapters, params, config.scale)
  ours, summed, plain = (
    np.asarray(decoder.apply(model, p, batch))
    for p in (attached, merged, params)
  )
  assert np.abs(ours - plain).max() > 0.1
  np.testing.assert_allclose(ours, summed, atol=1e-5, rtol=1e-5)

  # Finds the base by the name in its configuration.
  adapted = theirs.AutoPeftModelForCausalLM.from_pretrained(folder['peft'])
  auto = transformers.AutoModelForCausalLM
  whole = auto.from_pretrained(folder['merged'])
  states = theirs.get_peft_model_state_dict(adapted)
  states = [name for name in states if 'lora_' in name]
  tables = {'embed', 'unembed'} & {*targets}
  assert len(states) == 2 * (2 * (len(targets) - len(tables)) + len(tables))
  others = [lambda: adapted, lambda: whole]
  if not (tables and model.tied):  # which PEFT adds twice to the one table
    others.append(adapted.merge_and_unload)
  for make in others:
    other = make()
    with torch.no_grad():
      logits = other.eval()(torch.tensor(tokens.astype(np.int64))).logits
    np.testing.assert_allclose(ours, logits.numpy(), atol=1e-5, rtol=1e-5)
