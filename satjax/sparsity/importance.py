"""How much each attention head and MLP channel matters, in float32 or wider.

Scores are `{'heads': [L, N], 'mlp': [L, F]}`; larger is more important. The
metrics follow the descriptions of Ma et al. (2024); the exact forms are ours,
since the paper's code was never published. No gradient flows through them.

Metrics that look at activations take what one forward pass over a few rows (the
probe) shows of each block: `observe` reduces it to a few vectors a layer.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.tree import PyTree

Scores = dict[str, jax.Array]
Units = Mapping[str, Mapping[str, tuple[int, ...]]]
Block = Mapping[str, Mapping[str, jax.Array]]

METRICS = (
  'uniform',
  'magnitude',
  'wanda',
  'wanda_out',
  'maxip',
  'maxip_mean',
  'maxip_out',
)


def needs_probe(metric: str) -> bool:
  """Whether the metric looks at activations."""
  return metric not in ('uniform', 'magnitude')


def observe(metric: str, block: Block, *, balance: bool = False) -> Any:
  """What a metric needs to know of one block's forward pass.

  Args:
    metric: one of `METRICS`.
    block: 'attention': 'input' [B, T, D], 'query' [B, T, N, H], 'key' and
      'value' [B, T, K, H] before the rotation, 'hidden' [B, T, N, H], what
      each head has mixed; 'mlp': 'input' [B, T, D] and 'hidden' [B, T, F].
    balance: see `scores`.

  Returns:
    `{'heads': x, 'mlp': y}`, means over the tokens of the probe:
      wanda: squared inputs, [D] both.
      wanda_out: root mean square of the hidden values, [N] and [F].
      maxip, maxip_out: responses, [N] and [F]. A channel's is
        `|silu(x g) (x u)|`; a head's is the root mean square of its query (and
        its own key and value) at a position.
      maxip_mean: inputs, [D] both.
  """
  flat = {
    unit: {name: _wide(x).reshape(-1, *x.shape[2:]) for name, x in part.items()}
    for unit, part in (('heads', block['attention']), ('mlp', block['mlp']))
  }
  if metric == 'wanda':
    return {
      unit: jnp.mean(jnp.square(part['input']), axis=0)
      for unit, part in flat.items()
    }
  if metric == 'maxip_mean':
    return {unit: jnp.mean(x['input'], axis=0) for unit, x in flat.items()}
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
    square_XN += own_XN / jnp.mean(own_XN) if balance else own_XN
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
      norm of the weights that write.
    params: the dense parameters.
    units: which leaves, and which of their axes, make up a neuron
      (`tree.neuron_units`).
    seen: of `observe`, stacked over layers; not for the first two.
    balance: divides what each matrix contributes by its mean over the layer's
      neurons, so that matrices of another scale count alike.
  """
  params, seen = jax.lax.stop_gradient((params, seen))
  leaves = tree.flatten(params)
  result = {}
  for unit, members in units.items():
    weights = {path: _wide(leaves[path]) for path in members}
    reads, writes = _by_role(weights)
    if metric in ('uniform', 'magnitude'):
      parts = [
        _sum_others(jnp.square(w), members[path]) for path, w in weights.items()
      ]
      score = jnp.sqrt(_add(parts, balance))
      result[unit] = score if metric == 'magnitude' else jnp.ones_like(score)
    elif metric == 'wanda':
      parts = [_weigh(jnp.square(w), seen[unit]) for w in reads]
      result[unit] = jnp.sqrt(_add(parts, balance))
    elif metric == 'maxip_mean':
      parts = [_respond(w, seen[unit]) for w in reads]
      total = _add(parts, balance)
      columns = sum(w.shape[2] for w in reads) if unit == 'heads' else 1
      result[unit] = total / columns
    else:
      result[unit] = _wide(seen[unit])
      if metric.endswith('_out'):
        axes = tuple(range(2, writes.ndim))
        result[unit] *= jnp.sqrt(jnp.sum(jnp.square(writes), axis=axes))
  return result


def _by_role(weights):
  """The matrices that read the block's input, and the one that writes."""
  writing = ('/output', '/down')
  others = (*writing, '_bias')
  reads = [w for path, w in weights.items() if not path.endswith(others)]
  writes = [w for path, w in weights.items() if path.endswith(writing)]
  return reads, writes[0] if writes else None


def _sum_others(x, axes):
  """Sums over every axis that does not number neurons."""
  return jnp.sum(x, axis=tuple(a for a in range(x.ndim) if a not in axes))


def _weigh(square, mean_square_LD):
  """`sum_i a_i^2 w_i^2` over all columns of a neuron: [L, R]."""
  weighed = jnp.einsum('L...D,LD->L...', square, mean_square_LD)
  return jnp.sum(weighed, axis=tuple(range(2, weighed.ndim)))


def _respond(w, mean_LD):
  """`sum_c |x w_c|` over the columns c of a neuron: [L, R]."""
  response = jnp.abs(jnp.einsum('L...D,LD->L...', w, mean_LD))
  return jnp.sum(response, axis=tuple(range(2, response.ndim)))


def _add(parts, balance):
  if balance:
    parts = [x / jnp.mean(x, axis=-1, keepdims=True) for x in parts]
  return sum(parts)


def entropy(score_LR: jax.Array) -> jax.Array:
  """How evenly importance is spread, from 0 (one neuron) to 1 (all alike).

  Entropy of the finite scores of a layer, taken as shares of their sum, over
  the logarithm of the number of neurons; the mean over layers.
  """
  score = jnp.where(jnp.isfinite(score_LR), score_LR, 0.0)
  total = jnp.maximum(jnp.sum(score, axis=-1, keepdims=True), 1e-30)
  share = score / total
  terms = jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0.0)
  return jnp.mean(-jnp.sum(terms, axis=-1)) / jnp.log(max(2, score.shape[-1]))


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
