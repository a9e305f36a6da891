"""Token-weighted cross entropy, of all logits at once or in chunks."""

from collections.abc import Mapping
import functools

import jax
from jax import lax
import jax.numpy as jnp
import optax

from satjax.config.groups import ModelConfig
from satjax.model import decoder, lora, ops, shards
from satjax.tree import PyTree


def next_token_loss(
  model: ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  extra: PyTree = None,
  chunk: int = 0,
) -> jax.Array:
  """`cross_entropy_sum` of a model; arguments as in `decoder.apply`.

  `chunk`: positions whose logits a device holds at once; 0: all.
  """
  return of_output(*decoder.run(model, params, batch, extra)[0], batch, chunk)


def of_output(
  x_BTD: jax.Array,
  unembed_VD: jax.Array | lora.LowRank,
  batch: Mapping[str, jax.Array],
  chunk: int = 0,
) -> jax.Array:
  """The same, of what `decoder.run` returns first."""
  if chunk:
    if isinstance(unembed_VD, lora.LowRank):
      unembed_VD = unembed_VD.sum()
    return chunked_cross_entropy_sum(x_BTD, unembed_VD, batch, chunk)
  return cross_entropy_sum(ops.logits(x_BTD, unembed_VD), batch)


def num_counted(batch: Mapping[str, jax.Array]) -> jax.Array:
  """The tokens that count, by their weights; at least 1, to divide by."""
  return jnp.maximum(jnp.sum(batch['weights']), 1.0)


def cross_entropy_sum(
  logits_BTV: jax.Array, batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Sum over the batch of weight times cross entropy, in nats.

  A sum and not a mean: divided once by the weights of the whole batch, it does
  not depend on how the batch is cut into microbatches or shards.

  `batch` has 'targets' int32 [B, T] and 'weights' float32 [B, T].
  """
  nll_BT = optax.softmax_cross_entropy_with_integer_labels(
    logits_BTV, batch['targets']
  )
  return jnp.sum(nll_BT * batch['weights'])


def chunked_cross_entropy_sum(
  x_BTD: jax.Array,
  unembed_VD: jax.Array,
  batch: Mapping[str, jax.Array],
  chunk: int,
) -> jax.Array:
  """`cross_entropy_sum` of `ops.logits(x_BTD, unembed_VD)`, never whole.

  The forward rule computes the loss and its gradients a chunk of positions
  after the other, so that the backward pass has nothing to recompute: three
  matmuls with the output matrix, as without chunks. On a mesh each device takes
  its rows and its words; the matrix is gathered once, and its gradient summed
  once. Letters as in `ops`, C positions of a chunk.
  """
  return _summed(x_BTD, unembed_VD, batch['targets'], batch['weights'], chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _summed(x_BTD, unembed_VD, target_BT, weight_BT, chunk):
  return _run(chunk, (), x_BTD, unembed_VD, target_BT, weight_BT)[0]


def _summed_fwd(x_BTD, unembed_VD, target_BT, weight_BT, chunk):
  arguments = x_BTD, unembed_VD, target_BT, weight_BT
  wanted = [n for n, a in zip('xw', arguments) if a.perturbed]
  loss, *grads = _run(chunk, tuple(wanted), *(a.value for a in arguments))
  return loss, dict(zip(wanted, grads))


def _summed_bwd(chunk, grads, dloss):
  scaled = {n: (g * dloss).astype(g.dtype) for n, g in grads.items()}
  return scaled.get('x'), scaled.get('w'), None, None


_summed.defvjp(_summed_fwd, _summed_bwd, symbolic_zeros=True)


def _run(chunk, wanted, x_BTD, unembed_VD, target_BT, weight_BT):
  """The loss, and the gradients of what is `wanted`, of 'x' and 'w'."""
  rows, words = shards.axes_that_divide(len(x_BTD), len(unembed_VD))
  of_table = shards.gradient_axes(rows, words, unembed_VD.shape[1])
  split = {'x': (rows,), 'w': of_table}
  local = functools.partial(
    _local, chunk=chunk, wanted=wanted, rows=rows, words=words
  )
  return shards.on_each(
    local,
    [(rows,), (words,), (rows,), (rows,)],
    [(), *(split[name] for name in wanted)],
  )(x_BTD, unembed_VD, target_BT, weight_BT)


def _local(
  x_BTD, unembed_VD, target_BT, weight_BT, *, chunk, wanted, rows, words
):
  """What one device contributes, summed over devices."""
  wide = jnp.promote_types(x_BTD.dtype, jnp.float32)
  first = lax.axis_index(words) * len(unembed_VD) if words else 0

  def add(carry, part):
    total, dunembed_VD = carry
    x_CD, target_C, weight_C = part
    logits_CV = ops.logits(x_CD, unembed_VD)
    nll_C, dlogits_CV = _cross_entropy(logits_CV, target_C - first, words)
    total += jnp.sum(nll_C * weight_C)
    if not wanted:
      return (total, None), None
    dlogits_CV = (dlogits_CV * weight_C[:, None]).astype(x_CD.dtype)
    dx_CD = ops.project_out(dlogits_CV, unembed_VD) if 'x' in wanted else None
    if 'w' in wanted:
      dunembed_VD += ops.weight_gradient(dlogits_CV, x_CD, wide)
    return (total, dunembed_VD), dx_CD

  zero = jnp.zeros(unembed_VD.shape, wide) if 'w' in wanted else None
  parts = shards.chunks(chunk, x_BTD, target_BT, weight_BT)
  (total, dunembed_VD), dx = lax.scan(add, (jnp.zeros((), wide), zero), parts)
  grads = {}
  if 'x' in wanted:
    dx_XD = dx.reshape(-1, x_BTD.shape[-1])[: target_BT.size]
    grads['x'] = _sum(dx_XD.reshape(x_BTD.shape), words)
  if 'w' in wanted:
    dunembed_VD = dunembed_VD.astype(unembed_VD.dtype)
    grads['w'] = shards.sum_gradient(dunembed_VD, rows)
  return _sum(total, rows), *(grads[name] for name in wanted)


def _cross_entropy(logits_CV, target_C, words):
  """Of each position, in nats, and its gradient; `words`: `_sum` over these."""
  highest_C = jnp.max(logits_CV, axis=-1)
  if words:
    highest_C = lax.pmax(highest_C, words)
  power_CV = jnp.exp(logits_CV - highest_C[:, None])
  is_target_CV = target_C[:, None] == jnp.arange(logits_CV.shape[-1])
  total_C = _sum(jnp.sum(power_CV, axis=-1), words)
  found_C = jnp.sum(jnp.where(is_target_CV, logits_CV, 0), axis=-1)
  nll_C = jnp.log(total_C) + highest_C - _sum(found_C, words)
  return nll_C, power_CV / total_C[:, None] - is_target_CV


def _sum(x, axes):
  return lax.psum(x, axes) if axes else x
