"""How much each attention head and MLP channel matters, in float32 or wider.

Scores are `{'heads': [L, N], 'mlp': [L, F]}`; larger is more important. The
metrics follow the descriptions of Ma et al. (2024); the exact forms are ours,
since the paper's code was never published. No gradient flows through them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.tree import PyTree

Scores = dict[str, jax.Array]
Units = Mapping[str, Mapping[str, tuple[int, ...]]]


def scores(
  metric: str,
  params: PyTree,
  units: Units,
  inputs: Mapping[str, jax.Array] | None = None,
) -> Scores:
  """Scores of every unit by the named metric.

  Args:
    metric: 'uniform', 'magnitude' or 'maxip'.
    params: the dense parameters.
    units: which leaves, and which of their axes, make up a neuron
      (`tree.neuron_units`).
    inputs: normed block inputs `[L, B, T, D]` of 'attention' and 'mlp', from a
      forward pass over a few rows; only `maxip` reads them.
  """
  params, inputs = jax.lax.stop_gradient((params, inputs))
  if metric == 'uniform':
    return uniform(params, units)
  if metric == 'magnitude':
    return magnitude(params, units)
  return maxip(params, units, inputs)


def needs_inputs(metric: str) -> bool:
  """Whether the metric looks at activations."""
  return metric == 'maxip'


def uniform(params: PyTree, units: Units) -> Scores:
  """Every neuron matters equally."""
  return {
    name: jnp.ones_like(score)
    for name, score in magnitude(params, units).items()
  }


def magnitude(params: PyTree, units: Units) -> Scores:
  """L2 norm of all weights of the neuron."""
  leaves = tree.flatten(params)
  result = {}
  for unit, members in units.items():
    total = 0.0
    for path, axes in members.items():
      leaf = _wide(leaves[path])
      others = tuple(a for a in range(leaf.ndim) if a not in axes)
      total += jnp.sum(jnp.square(leaf), axis=others)
    result[unit] = jnp.sqrt(total)
  return result


def maxip(
  params: PyTree, units: Units, inputs: Mapping[str, jax.Array]
) -> Scores:
  """Mean response of the neuron to the probe.

  A channel's response is `|silu(x g) (x u)|`; a head's is the root mean square
  of its query (and its own key and value) at a position.
  """
  blocks = params['blocks']
  result = {}
  if 'mlp' in units:
    mlp = blocks['mlp']
    result['mlp'] = jax.lax.map(
      lambda args: _channel_response(*args),
      (inputs['mlp'], mlp['gate'], mlp['up']),
    )
  if 'heads' in units:
    matrices = [
      _wide(leaf)
      for path, leaf in tree.flatten(params).items()
      if path in units['heads'] and not path.endswith('/output')
    ]
    result['heads'] = jax.lax.map(
      lambda args: _head_response(*args), (inputs['attention'], *matrices)
    )
  return result


def _channel_response(x_BTD, gate_FD, up_FD):
  x_XD = _wide(x_BTD).reshape(-1, x_BTD.shape[-1])
  gate_XF = jnp.einsum('XD,FD->XF', x_XD, _wide(gate_FD))
  up_XF = jnp.einsum('XD,FD->XF', x_XD, _wide(up_FD))
  return jnp.mean(jnp.abs(jax.nn.silu(gate_XF) * up_XF), axis=0)


def _head_response(x_BTD, *matrices_NHD):
  x_XD = _wide(x_BTD).reshape(-1, x_BTD.shape[-1])
  square_XN = sum(
    jnp.sum(jnp.square(jnp.einsum('XD,NHD->XNH', x_XD, w_NHD)), axis=-1)
    for w_NHD in matrices_NHD
  )
  columns = sum(w_NHD.shape[1] for w_NHD in matrices_NHD)
  return jnp.mean(jnp.sqrt(square_XN / columns), axis=0)


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
