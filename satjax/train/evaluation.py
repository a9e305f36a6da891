"""Held-out loss of a model, by source and by document."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import math
import statistics
from typing import Any

import jax
import numpy as np
import optax

from satjax import errors, sharding
from satjax.config import stages
from satjax.config.data import DataConfig
from satjax.config.run import Config
from satjax.config.stages import Stage
from satjax.data import pipeline, tokenizers
from satjax.data.tokenizers import Tokenizer
from satjax.model import decoder, ops
from satjax.train import step as step_lib
from satjax.tree import PyTree

# What the losses of a split go by, in metrics and results.
NAMES = {'held_out': 'eval', 'test': 'test'}
Tick = Callable[[int], Any]  # is told of batches that are done


class Evaluator:
  """Evaluates models on fixed rows of each source, held-out or of the test.

  Attributes:
    batches: of each source.
  """

  def __init__(
    self,
    data: DataConfig,
    *,
    vocab_size: int,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    max_rows: int | None,
    sources: Sequence[str] | None = None,
    split: str = 'held_out',
    tokenizer: Tokenizer | None = None,
  ):
    """Reads and tokenises `sources`.

    Args:
      max_rows: of each source, at most; None: all of it.
      sources: None: those of `data.eval`; of a test only those trained on,
        since the others are there to choose by.
      tokenizer: None: that of `data`.

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
    self._tokenizer = tokenizer or tokenizers.get_tokenizer(data.tokenizer)
    if sources is None:
      sources = [
        name
        for name, _ in pipeline.weighted(data.eval)
        if split != 'test' or pipeline.is_trained_on(data, name)
      ]
    self.batches = {
      name: pipeline.eval_batches(
        data,
        name,
        batch_size=batch_size,
        tokenizer=self._tokenizer,
        vocab_size=vocab_size,
        max_rows=max_rows,
        split=split,
      )
      for name in sources
    }

  def __call__(
    self, stage: Stage, params: PyTree, tick: Tick = lambda count: None
  ) -> dict[str, float]:
    """Nats a token of each source, over the targets that count.

    `params` are of the stage's model.
    """
    return {
      name: mean_loss(self._mesh, stage, params, batches, tick)
      for name, batches in self.batches.items()
    }

  def by_document(
    self, stage: Stage, params: PyTree, tick: Tick
  ) -> Iterator[dict[str, Any]]:
    """Of each document: its source, its name, tokens, and nats a token."""
    for source, batches in self.batches.items():
      nats, tokens = 0, 0  # of each document of the split
      for number, batch in enumerate(batches):
        with jax.sharding.set_mesh(self._mesh):
          rows = sharding.put_rows(self._mesh, stages.cut(batch, stage))
          found_BT = np.asarray(_token_step(stage.model, params, rows), float)
        counts = batch['weights'] > 0
        owners = batches.documents(number)[counts]
        found = found_BT.reshape(counts.shape)[counts]
        nats = nats + np.bincount(owners, found, batches.num_in_split)
        tokens = tokens + np.bincount(owners, minlength=batches.num_in_split)
        tick(1)
      for number in np.flatnonzero(tokens):
        yield {
          'source': source,
          'document': batches.name(number),
          'tokens': int(tokens[number]),
          'loss': float(nats[number] / tokens[number]),
        }

  def counts(self) -> Iterator[str]:
    """What of each source is read, in words."""
    for name, read in self.batches.items():
      left = f', {read.num_left:,} rows left out (train.eval_batches)'
      yield (
        f'{name}: evaluated on {read.num_documents:,} of {read.num_found:,}'
        f' documents, {read.num_tokens:,} tokens{left if read.num_left else ""}'
      )

  def bytes_per_token(self) -> dict[str, float]:
    """Bytes of text for each target that counts; an end of text has none.

    Of text as the tokenizer decodes it, where that is not what was encoded.
    """
    found, tokenizer = {}, self._tokenizer
    for name, batches in self.batches.items():
      total = 0.0
      for batch in batches:
        counts = batch['weights'] > 0
        sizes = tokenizer.id_bytes[batch['targets']]
        # A text begins after what does not count: its begin, or a prompt.
        begins = batch['tokens'] == tokenizer.bos_id
        begins[:, 1:] |= ~counts[:, :-1] & (batch['positions'][:, 1:] > 0)
        sizes = sizes - tokenizer.prefix_bytes * (begins & (sizes > 0))
        total += float(np.sum(batch['weights'] * sizes, dtype=np.float64))
      found[name] = total / batches.num_tokens
    return found


def evaluators(
  config: Config, data: DataConfig, mesh: jax.sharding.Mesh, batch_size: int
) -> dict[str, Evaluator]:
  """Of the held-out documents, and of the test if there is one."""
  return {
    split: Evaluator(
      data,
      vocab_size=config.model.vocab_size,
      mesh=mesh,
      batch_size=batch_size,
      max_rows=config.train.eval_batches * batch_size,
      split=split,
    )
    for split in NAMES
    if split != 'test' or data.test
  }


def named(
  losses: Mapping[str, Mapping[str, float]],
  sources: Sequence[Any],
  given: Sequence[Any],
) -> dict[str, float]:
  """The losses of each split under the names of metrics.jsonl.

  By the names in `data.eval` that were `given`, wherever files are now.
  """
  pairs = zip(pipeline.weighted(sources), pipeline.weighted(given))
  names = {there: name for (there, _), (name, _) in pairs}
  return {
    f'{NAMES[split]}/{names[source]}/loss': loss
    for split, by_source in losses.items()
    for source, loss in by_source.items()
  }


def mean_of_sources(losses: Mapping[str, float]) -> float | None:
  """What checkpoints are compared by: sources count alike; None: no number."""
  mean = statistics.fmean(losses.values())
  return mean if math.isfinite(mean) else None


def mean_loss(
  mesh: jax.sharding.Mesh,
  stage: Stage,
  params: PyTree,
  batches: Sequence[pipeline.Batch],
  tick: Tick = lambda count: None,
) -> float:
  """Nats a token of a model, over the targets of some batches that count.

  NaN if none does.
  """
  sums, total = [], 0.0
  with jax.sharding.set_mesh(mesh):
    for batch in batches:
      total += float(batch['weights'].sum())
      rows = sharding.put_rows(mesh, stages.cut(batch, stage))
      sums.append(step_lib.eval_step(params, rows, model=stage.model))
      if len(sums) > 1:  # the device is one batch ahead, and not all of them
        sums[-2] = float(jax.device_get(sums[-2]))
      tick(1)
  nats = math.fsum(map(float, jax.device_get(sums)))
  return nats / total if total else math.nan


@functools.partial(jax.jit, static_argnums=0)
def _token_step(model, params, batch):
  """Cross entropy of every target, in nats, [B, T]."""
  x_BTD, unembed_VD = decoder.run(model, params, batch)[0]

  def row(one):  # the logits of one row at a time are held
    return optax.softmax_cross_entropy_with_integer_labels(
      ops.logits(one[0], unembed_VD), one[1]
    )

  return jax.lax.map(row, (x_BTD, batch['targets']))
