"""How much each head, channel and layer matters, in float32 or wider.

Scores are `{'heads': [L, N], 'mlp': [L, F], 'layers': [L]}`; larger is more
important. Most metrics of neurons follow the descriptions of Ma et al. (2024);
the exact forms are ours, since the paper's code was never published. No
gradient flows through them.

Metrics that look at activations take what one forward pass over a few rows (the
probe) shows of each block: `observe` reduces it to a few vectors a layer.

A score may be 0, infinite or NaN: weights overflow, a layer may be silent. One
that is not finite means "keep this neuron" (`selection.keep`), and must
not spoil what is said of its neighbours: wherever scores are summed, they are
summed over those that are finite, and a sum of 0 divides nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.tree import PyTree

Scores = dict[str, jax.Array]
Units = Mapping[str, Mapping[str, tuple[int, ...]]]
Block = Mapping[str, Mapping[str, jax.Array]]

_BY_ACTIVATIONS = ('wanda', 'wanda_out', 'maxip', 'maxip_mean', 'maxip_out')
# These look at gradients too: `ops.tap` sums up what they need.
BY_GRADIENTS = ('taylor', 'sensitivity')
METRICS = ('uniform', 'magnitude', *_BY_ACTIVATIONS, 'taylor')


def needs_probe(metric: str) -> bool:
  """Whether the metric looks at activations."""
  return metric in (*_BY_ACTIVATIONS, *BY_GRADIENTS, *OF_LAYERS)


def observe(metric: str, block: Block, *, balance: bool = False) -> Any:
  """What a metric needs to know of one block's forward pass.

  Args:
    metric: one of `METRICS`.
    block: 'attention': 'input' [B, T, D], 'query' [B, T, N, H], 'key' and
      'value' [B, T, K, H] before the rotation, 'hidden' [B, T, N, H], what
      each head has mixed; 'mlp': 'input' [B, T, D] and 'hidden' [B, T, F].
    balance: see `scores`.

  Returns:
    `{'heads': x, 'mlp': y}`, means over the tokens of the probe: of squared
    inputs for wanda, of inputs for maxip_mean, [D] both. Else [N] and [F]: for
    wanda_out the root mean square of the hidden values; for maxip and maxip_out
    responses, `|silu(x g) (x u)|` of a channel, and of a head the root mean
    square of its query (and its own key and value) at a position.
  """
  flat = {
    unit: {name: _wide(x).reshape(-1, *x.shape[2:]) for name, x in part.items()}
    for unit, part in (('heads', block['attention']), ('mlp', block['mlp']))
  }
  if metric in ('wanda', 'maxip_mean'):
    power = 2 if metric == 'wanda' else 1
    return {u: jnp.mean(x['input'] ** power, axis=0) for u, x in flat.items()}
  hidden_XNH, hidden_XF = flat['heads']['hidden'], flat['mlp']['hidden']
  if metric == 'wanda_out':
    return {
      'heads': jnp.sqrt(jnp.mean(jnp.square(hidden_XNH), axis=(0, 2))),
      'mlp': jnp.sqrt(jnp.mean(jnp.square(hidden_XF), axis=0)),
    }
  return {
    'heads': _head_response(flat['heads'], balance),
    'mlp': jnp.mean(jnp.abs(hidden_XF), axis=0),
  }


def influence(block: Block) -> jax.Array:
  """How far a block turns the residual stream (Men et al., 2024).

  One minus the cosine between what goes into a block and what comes out, both
  'stream' [B, T, D] of it, the mean over the tokens of the probe.
  """
  before, after = (_wide(block['stream'][n]) for n in ('input', 'output'))
  product = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
  product = jnp.maximum(product, 1e-30)
  return jnp.mean(1 - jnp.sum(before * after, axis=-1) / product)


# Metrics of layers that look at activations: what each makes of a block, as of
# `observe` and `influence`, is a number.
OF_LAYERS: dict[str, Callable[[Block], jax.Array]] = {'influence': influence}
LAYER_METRICS = ('uniform', *OF_LAYERS, 'sensitivity', 'cyclic')


def in_turn(
  scale_L: jax.Array, count_L: jax.Array, turn: jax.Array | int
) -> jax.Array:
  """Scores by which layers take part one after another, in each run of layers.

  Those of `scale_L` 0 always do; the turn goes round the others. `count_L` is
  as of `selection.keep_layers`.
  """
  (kept_L, run_L), may_rest_L = count_L, scale_L > 0
  beside_LL = run_L[:, None] == run_L[None]
  others_L = jnp.sum(beside_LL & may_rest_L[None], axis=-1)
  share_L = kept_L - jnp.sum(beside_LL & ~may_rest_L[None], axis=-1)
  number_L = jnp.sum(jnp.tril(beside_LL & may_rest_L[None], -1), axis=-1)
  place_L = (number_L - turn * share_L) % jnp.maximum(others_L, 1)
  return jnp.where(place_L < share_L, jnp.inf, 1.0)


def observe_means(block: Block) -> Scores:
  """Mean hidden values over the probe: 'heads' [N, H] and 'mlp' [F]."""
  return {
    'heads': jnp.mean(_wide(block['attention']['hidden']), axis=(0, 1)),
    'mlp': jnp.mean(_wide(block['mlp']['hidden']), axis=(0, 1)),
  }


def _head_response(part, balance):
  names = ['query']
  if part['key'].shape[1] == part['query'].shape[1]:
    names += ['key', 'value']
  square_XN, columns = 0.0, 0
  for name in names:
    own_XN = jnp.sum(jnp.square(part[name]), axis=-1)
    square_XN += _balanced(own_XN, axis=None) if balance else own_XN
    columns += part[name].shape[-1]
  return jnp.mean(jnp.sqrt(square_XN / columns), axis=0)


def scores(
  metric: str,
  params: PyTree,
  units: Units,
  seen: Mapping[str, jax.Array] | None = None,
  *,
  balance: bool = False,
) -> Scores:
  """Scores of every unit by the named metric.

  Args:
    metric: 'uniform': all alike. 'magnitude': L2 norm of all weights of the
      neuron. 'wanda': root of the sum of squared inputs times squared weights,
      over the matrices that read. 'wanda_out': root mean square of the hidden
      value times the norm of the weights that write. 'maxip': mean response.
      'maxip_mean': response to the mean input, summed over a channel's
      matrices, averaged over a head's columns. 'maxip_out': maxip times the
      norm of the weights that write. 'taylor': what the loss would change by
      without the unit, to first order, at a token: |hidden value x gradient|.
    params: dense.
    units: of `tree.neuron_units`.
    seen: of `observe` ('taylor': of `ops.tap`), stacked over layers; not for
      the first two.
    balance: divides what each matrix contributes by its mean over the layer's
      neurons, so that matrices of another scale count alike.
  """
  params, seen = jax.lax.stop_gradient((params, seen))
  leaves = tree.flatten(params)

  def add(parts):
    return sum(map(_balanced, parts)) if balance else sum(parts)

  result = {}
  for unit, members in units.items():
    weights = {path: _wide(leaves[path]) for path in members}
    reads = [
      w for path, w in weights.items() if tree.READS.get(path) == 'embed'
    ]
    if metric in ('uniform', 'magnitude'):
      parts = [
        _sum_others(jnp.square(w), members[path]) for path, w in weights.items()
      ]
      score = jnp.sqrt(add(parts))
      result[unit] = score if metric == 'magnitude' else jnp.ones_like(score)
    elif metric == 'wanda':
      parts = [_weigh(jnp.square(w), seen[unit]) for w in reads]
      result[unit] = jnp.sqrt(add(parts))
    elif metric == 'maxip_mean':
      parts = [_weigh(w, seen[unit]) for w in reads]
      columns = sum(w.shape[2] for w in reads) if unit == 'heads' else 1
      result[unit] = add(parts) / columns
    else:
      result[unit] = _wide(seen[unit])
      if metric.endswith('_out'):
        writes = weights[tree.WRITES[unit]]
        result[unit] *= jnp.sqrt(_sum_others(jnp.square(writes), (0, 1)))
  return result


def _sum_others(x, axes):
  """Sums over every axis that does not number neurons."""
  return jnp.sum(x, axis=tuple(a for a in range(x.ndim) if a not in axes))


def _weigh(w, x_LD):
  """`sum_c |x w_c|` over the columns c of a neuron: [L, R]."""
  return _sum_others(jnp.abs(jnp.einsum('L...D,LD->L...', w, x_LD)), (0, 1))


def _balanced(x, axis=-1):
  """Over its mean; a matrix of zeros tells no neuron from another."""
  finite = jnp.where(jnp.isfinite(x), x, 0.0)
  mean = jnp.mean(finite, axis, keepdims=True)
  return x / jnp.where(mean > 0, mean, 1.0)


def _relative(score_LR):
  """Scores over the layer's largest, so that sums and squares stay finite.

  Those that are not finite are 0.
  """
  finite_LR = jnp.where(jnp.isfinite(score_LR), score_LR, 0.0)
  most_L1 = jnp.max(finite_LR, axis=-1, keepdims=True)
  most_L1 = jnp.minimum(most_L1, 1e37)  # one over it is no subnormal number
  return finite_LR / jnp.where(most_L1 > 0, most_L1, 1.0)


def entropy(score_LR: jax.Array) -> jax.Array:
  """How evenly importance is spread, from 0 (one neuron) to 1 (all alike).

  Entropy of the finite scores of a layer, taken as shares of their sum, over
  the logarithm of the number of neurons; the mean over layers. A layer without
  a score above 0 counts 0.
  """
  score_LR = _relative(score_LR)
  total_L1 = jnp.maximum(jnp.sum(score_LR, axis=-1, keepdims=True), 1.0)
  terms_LR = jax.scipy.special.entr(score_LR / total_L1)
  most = jnp.log(max(2, score_LR.shape[-1]))
  return jnp.mean(jnp.sum(terms_LR, axis=-1)) / most


def energy_scale(score_LR: jax.Array, kept_LR: jax.Array) -> jax.Array:
  """What a layer's output is scaled by, for the energy that is left out: [L].

  One over the root of the share of the squared finite scores that the neurons
  that take part have. Where they have none of it, the scores say nothing of
  them, and they were as good as drawn by lot: the scale is that of 'inverse',
  all neurons over those kept, which is unbiased for a random choice.
  """
  square_LR = jnp.square(_relative(score_LR))
  kept_L = jnp.sum(jnp.where(kept_LR, square_LR, 0), axis=-1)
  share_L = kept_L / jnp.maximum(jnp.sum(square_LR, axis=-1), 1.0)
  inverse_L = 1 / jnp.mean(kept_LR, axis=-1)
  is_known_L = share_L > 0
  root_L = jnp.sqrt(jnp.where(is_known_L, share_L, 1.0))
  return jnp.where(is_known_L, 1 / root_L, inverse_L)


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
