"""What the PyTorch arms train: the Llama of transformers, and its AdamW."""

import os
from typing import Any

from satjax.config.groups import OptimizerConfig
from satjax.config.run import Config

_ATTENTION = 'satjax_causal'


def load(config: Config, directory: str | os.PathLike, device: str) -> Any:
  """The model, in float32 and ready to train.

  Settings of the whole process come along: threads, TF32 on a GPU, where JAX
  has it too, and from when on the most memory counts.

  Args:
    config: of the dense arm.
    directory: with the weights, as Hugging Face keeps them.
    device: 'cpu' or 'cuda'.
  """
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count())
  transformers.utils.logging.disable_progress_bar()
  transformers.AttentionInterface.register(_ATTENTION, _attention)
  model = transformers.LlamaForCausalLM.from_pretrained(
    directory,
    dtype=torch.float32,
    attn_implementation=_ATTENTION,
    local_files_only=True,
  )
  if config.model.remat == 'full':
    model.gradient_checkpointing_enable()
  model = model.to(device).train()
  if device == 'cuda':
    torch.set_float32_matmul_precision('high')
    torch.cuda.reset_peak_memory_stats()
  return model


def _attention(module, query, key, value, attention_mask, **options):
  """Causal, without a mask.

  While it compiles, transformers would pass one, which flash attention does not
  take and which makes the others slower.
  """
  from transformers.integrations import sdpa_attention

  del attention_mask
  return sdpa_attention.sdpa_attention_forward(
    module, query, key, value, None, **{**options, 'is_causal': True}
  )


def make_optimizer(config: OptimizerConfig, model: Any) -> Any:
  """AdamW that decays every matrix and no norm gain, as ours does."""
  import torch

  params = list(model.parameters())
  return torch.optim.AdamW(
    [
      {'params': [p for p in params if p.ndim > 1]},
      {'params': [p for p in params if p.ndim == 1], 'weight_decay': 0.0},
    ],
    betas=(config.b1, config.b2),
    eps=config.eps,
    weight_decay=config.weight_decay,
    fused=True,
  )
