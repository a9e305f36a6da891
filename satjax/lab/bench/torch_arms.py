"""The PyTorch arms of the benchmark: the Llama of transformers.

With the same weights, batches, AdamW, clipping and learning rates. The module
imports without PyTorch; making an arm needs it, and transformers.
"""

from collections.abc import Mapping, Sequence
import contextlib
import importlib.metadata
import importlib.util
import os
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from satjax import errors
from satjax.train import phases
from satjax.train import setup as setup_lib

_PACKAGES = ('torch', 'transformers')
# A name for PyTorch's attention. Of 'sdpa' transformers knows that it takes a
# mask, and passes one while it compiles, which flash attention does not take
# and which makes the others slower.
_UNMASKED = 'satjax_unmasked'


class Variant(NamedTuple):
  """A way to run the model."""

  mode: str = ''  # of `torch.compile`; '' is eager
  # `torch.nn.attention.SDPBackend`; '' is PyTorch's own choice.
  attention: str = ''


_MODES = {
  'torch eager': '',
  'torch compile': 'default',
  'torch max-autotune': 'max-autotune-no-cudagraphs',
}
_ATTENTION = {'flash': 'FLASH_ATTENTION', 'cudnn': 'CUDNN_ATTENTION'}


def variants(platform: str, dtype: str) -> dict[str, Variant]:
  """The arms by name, on what JAX calls a platform, for a dtype of activations.

  Neither CPUs nor float32 have a fused attention to choose from.
  """
  if platform == 'cpu' or dtype == 'float32':
    modes = list(_MODES.items())[: 2 if platform == 'cpu' else None]
    return {name: Variant(mode) for name, mode in modes}
  return {
    f'{name}, {short}': Variant(mode, attention)
    for name, mode in _MODES.items()
    for short, attention in _ATTENTION.items()
  }


class TorchArm:
  """A model in training, in its own walk through the batches."""

  refreshes = False

  def __init__(
    self,
    setup: setup_lib.Setup,
    directory: str | os.PathLike,
    variant: Variant,
    batches: Sequence[Mapping[str, np.ndarray]],
    num_steps: int,
  ):
    """Loads the weights of the dense arm, whose setup it gets, and compiles.

    Every target of `batches` counts; the arm trains `num_steps` at most.
    """
    import torch

    self._torch = torch
    config = self._config = setup.config
    self._device = _device(setup)
    self._attention = variant.attention
    self._model = _load(config, directory, self._device)
    self._forward = self._model
    self._optimizer = _make_optimizer(config.optimizer, self._model)
    self._batches = [self._cut(batch) for batch in batches]
    self._rates = jax.vmap(setup.schedule)(jnp.arange(num_steps)).tolist()
    self._done = 0
    self.flops = phases.step_flops(config, 0)
    self.compile_seconds = {'cold': 0.0}
    if variant.mode:
      self._compile(variant.mode)

  @property
  def memory(self) -> dict[str, int]:
    """Most bytes that tensors took on the accelerator since the arm began."""
    if self._device == 'cpu':
      return {}
    return {'peak_memory': self._torch.cuda.max_memory_allocated()}

  def _compile(self, mode):
    """Compiles the model, as in a first run."""
    start = time.perf_counter()
    # What is compiled does not know its attention: no cache may be shared.
    self._torch.compiler.reset()
    with self._torch.compiler.config.patch(force_disable_caches=True):
      self._forward = self._torch.compile(self._model, mode=mode)
      self._gradient(self._batches[0])
    self._optimizer.zero_grad(set_to_none=True)
    self.compile_seconds = {'cold': time.perf_counter() - start}

  def steps(self, count: int) -> float:
    """Trains `count` steps; the loss of the last one."""
    max_norm = self._config.optimizer.clip_norm
    for _ in range(count):
      loss = self._gradient(self._batches[self._done % len(self._batches)])
      if max_norm:
        self._torch.nn.utils.clip_grad_norm_(self._model.parameters(), max_norm)
      for group in self._optimizer.param_groups:
        group['lr'] = self._rates[self._done]
      self._optimizer.step()
      self._optimizer.zero_grad(set_to_none=True)
      self._done += 1
    if self._device == 'cuda':
      self._torch.cuda.synchronize()
    return loss.item()

  def _gradient(self, parts):
    """Adds up the gradients of the parts of a batch; the batch's loss."""
    total, half = 0.0, self._config.model.dtype != 'float32'
    precision = self._torch.autocast(
      self._device, self._torch.bfloat16, enabled=half
    )
    with self._kernels():
      for tokens, targets in parts:
        with precision:
          logits = self._forward(input_ids=tokens, use_cache=False).logits
        loss = self._torch.nn.functional.cross_entropy(
          logits.float().flatten(0, 1), targets.flatten()
        ) / len(parts)
        loss.backward()
        total += loss.detach()
    return total

  def _kernels(self):
    from torch.nn import attention

    if not self._attention:
      return contextlib.nullcontext()
    return attention.sdpa_kernel(getattr(attention.SDPBackend, self._attention))

  def _cut(self, batch):
    train = self._config.train
    rows = train.microbatch_size or train.batch_size
    tokens, targets = (
      self._torch.from_numpy(batch[name].astype(np.int64)).to(self._device)
      for name in ('tokens', 'targets')
    )
    return list(zip(tokens.split(rows), targets.split(rows)))


def _load(config, directory, device):
  """The model, in float32 and ready to train.

  Settings of the whole process come along: threads, TF32 on a GPU, where JAX
  has it too, and from when on the most memory counts.
  """
  import torch
  import transformers
  from transformers.integrations import sdpa_attention

  torch.set_num_threads(os.cpu_count())
  transformers.utils.logging.disable_progress_bar()
  transformers.AttentionInterface.register(
    _UNMASKED, sdpa_attention.sdpa_attention_forward
  )
  model = transformers.LlamaForCausalLM.from_pretrained(
    directory,
    dtype=torch.float32,
    attn_implementation=_UNMASKED,
    local_files_only=True,
  )
  if config.model.remat == 'full':
    model.gradient_checkpointing_enable()
  model = model.to(device).train()
  if device == 'cuda':
    torch.set_float32_matmul_precision('high')
    torch.cuda.reset_peak_memory_stats()
  return model


def _make_optimizer(config, model):
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


def wanted(
  names: Sequence[str] | None, platform: str, dtype: str
) -> dict[str, Variant]:
  """The arms to make; all `variants` if `names` (their beginnings) is None.

  Raises:
    ConfigError: arms are asked for that do not exist, or that need packages
      that are not installed.
  """
  missing = [name for name in _PACKAGES if not importlib.util.find_spec(name)]
  if missing:
    if names:
      raise errors.ConfigError(
        f'the PyTorch arms need {" and ".join(missing)}; run'
        " pip install -e '.[parity]', or leave these arms out"
      )
    return {}
  known = variants(platform, dtype)
  if names is None:
    return known
  for name in names:
    if not any(other.startswith(name) for other in known):
      raise errors.ConfigError(
        f'no PyTorch arm begins with {name!r}; here are'
        f' {", ".join(map(repr, known))}'
      )
  return {n: v for n, v in known.items() if n.startswith(tuple(names))}


def versions() -> dict[str, str]:
  """Of the packages that the arms are made of."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


def free() -> None:
  """Gives back what arms without an owner took of the accelerator."""
  import torch

  torch.compiler.reset()
  if torch.cuda.is_available():
    torch.cuda.empty_cache()


def obstacle(setup: setup_lib.Setup) -> str | None:
  """Why there can be no arm here; None: there can."""
  import torch

  optimizer, devices = setup.config.optimizer.name, setup.mesh.size
  if optimizer != 'adamw':
    return f"config.optimizer.name is {optimizer!r}; here only 'adamw'"
  if devices > 1:
    return f'satjax uses {devices} devices; PyTorch here only one'
  if _device(setup) == 'cuda' and not torch.cuda.is_available():
    return 'PyTorch does not see the accelerator'
  return None


def _device(setup: setup_lib.Setup) -> str:
  platform = setup.mesh.devices.flat[0].platform
  return 'cpu' if platform == 'cpu' else 'cuda'
