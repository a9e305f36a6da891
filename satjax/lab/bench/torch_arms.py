"""The PyTorch arms of the benchmark: the Llama of transformers.

With the same weights, batches, AdamW, clipping and learning rates. The module
imports without PyTorch; making an arm needs it, and transformers.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from satjax import errors
from satjax.config.run import Config
from satjax.interop import huggingface
from satjax.lab.bench import torch_model as bench_torch_model
from satjax.train import phases
from satjax.train import setup as setup_lib
from satjax.tree import PyTree

_PACKAGES = ('torch', 'transformers')


@dataclasses.dataclass(frozen=True)
class Variant:
  """A way to run the model.

  Attributes:
    mode: of `torch.compile`; '' is eager.
    attention: `torch.nn.attention.SDPBackend`; '' is PyTorch's own choice.
  """

  mode: str = ''
  attention: str = ''


_MODES = {
  'torch eager': '',
  'torch compile': 'default',
  'torch max-autotune': 'max-autotune-no-cudagraphs',
}
_ATTENTION = {'flash': 'FLASH_ATTENTION', 'cudnn': 'CUDNN_ATTENTION'}


def variants(platform: str, dtype: str) -> dict[str, Variant]:
  """The arms by name.

  Args:
    platform: of the devices, as JAX names it.
    dtype: of activations; float32 has no fused attention to choose from.
  """
  if platform == 'cpu':
    modes = dict(list(_MODES.items())[:2])
    return {name: Variant(mode) for name, mode in modes.items()}
  if dtype == 'float32':
    return {name: Variant(mode) for name, mode in _MODES.items()}
  return {
    f'{name}, {short}': Variant(mode, attention)
    for name, mode in _MODES.items()
    for short, attention in _ATTENTION.items()
  }


class TorchArm:
  """A model in training, in its own walk through the batches."""

  def __init__(
    self,
    setup: setup_lib.Setup,
    directory: str | os.PathLike,
    variant: Variant,
    batches: Sequence[Mapping[str, np.ndarray]],
    num_steps: int,
  ):
    """Loads the model; compiles it where the variant asks for that.

    Args:
      setup: of the dense arm.
      directory: of `save`.
      variant: how to run it.
      batches: of `bench_arms.random_batches`, where every target counts.
      num_steps: how many steps the arm will train at most.
    """
    config = self._config = setup.config
    self._device = _device(setup)
    self._attention = variant.attention
    self._model = bench_torch_model.load(config, directory, self._device)
    self._forward = self._model
    self._optimizer = bench_torch_model.make_optimizer(
      config.optimizer, self._model
    )
    self._batches = [self._cut(batch) for batch in batches]
    self._rates = jax.vmap(setup.schedule)(jnp.arange(num_steps)).tolist()
    self._done = 0
    self.flops = phases.step_flops(config, 0)
    self.compile_seconds = {'cold': 0.0}
    if variant.mode:
      self._compile(variant.mode)

  @property
  def peak_memory(self) -> int | None:
    """Most bytes that tensors took on the accelerator since the arm began."""
    import torch

    return torch.cuda.max_memory_allocated() if self._device == 'cuda' else None

  def _compile(self, mode):
    """Compiles the model, as in a first run."""
    import torch

    start = time.perf_counter()
    # What is compiled does not know its attention: no cache may be shared.
    torch.compiler.reset()
    with torch.compiler.config.patch(force_disable_caches=True):
      self._forward = torch.compile(self._model, mode=mode)
      self._gradient(self._batches[0])
    self._optimizer.zero_grad(set_to_none=True)
    self.compile_seconds = {'cold': time.perf_counter() - start}

  def steps(self, count: int) -> float:
    """Trains `count` steps; the loss of the last one."""
    import torch

    max_norm = self._config.optimizer.clip_norm
    for _ in range(count):
      loss = self._gradient(self._batches[self._done % len(self._batches)])
      if max_norm:
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), max_norm)
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
    with self._kernels():
      for tokens, targets in parts:
        with self._precision():
          logits = self._forward(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
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

  def _precision(self):
    import torch

    if self._config.model.dtype == 'float32':
      return contextlib.nullcontext()
    return torch.autocast(self._device, torch.bfloat16)

  def _cut(self, batch):
    import torch

    train = self._config.train
    rows = train.microbatch_size or train.batch_size
    tokens, targets = (
      torch.from_numpy(batch[name].astype(np.int64)).to(self._device)
      for name in ('tokens', 'targets')
    )
    return list(zip(tokens.split(rows), targets.split(rows)))


def wanted(
  names: Sequence[str] | None, platform: str, dtype: str
) -> dict[str, Variant]:
  """The arms to make.

  Args:
    names: what their names begin with; (): none; None: all that are possible.
    platform: of the devices, as JAX names it.
    dtype: of activations.

  Raises:
    ConfigError: arms are asked for that do not exist, or that need packages
      that are not installed.
  """
  missing = [name for name in _PACKAGES if not importlib.util.find_spec(name)]
  if missing:
    if names:
      raise errors.ConfigError(
        f'the PyTorch arms need {" and ".join(missing)}; install'
        ' satjax[parity], or leave these arms out'
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


def save(directory: str | os.PathLike, config: Config, params: PyTree) -> None:
  """Writes the weights that every arm begins with; `params`: on the host."""
  huggingface.save(directory, config.model, params, seq_len=config.data.seq_len)


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
