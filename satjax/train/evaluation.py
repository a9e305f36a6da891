"""Held-out loss of a model, by source."""

from collections.abc import Sequence
import dataclasses
import functools
import math

import jax
import numpy as np

from satjax import errors, sharding
from satjax.config import stages
from satjax.config.data import DataConfig
from satjax.config.groups import MeshConfig
from satjax.config.stages import Stage
from satjax.data import pipeline, tokenizers
from satjax.interop import models
from satjax.train import saved
from satjax.train import step as step_lib
from satjax.tree import PyTree

# What the losses of a split go by, in metrics and results.
NAMES = {'held_out': 'eval', 'test': 'test'}


class Evaluator:
  """Evaluates models on fixed rows of each source, held-out or of the test."""

  def __init__(
    self,
    data: DataConfig,
    *,
    vocab_size: int,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    max_batches: int,
    sources: Sequence[str] | None = None,
    split: str = 'held_out',
  ):
    """Reads and tokenises `sources`, or those of `data.eval`.

    Raises:
      ConfigError: `split` is 'test', and there is none.
      DataError: a source cannot be used, or has nothing in the split.
    """
    if split == 'test' and not data.test:
      raise errors.ConfigError(
        f'split {split!r} needs data.test above 0, and it is {data.test}: all'
        " documents but those of 'held_out' are trained on; evaluate"
        " 'held_out', or train a run with data.test set"
      )
    self._mesh = mesh
    self._tokenizer = tokenizers.get_tokenizer(data.tokenizer)
    self._batches = {
      name: pipeline.eval_batches(
        data,
        name,
        batch_size=batch_size,
        tokenizer=self._tokenizer,
        vocab_size=vocab_size,
        max_batches=max_batches,
        split=split,
      )
      for name, _ in pipeline.weighted(sources or data.eval)
    }

  def __call__(self, stage: Stage, params: PyTree) -> dict[str, float]:
    """Nats a token of each source, over the targets that count.

    `params` are of the stage's model.
    """
    return {
      name: mean_loss(self._mesh, stage, params, batches)
      for name, batches in self._batches.items()
    }

  def bytes_per_token(self) -> dict[str, float]:
    """Bytes of text for each target that counts; an end of text has none.

    Of text as the tokenizer decodes it, where that is not what was encoded.
    """
    return {
      name: _num_bytes(batches, self._tokenizer) / _count(batches)
      for name, batches in self._batches.items()
    }


def mean_loss(
  mesh: jax.sharding.Mesh,
  stage: Stage,
  params: PyTree,
  batches: Sequence[pipeline.Batch],
) -> float:
  """Nats a token of a model, over the targets of some batches that count.

  NaN if none does.
  """
  if not (count := _count(batches)):
    return math.nan
  step = _eval_step(stage.model)
  with jax.sharding.set_mesh(mesh):
    sums = [
      step(params, sharding.put_rows(mesh, stages.cut(batch, stage)))
      for batch in batches
    ]
  return math.fsum(map(float, jax.device_get(sums))) / count


@functools.cache
def _eval_step(model):
  return jax.jit(functools.partial(step_lib.eval_step, model=model))


def _count(batches) -> float:
  """Weight of all targets."""
  return math.fsum(float(b['weights'].sum()) for b in batches)


def _num_bytes(batches, tokenizer: tokenizers.Tokenizer) -> float:
  """Bytes of the text that the targets stand for, by weight."""
  total = 0.0
  for batch in batches:
    counts = batch['weights'] > 0
    sizes = tokenizer.id_bytes[batch['targets']]
    # A text begins after what does not count: a begin of text, or a prompt.
    begins = batch['tokens'] == tokenizer.bos_id
    begins[:, 1:] |= ~counts[:, :-1] & (batch['positions'][:, 1:] > 0)
    sizes = sizes - tokenizer.prefix_bytes * (begins & (sizes > 0))
    total += float(np.sum(batch['weights'] * sizes, dtype=np.float64))
  return total


def evaluate_run(
  workdir: str,
  step: str | int | None = None,
  sources: Sequence[str] | None = None,
  max_batches: int | None = None,
  *,
  split: str = 'held_out',
) -> dict[str, object]:
  """Evaluates a checkpoint of a run.

  Returns:
    `{'step': N, 'eval': {source: {'loss': ..., 'perplexity': ...}}}`; of the
    test split, 'test' in place of 'eval'.

  Raises:
    ConfigError, DataError: as `Evaluator`, or `saved.restore`.
  """
  run = saved.restore(workdir, step)
  config = run.config
  last = stages.stages(config)[-1]
  evaluator = Evaluator(
    dataclasses.replace(config.data, seq_len=last.seq_len),
    vocab_size=config.model.vocab_size,
    mesh=run.setup.mesh,
    batch_size=last.batch_size,
    max_batches=max_batches or config.train.eval_batches,
    sources=sources,
    split=split,
  )
  return {
    'step': run.step,
    NAMES[split]: _describe(evaluator, run.stage, run.params),
  }


def evaluate_model(
  directory: str,
  data: DataConfig,
  *,
  batch_size: int = 8,
  max_batches: int = 16,
) -> dict[str, object]:
  """Evaluates a Hugging Face directory on `data.eval`.

  Returns:
    `{'model': directory, 'eval': {source: {'loss': ...}}}`.
  """
  tokenizer = tokenizers.get_tokenizer(data.tokenizer)
  model = models.load(directory, tokenizer)
  mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
  rows = mesh.shape['data']
  stage = Stage(0, model.config, data.seq_len, batch_size)
  evaluator = Evaluator(
    data,
    vocab_size=model.config.vocab_size,
    mesh=mesh,
    batch_size=-(-batch_size // rows) * rows,
    max_batches=max_batches,
  )
  return {
    'model': directory,
    'eval': _describe(evaluator, stage, model.params),
  }


def _describe(evaluator, stage, params) -> dict[str, dict[str, float]]:
  """Loss in nats a token, perplexity and bits per byte of text."""
  result = {}
  sizes = evaluator.bytes_per_token()
  for source, loss in evaluator(stage, params).items():
    result[source] = {'loss': loss, 'perplexity': math.exp(loss)}
    if sizes[source]:
      result[source]['bits_per_byte'] = loss / sizes[source] / math.log(2)
  return result
