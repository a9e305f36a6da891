"""Losses of sub-networks of a model that was not trained for them.

What is left out writes nothing to the residual stream: a mask is data, and one
program has the loss of every choice.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.config.groups import AXES, ModelConfig
from satjax.model import decoder
from satjax.sparsity import lors, selection
from satjax.train import loss as loss_lib
from satjax.train import refresh
from satjax.tree import PyTree

# By axis, the matrices through which its units write.
_WRITES = {axis: {path: (0, 1)} for axis, path in tree.WRITES.items()}
_WRITES['layers'] = {path: (0,) for path in tree.WRITES.values()}
PASS = 3  # forward passes that one forward and one backward pass cost
_CHUNK = 128  # positions whose logits are held at once
# How the loss follows what a unit of an axis moves the stream by (`Prober.
# estimate`): a few rows of a layer are a small change, a layer is a large one.
_POWER = {'heads': 2, 'mlp': 2, 'layers': 1}


class Prober:
  """A model, rows to score its units on, and others that losses are of."""

  def __init__(
    self,
    model: ModelConfig,
    params: PyTree,
    look: Mapping[str, Any],
    test: Mapping[str, Any],
    advance: Callable[[float], Any] = lambda done: None,
  ):
    """Each of the two batches is as of `decoder.apply`, with targets.

    `advance` is told of passes: a forward pass is 1.
    """
    self.model = model
    self._params = jax.tree.map(jnp.asarray, params)
    self._look, self._test = look, test
    self._advance = advance
    self._scores: dict[tuple[str, str], jax.Array] = {}
    self._losses: dict[bytes, float] = {}

  def measure(self, metrics: Mapping[str, str]) -> None:
    """Scores the units of some axes, each by the metric named."""
    found = refresh.score(self.model, self._params, self._look, metrics)
    for axis, score in jax.block_until_ready(found).items():
      self._scores[axis, metrics[axis]] = score
    self._advance(1)

  def scores(self, axis: str, metric: str) -> np.ndarray:
    """Of the units of an axis: [L, R], or [L] of layers."""
    if (axis, metric) not in self._scores:
      self.measure({axis: metric})
    return np.asarray(self._scores[axis, metric])

  def keep(
    self, axis: str, metric: str, count: int | Sequence[int]
  ) -> np.ndarray:
    """The mask of those that matter most, as a refresh selects with top_k.

    `count` of each layer, one for all or by layer; or so many layers.
    """
    score, layers = self.scores(axis, metric), self.model.num_layers
    counts = np.broadcast_to(np.asarray(count, np.int32), layers)
    if axis == 'layers':
      counts = np.stack([counts, np.zeros_like(counts)])
    found = selection.select(
      {axis: score},
      {axis: counts},
      jax.random.key(0),
      method='top_k',
      temperature=1.0,
      kv_heads=self.model.num_kv_heads,
    )
    return np.asarray(found[axis])

  def loss(self, kept: Mapping[str, np.ndarray] | None = None) -> float:
    """Nats a token where only `kept` units of some axes take part."""
    model, layers = self.model, self.model.num_layers
    masks = {
      'heads': np.ones((layers, model.num_heads), bool),
      'mlp': np.ones((layers, model.mlp_dim), bool),
      'layers': np.ones(layers, bool),
      **(kept or {}),
    }
    key = b''.join(masks[axis].tobytes() for axis in AXES)
    if key not in self._losses:
      found = _loss(self._params, masks, self._test, model=self.model)
      self._losses[key] = float(found)
    self._advance(1)
    return self._losses[key]

  @functools.cached_property
  def _passed(self) -> Any:
    """What one forward and one backward pass show: see `_pass`."""
    found = _pass(self._params, self._look, model=self.model)
    self._advance(PASS)
    return jax.block_until_ready(found)

  def estimate(self, axis: str, kept: np.ndarray | None = None) -> np.ndarray:
    """How much each layer by itself would matter, if it kept these units: [L].

    The norm of what is missing of the layer's output times that of the gradient
    which reaches it, at a token; its mean, or that of its square. In no unit.
    `kept` is as of `keep`; None: the layer is left out.
    """
    hidden, gradient = self._passed
    weights = None
    if axis != 'layers':
      weights = tree.flatten(self._params)[tree.WRITES[axis]]
    return np.asarray(
      _estimate(hidden[axis], weights, kept, gradient[axis], _POWER[axis])
    )


@functools.partial(jax.jit, static_argnames='model')
def _loss(params, kept, batch, *, model):
  masks = lors.masks(params, _WRITES, kept)
  total = loss_lib.next_token_loss(
    model, lors.apply_mask(params, masks), batch, chunk=_CHUNK
  )
  return total / loss_lib.num_counted(batch)


@functools.partial(jax.jit, static_argnames='model')
def _pass(params, batch, *, model):
  """Hidden values and outputs, and the gradients that reach these.

  By axis: [L, B, T, R, ...] of heads and channels, and what a layer adds to the
  stream, [L, B, T, D], as are all gradients.
  """
  rows, length = batch['tokens'].shape
  shape = (model.num_layers, rows, length, model.embed_dim)
  nothing = {
    axis: jnp.zeros(shape, params['final_norm'].dtype) for axis in tree.WRITES
  }

  def reduce(block):
    stream = block['stream']
    return {
      'heads': block['attention']['hidden'],
      'mlp': block['mlp']['hidden'],
      'layers': stream['output'] - stream['input'],
    }

  def loss(added):
    extra = {
      tree.WRITES[axis].split('/')[1]: {'offset': x}
      for axis, x in added.items()
    }
    out, seen, _ = decoder.run(model, params, batch, extra, observe=reduce)
    total = loss_lib.chunked_cross_entropy_sum(*out, batch, _CHUNK)
    return total, seen[0]

  gradient, hidden = jax.grad(loss, has_aux=True)(nothing)
  return hidden, gradient | {'layers': gradient['mlp']}


@functools.partial(jax.jit, static_argnames='power')
def _estimate(hidden, weights, kept, gradient, power):
  if weights is not None:
    kept = kept.reshape(len(kept), 1, 1, -1, *[1] * (hidden.ndim - 4))
    gone = jnp.where(kept, 0, hidden).reshape(*hidden.shape[:3], -1)
    rows = weights.reshape(len(weights), -1, weights.shape[-1])
    hidden = jnp.einsum('LBTR,LRD->LBTD', gone, rows)
  wide = (x.astype(jnp.float32) for x in (hidden, gradient))
  norms = (jnp.linalg.norm(x, axis=-1) for x in wide)
  product = functools.reduce(jnp.multiply, norms)
  return jnp.mean(product**power, axis=(1, 2))
