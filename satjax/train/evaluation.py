"""Held-out loss of a model, by source."""

from collections.abc import Sequence
import functools
import math

import jax

from satjax import config as config_lib
from satjax import sharding
from satjax.data import pipeline, tokenizers
from satjax.interop import models
from satjax.train import saved
from satjax.train import step as step_lib
from satjax.tree import PyTree


class Evaluator:
  """Evaluates parameters on fixed held-out rows of each source."""

  def __init__(
    self,
    model: config_lib.ModelConfig,
    data: config_lib.DataConfig,
    *,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    max_batches: int,
    sources: Sequence[str] | None = None,
  ):
    """Reads and tokenises `sources`, or those of `data.eval`."""
    self._mesh = mesh
    self._step = jax.jit(functools.partial(step_lib.eval_step, model=model))
    tokenizer = tokenizers.get_tokenizer(data.tokenizer)
    self._batches = {
      name: pipeline.eval_batches(
        data,
        name,
        batch_size=batch_size,
        tokenizer=tokenizer,
        vocab_size=model.vocab_size,
        max_batches=max_batches,
      )
      for name, _ in pipeline.weighted(sources or data.eval)
    }

  def __call__(self, params: PyTree) -> dict[str, float]:
    """Nats a token of each source, over the targets that count."""
    return {
      name: self._sum(params, batches) / _count(batches)
      for name, batches in self._batches.items()
    }

  def bytes_per_token(self) -> dict[str, float]:
    """Of the byte tokenizer: a little below 1, as texts begin and end."""
    return {
      name: _count(batches, below=256) / _count(batches)
      for name, batches in self._batches.items()
    }

  def _sum(self, params, batches) -> float:
    rows = sharding.batch_sharding(self._mesh)
    with jax.sharding.set_mesh(self._mesh):
      sums = [
        self._step(params, jax.device_put(batch, rows)) for batch in batches
      ]
    return math.fsum(map(float, jax.device_get(sums)))


def _count(batches, below: int | None = None) -> float:
  """Weight of all targets, or of those with an id below `below`."""
  return math.fsum(
    float(b['weights'][b['targets'] < below if below else ...].sum())
    for b in batches
  )


def evaluate_run(
  workdir: str,
  step: int | None = None,
  sources: Sequence[str] | None = None,
  max_batches: int | None = None,
) -> dict[str, object]:
  """Evaluates a checkpoint of a run.

  Returns:
    `{'step': N, 'eval': {source: {'loss': ..., 'perplexity': ...}}}`.
  """
  run = saved.restore(workdir, step)
  config = run.config
  evaluator = Evaluator(
    config.model,
    config.data,
    mesh=run.setup.mesh,
    batch_size=config.train.batch_size,
    max_batches=max_batches or config.train.eval_batches,
    sources=sources,
  )
  return {
    'step': run.step,
    'eval': _describe(config.data, evaluator, run.params),
  }


def evaluate_model(
  directory: str,
  data: config_lib.DataConfig,
  *,
  batch_size: int = 8,
  max_batches: int = 16,
) -> dict[str, object]:
  """Evaluates a Hugging Face directory on `data.eval`.

  Returns:
    `{'model': directory, 'eval': {source: {'loss': ...}}}`.
  """
  model = models.load(directory)
  mesh = sharding.make_mesh(config_lib.MeshConfig(data=-1, fsdp=1, tensor=1))
  rows = mesh.shape['data']
  evaluator = Evaluator(
    model.config,
    data,
    mesh=mesh,
    batch_size=-(-batch_size // rows) * rows,
    max_batches=max_batches,
  )
  return {
    'model': directory,
    'eval': _describe(data, evaluator, model.params),
  }


def _describe(data, evaluator, params) -> dict[str, dict[str, float]]:
  """Loss in nats a token, perplexity and, for bytes, bits per byte."""
  result = {}
  for source, loss in evaluator(params).items():
    result[source] = {'loss': loss, 'perplexity': math.exp(loss)}
    if data.tokenizer == 'byte':
      nats = loss / evaluator.bytes_per_token()[source]
      result[source]['bits_per_byte'] = nats / math.log(2)
  return result
