"""The PyTorch arms of the benchmark: Llama of transformers, the same step.

Same weights, batches, AdamW, clipping, learning rates and loss. The module
imports without PyTorch; making an arm needs it, and transformers.
"""

from collections.abc import Mapping, Sequence
import contextlib
import importlib.metadata
import importlib.util
import os
import tempfile
import time
from typing import Any

import jax
import numpy as np

from satjax import config as config_lib
from satjax.interop import huggingface
from satjax.tree import PyTree

NAMES = ('torch eager', 'torch compile')
_PACKAGES = ('torch', 'transformers')


class TorchArm:
  """A model in training, in its own walk through the batches."""

  def __init__(
    self,
    name: str,
    config: config_lib.Config,
    directory: str,
    batches: Sequence[Mapping[str, np.ndarray]],
    learning_rates: Sequence[float],
  ):
    import torch

    self.name = name
    self._device = 'cpu' if jax.default_backend() == 'cpu' else 'cuda'
    self._model = _load(config, directory).to(self._device)
    self._forward = self._model
    if name == 'torch compile':
      # Compile times are of a first run here as in the other arms.
      self._forward = torch.compile(
        self._model, options={'force_disable_caches': True}
      )
    self._optimizer = _optimizer(config.optimizer, self._model)
    self._clip_norm = config.optimizer.clip_norm
    self._bfloat16 = config.model.dtype == 'bfloat16'
    train = config.train
    rows = train.microbatch_size or train.batch_size
    self._batches = [self._cut(batch, rows) for batch in batches]
    self._rates = learning_rates
    self._done = 0
    self.compile_seconds = 0.0
    if name == 'torch compile':
      start = time.perf_counter()
      self._gradient(self._batches[0])
      self._optimizer.zero_grad(set_to_none=True)
      self.compile_seconds = time.perf_counter() - start

  def steps(self, count: int) -> float:
    """Trains `count` steps; the loss of the last one."""
    import torch

    for _ in range(count):
      loss = self._gradient(self._batches[self._done % len(self._batches)])
      if self._clip_norm:
        torch.nn.utils.clip_grad_norm_(
          self._model.parameters(), self._clip_norm
        )
      for group in self._optimizer.param_groups:
        group['lr'] = self._rates[self._done]
      self._optimizer.step()
      self._optimizer.zero_grad(set_to_none=True)
      self._done += 1
    if self._device == 'cuda':
      torch.cuda.synchronize()
    return loss.item()

  def _gradient(self, parts):
    """Adds up the gradients of the parts of a batch; the batch's loss."""
    import torch

    total = 0.0
    for tokens, targets in parts:
      with self._precision():
        logits = self._forward(input_ids=tokens, use_cache=False).logits
      loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten()
      ) / len(parts)
      loss.backward()
      total += loss.detach()
    return total

  def _precision(self):
    import torch

    if not self._bfloat16:
      return contextlib.nullcontext()
    return torch.autocast(self._device, torch.bfloat16)

  def _cut(self, batch, rows):
    import torch

    tokens, targets = (
      torch.from_numpy(batch[name].astype(np.int64)).to(self._device)
      for name in ('tokens', 'targets')
    )
    return list(zip(tokens.split(rows), targets.split(rows)))


def is_installed() -> bool:
  return all(map(importlib.util.find_spec, _PACKAGES))


def versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


def make_arms(
  config: config_lib.Config,
  params: PyTree,
  batches: Sequence[Mapping[str, np.ndarray]],
  learning_rates: Sequence[float],
) -> tuple[list[TorchArm], dict[str, str]]:
  """The arms that can run here, and the reason of each that can not.

  Args:
    config: of the dense arm.
    params: of the dense arm, before its first step.
    batches: NumPy arrays 'tokens' and 'targets' [B, T]; every target counts.
    learning_rates: by completed steps, for as many steps as will be asked for.
  """
  reason = _obstacle(config)
  if reason:
    return [], dict.fromkeys(NAMES, reason)
  import torch

  torch.set_num_threads(os.cpu_count())
  arms, reasons = [], {}
  with tempfile.TemporaryDirectory() as directory:
    huggingface.save(
      directory, config.model, params, seq_len=config.data.seq_len
    )
    for name in NAMES:
      try:
        arms.append(TorchArm(name, config, directory, batches, learning_rates))
      except (RuntimeError, OSError) as error:
        reasons[name] = str(error).strip().partition('\n')[0]
  return arms, reasons


def _obstacle(config: config_lib.Config) -> str | None:
  import torch

  if config.optimizer.name != 'adamw':
    return f"the optimizer is {config.optimizer.name!r}, here only 'adamw'"
  if len(jax.devices()) > 1:
    return f'satjax uses {len(jax.devices())} devices, PyTorch here only one'
  if jax.default_backend() != 'cpu' and not torch.cuda.is_available():
    return f'PyTorch does not see the {jax.default_backend()}'
  return None


def _load(config: config_lib.Config, directory: str) -> Any:
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  model = transformers.LlamaForCausalLM.from_pretrained(
    directory,
    dtype=torch.float32,
    attn_implementation='sdpa',
    local_files_only=True,
  )
  if config.model.remat == 'full':
    model.gradient_checkpointing_enable()
  return model.train()


def _optimizer(config: config_lib.OptimizerConfig, model: Any) -> Any:
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
