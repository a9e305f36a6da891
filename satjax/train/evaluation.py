"""Held-out loss of a model, by source."""

import functools
import math

import jax

from satjax import config as config_lib
from satjax.data import pipeline
from satjax.train import setup as setup_lib
from satjax.train import step as step_lib
from satjax.tree import PyTree


class Evaluator:
  """Evaluates parameters on fixed held-out rows of each source."""

  def __init__(
    self,
    setup: setup_lib.Setup,
    sources: tuple | None = None,
    max_batches: int | None = None,
  ):
    """Reads and tokenises the sources; None: those of `config.data.eval`."""
    config = setup.config
    self._setup = setup
    self._step = jax.jit(
      functools.partial(step_lib.eval_step, model=config.model)
    )
    names = [
      name
      for name, _ in pipeline.weighted(
        config.data.eval if sources is None else sources
      )
    ]
    self._batches = {
      name: pipeline.eval_batches(
        config.data,
        name,
        batch_size=config.train.microbatch_size or config.train.batch_size,
        tokenizer=setup.tokenizer,
        vocab_size=config.model.vocab_size,
        max_batches=max_batches or config.train.eval_batches,
      )
      for name in names
    }

  def __call__(self, params: PyTree) -> dict[str, float]:
    """`{'eval/SOURCE/loss': nats a token}`, weighted by tokens."""
    return {
      f'eval/{name}/loss': self._loss(params, batches)
      for name, batches in self._batches.items()
    }

  def _loss(self, params, batches):
    with jax.sharding.set_mesh(self._setup.mesh):
      parts = [
        self._step(params, self._setup.put_batch(batch)) for batch in batches
      ]
    parts = jax.device_get(parts)
    total = math.fsum(float(part['weight_sum']) for part in parts)
    return math.fsum(float(part['loss_sum']) for part in parts) / total


def describe(
  config: config_lib.Config, losses: dict[str, float]
) -> dict[str, dict[str, float]]:
  """Loss, perplexity and, for the byte tokenizer, bits per byte, by source."""
  result = {}
  for key, loss in losses.items():
    source = key.removeprefix('eval/').removesuffix('/loss')
    result[source] = {'loss': loss, 'perplexity': math.exp(loss)}
    if config.data.tokenizer == 'byte':
      result[source]['bits_per_byte'] = loss / math.log(2)
  return result
