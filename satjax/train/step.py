"""The train step and the evaluation step: pure functions of state and batch."""

from collections.abc import Mapping
import functools

import jax
from jax import lax
import jax.numpy as jnp
import optax

from satjax.config.groups import ModelConfig
from satjax.train import loss as loss_lib
from satjax.train import views
from satjax.train.state import TrainState
from satjax.tree import PyTree

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

_EVAL_CHUNK = 4096  # positions; half a GB of logits at 32k words


def train_step(
  state: TrainState,
  batch: Batch,
  extra: PyTree = None,
  *,
  model: ModelConfig,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  num_microbatches: int = 1,
  loss_chunk: int = 0,
  seed: int = 0,
  view: views.View = views.plain,
) -> tuple[TrainState, Metrics]:
  """One optimizer step, on the dense model or on any sub-network of it.

  Args:
    state: parameters and moments; donate it.
    batch: int32 [B, T] 'tokens', 'targets', 'positions', 'segments' and float32
      [B, T] 'weights' (`data.rows`).
    extra: what parked neurons contribute (`decoder.apply`); None: nothing.
    model: configuration of the whole model.
    tx: gradients to update directions.
    schedule: learning rate by completed steps.
    num_microbatches: forward and backward passes that share the batch.
    loss_chunk: `loss.next_token_loss`.
    seed: of the dropout, with the number of completed steps.
    view: what the forward pass sees of the parameters and of `extra`
      (`views.view_of`).

  Returns:
    The next state, and scalars 'loss' (nats a token), 'grad_norm' (before
    clipping) and 'learning_rate'.
  """
  total = loss_lib.num_counted(batch)
  copy, extra = views.compute_copy(model.dtype, state.params, extra)
  if model.dropout:
    # By row: microbatches and devices draw what the whole batch would.
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    rows = batch['tokens'].shape[:1]
    batch = {**batch, 'dropout': jax.random.bits(key, rows, 'uint32')}

  def loss_fn(params, part):
    seen, added = view(params, state, extra)
    nats = loss_lib.next_token_loss(model, seen, part, added, loss_chunk)
    return nats / total

  loss, grads = _accumulate(loss_fn, copy, batch, num_microbatches)
  grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
  metrics = {
    'loss': loss,
    'grad_norm': optax.global_norm(grads),
    'learning_rate': jnp.asarray(schedule(state.step)),
  }
  return update(state, grads, tx=tx, schedule=schedule), metrics


@jax.named_scope('optimizer')  # which profiles know it by
def update(
  state: TrainState,
  grads: PyTree,
  *,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
) -> TrainState:
  """The optimizer's half of a step."""
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  learning_rate = jnp.asarray(schedule(state.step))
  params = jax.tree.map(
    lambda p, u: p - learning_rate.astype(p.dtype) * u, state.params, updates
  )
  return TrainState(state.step + 1, params, opt_state)


@functools.partial(
  jax.jit, static_argnames=('tx', 'schedule'), donate_argnames='state'
)
def replay(
  state: TrainState,
  count: jax.Array,
  *,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
) -> TrainState:
  """`count` steps with gradients of zero: decay and momentum run on.

  For optimizers that treat every number by itself, this is what `count` steps
  do to neurons that took no part in them. A loop, not a closed form: the
  result does not depend on where a window is cut in two.
  """

  def once(_, state):
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    return update(state, zeros, tx=tx, schedule=schedule)

  return lax.fori_loop(0, count, once, state)


@functools.partial(jax.jit, static_argnames='model')
def eval_step(params: PyTree, batch: Batch, *, model: ModelConfig) -> jax.Array:
  """Sum of the weighted cross entropy of a batch, in nats."""
  return loss_lib.next_token_loss(model, params, batch, chunk=_EVAL_CHUNK)


def _accumulate(loss_fn, params, batch, num_microbatches):
  """Loss and gradients, summed over equal parts of the batch in float32."""
  if num_microbatches == 1:
    return jax.value_and_grad(loss_fn)(params, batch)

  def cut(x):
    # Strided, so that each part takes rows of every data shard.
    rows = x.reshape(-1, num_microbatches, *x.shape[1:])
    return jnp.swapaxes(rows, 0, 1)

  def add(total, part):
    new = jax.value_and_grad(loss_fn)(params, part)
    return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, new), None

  parts = jax.tree.map(cut, batch)
  shapes = jax.eval_shape(
    jax.value_and_grad(loss_fn), params, jax.tree.map(lambda x: x[0], parts)
  )
  zero = jax.tree.map(
    lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
    shapes,
  )
  return lax.scan(add, zero, parts)[0]
