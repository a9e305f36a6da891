"""The PyTorch arms of the benchmark, and what makes arms comparable.

The arms are the Llama of transformers with the same weights, batches, AdamW,
clipping and learning rates. The module imports without PyTorch; making an arm
needs it, and transformers.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import importlib.metadata
import importlib.util
import os
import tempfile
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np

from satjax import config as config_lib
from satjax import errors
from satjax.interop import huggingface
from satjax.train import phases
from satjax.train import setup as setup_lib
from satjax.tree import PyTree

NAMES = ('torch eager', 'torch compile')
_PACKAGES = ('torch', 'transformers')


class TorchArm:
  """A model in training, in its own walk through the batches."""

  def __init__(
    self,
    setup: setup_lib.Setup,
    directory: str,
    batches: Sequence[Mapping[str, np.ndarray]],
    learning_rates: Sequence[float],
  ):
    config = self._config = setup.config
    self._device = _device(setup)
    self._model = _load(config, directory).to(self._device)
    self._forward = self._model
    self._optimizer = _optimizer(config.optimizer, self._model)
    self._batches = [self._cut(batch) for batch in batches]
    self._rates = learning_rates
    self._done = 0
    self.flops = phases.step_flops(config, 0)
    self.compile_seconds = 0.0

  def compile(self) -> None:
    """Compiles the model, as in a first run."""
    import torch

    start = time.perf_counter()
    with torch.compiler.config.patch(force_disable_caches=True):
      self._forward = torch.compile(self._model)
      self._gradient(self._batches[0])
    self._optimizer.zero_grad(set_to_none=True)
    self.compile_seconds = time.perf_counter() - start

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


def is_wanted(torch: bool | None) -> bool:
  """Whether to make the arms; None: if that is possible.

  Raises:
    ConfigError: they are asked for, and PyTorch is not installed.
  """
  missing = [name for name in _PACKAGES if not importlib.util.find_spec(name)]
  if torch and missing:
    raise errors.ConfigError(
      f'the PyTorch arms need {" and ".join(missing)}; install satjax[parity],'
      ' or leave these arms out'
    )
  return not missing if torch is None else torch


def versions() -> dict[str, str]:
  """Of the packages that the arms are made of."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


@contextlib.contextmanager
def cold_compiles() -> Iterator[None]:
  """JAX compiles as in a first run, whatever its cache on disk holds."""
  option = 'jax_enable_compilation_cache'
  before = getattr(jax.config, option)
  jax.config.update(option, False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update(option, before)
    compilation_cache.reset_cache()


def make_arms(
  setup: setup_lib.Setup,
  params: PyTree,
  batches: Sequence[Mapping[str, np.ndarray]],
  num_steps: int,
) -> tuple[dict[str, TorchArm], dict[str, str]]:
  """The arms that can run here, and the reasons why others can not.

  Args:
    setup: of the dense arm.
    params: of the dense arm, before its first step.
    batches: of `random_batches`, where every target counts.
    num_steps: how many steps an arm will train at most.
  """
  reason = _obstacle(setup)
  if reason:
    return {}, dict.fromkeys(NAMES, reason)
  import torch

  torch.set_num_threads(os.cpu_count())
  config, arms, reasons = setup.config, {}, {}
  rates = jax.vmap(setup.schedule)(jnp.arange(num_steps)).tolist()
  with tempfile.TemporaryDirectory() as directory:
    huggingface.save(
      directory, config.model, params, seq_len=config.data.seq_len
    )
    for name in NAMES:
      arm = TorchArm(setup, directory, batches, rates)
      try:
        if name == 'torch compile':
          arm.compile()
      except (RuntimeError, OSError) as error:
        reasons[name] = ' '.join(str(error).split())[:200]
      else:
        arms[name] = arm
  return arms, reasons


def _obstacle(setup: setup_lib.Setup) -> str | None:
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


def random_batches(
  config: config_lib.Config, count: int = 4
) -> list[dict[str, np.ndarray]]:
  """Batches of random tokens with the keys of training; one document a row."""
  rng = np.random.default_rng(0)
  shape = rows, length = config.train.batch_size, config.data.seq_len
  batches = []
  for _ in range(count):
    ids = rng.integers(config.model.vocab_size, size=(rows, length + 1))
    ids = ids.astype(np.int32)
    batches.append(
      {
        'tokens': ids[:, :-1],
        'targets': ids[:, 1:],
        'positions': np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        'segments': np.ones(shape, np.int32),
        'weights': np.ones(shape, np.float32),
      }
    )
  return batches


def check_losses(dense: float, others: Mapping[str, float], dtype: str) -> None:
  """Refuses to compare arms that compute something else than the dense one.

  Args:
    dense: loss of the dense arm on its first batch.
    others: losses on the same batch of the arms that must agree with it.
    dtype: of activations; it sets how closely they agree.

  Raises:
    SatjaxError: names the arms that disagree, and the figures.
  """
  tolerance = {'float32': 1e-5, 'bfloat16': 1e-2}[dtype]
  wrong = [
    f'{name} {loss:.7g}'
    for name, loss in others.items()
    if not abs(loss - dense) <= tolerance * abs(dense)
  ]
  if wrong:
    raise errors.SatjaxError(
      f'the first loss of the dense arm is {dense:.7g}, but of'
      f' {", ".join(wrong)}; they must agree to {tolerance:g} (relative,'
      f' {dtype}), or their times compare different work'
    )
