"""Token-weighted cross entropy."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from satjax.config.groups import ModelConfig
from satjax.model import decoder, ops
from satjax.train import chunked_loss
from satjax.tree import PyTree


def next_token_loss(
  model: ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  rest: PyTree = None,
  chunk: int = 0,
) -> jax.Array:
  """`cross_entropy_sum` of a model.

  Args:
    model: as in `decoder.apply`, like the next three.
    params: of the model.
    batch: with 'targets' and 'weights', too.
    rest: what neurons that rest contribute.
    chunk: positions whose logits a device holds at once; 0: all.
  """
  x_BTD, unembed_VD = decoder.hidden(model, params, batch, rest)
  if chunk:
    return chunked_loss.cross_entropy_sum(x_BTD, unembed_VD, batch, chunk)
  return cross_entropy_sum(ops.logits(x_BTD, unembed_VD), batch)


def cross_entropy_sum(
  logits_BTV: jax.Array, batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Sum over the batch of weight times cross entropy, in nats.

  A sum and not a mean: divided once by the weights of the whole batch, it does
  not depend on how the batch is cut into microbatches or shards.

  Args:
    logits_BTV: float32 scores.
    batch: 'targets' int32 [B, T] and 'weights' float32 [B, T].
  """
  nll_BT = optax.softmax_cross_entropy_with_integer_labels(
    logits_BTV, batch['targets']
  )
  return jnp.sum(nll_BT * batch['weights'])
