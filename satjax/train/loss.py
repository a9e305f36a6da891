"""Token-weighted cross entropy."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax


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
