"""The two halves of a transformer block, as Linen modules.

Each half is a plain function of its input and its weights, so that the same
lines compute the neurons that take part and, where asked, those that rest.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from satjax.config.groups import ModelConfig
from satjax.model import attention, ops

Weights = Mapping[str, jax.Array]

# What `model.remat` 'minimal' keeps for the backward pass: what matmuls gave.
# The last one of a block is not among them, since nothing needs it again.
KEPT = ('projection', attention.NAME)


def _initializer(fan_in: int, depth: int = 1) -> nn.initializers.Initializer:
  """Normal with variance 1 / (fan_in depth).

  The branches that write to the residual stream pass `depth` = 2 layers, so
  that its variance does not grow with the number of layers (Radford et al.,
  2019).
  """
  return nn.initializers.normal((fan_in * depth) ** -0.5)


def attend(x_BTD, weights, angles, segments_BT, config):
  """Causal self-attention, and what a probe may observe of it."""
  w = {name: leaf.astype(x_BTD.dtype) for name, leaf in weights.items()}
  query_BTNH, key_BTKH, value_BTKH = project_heads(x_BTD, w, config.norm_eps)
  mixed_BTNH = attention.attention(
    ops.apply_rope(query_BTNH, angles),
    ops.apply_rope(key_BTKH, angles),
    value_BTKH,
    segments_BT,
    config.sliding_window,
    config.attention,
  )
  seen = {
    'input': x_BTD,
    'query': query_BTNH,
    'key': key_BTKH,
    'value': value_BTKH,
    'hidden': mixed_BTNH,
  }
  y_BTD = ops.project_out(mixed_BTNH, w['output'])
  return checkpoint_name(y_BTD, 'projection'), seen


def project_heads(x_BTD, w, norm_eps):
  """Queries, keys and values, `[B, T, heads, H]`, before the rotation."""

  def project(name):
    y_BTNH = _project(x_BTD, w[name])
    if f'{name}_bias' in w:
      y_BTNH += w[f'{name}_bias']
    if f'{name}_norm' in w:
      y_BTNH = ops.rms_norm(y_BTNH, w[f'{name}_norm'], norm_eps)
    return y_BTNH

  return project('query'), project('key'), project('value')


def _project(x_BTD, w_FD):
  return checkpoint_name(ops.project_in(x_BTD, w_FD), 'projection')


def transform(x_BTD, weights):
  """Gated MLP (SwiGLU), and what a probe may observe of it."""
  w = {name: leaf.astype(x_BTD.dtype) for name, leaf in weights.items()}
  hidden_BTF = ops.swiglu(_project(x_BTD, w['gate']), _project(x_BTD, w['up']))
  seen = {'input': x_BTD, 'hidden': hidden_BTF}
  return ops.project_out(hidden_BTF, w['down']), seen


def complete(
  y_BTD: jax.Array,
  x_BTD: jax.Array,
  weights: Weights,
  rest: Weights | None,
  branch: Callable[[jax.Array, Weights], tuple[jax.Array, Any]],
) -> jax.Array:
  """Adds what the neurons that rest contribute to a branch, without gradient.

  Args:
    y_BTD: output of the neurons that take part.
    x_BTD: input of the branch.
    weights: of the neurons that take part.
    rest: nothing, or any of 'scale' [], a factor on `y`; 'offset' [D], a
      constant; and the resting rows of the weights, which compute exactly what
      is missing. Matrices that are not cut are those of `weights`.
    branch: input and weights to output.
  """
  rest = dict(rest or {})
  if 'scale' in rest:
    y_BTD *= rest.pop('scale').astype(y_BTD.dtype)
  if 'offset' in rest:
    y_BTD += rest.pop('offset').astype(y_BTD.dtype)
  if rest:
    whole = jax.lax.stop_gradient({**weights, **rest})
    y_BTD += branch(jax.lax.stop_gradient(x_BTD), whole)[0]
  return y_BTD


class Attention(nn.Module):
  """Grouped-query attention; one head is contiguous rows of every matrix."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD, angles, segments_BT, rest):
    c = self.config
    inner = _initializer(c.embed_dim)
    outer = _initializer(c.num_heads * c.head_dim, depth=2 * c.num_layers)
    shape = (c.num_heads, c.head_dim, c.embed_dim)
    kv_shape = (c.num_kv_heads, c.head_dim, c.embed_dim)
    weights = {
      'query': self.param('query', inner, shape),
      'key': self.param('key', inner, kv_shape),
      'value': self.param('value', inner, kv_shape),
      'output': self.param('output', outer, shape),
    }
    zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
    if c.qkv_bias:
      for name in ('query', 'key', 'value'):
        bias = f'{name}_bias'
        weights[bias] = self.param(bias, zeros, weights[name].shape[:2])
    if c.qk_norm:
      for name in ('query_norm', 'key_norm'):
        weights[name] = self.param(name, ones, (c.head_dim,))

    def branch(x_BTD, weights):
      return attend(x_BTD, weights, angles, segments_BT, c)

    y_BTD, seen = branch(x_BTD, weights)
    return complete(y_BTD, x_BTD, weights, rest, branch), seen


class Mlp(nn.Module):
  """Gated MLP; one channel is a row of each matrix."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BTD, rest):
    c = self.config
    shape = (c.mlp_dim, c.embed_dim)
    inner = _initializer(c.embed_dim)
    outer = _initializer(c.mlp_dim, depth=2 * c.num_layers)
    weights = {
      'gate': self.param('gate', inner, shape),
      'up': self.param('up', inner, shape),
      'down': self.param('down', outer, shape),
    }
    y_BTD, seen = transform(x_BTD, weights)
    return complete(y_BTD, x_BTD, weights, rest, transform), seen


class Block(nn.Module):
  """Pre-norm residual block, in the form that `nn.scan` iterates."""

  config: ModelConfig
  observe: Callable[[dict[str, Any]], Any] | None

  @nn.compact
  def __call__(self, x_BTD, angles, segments_BT, rest, keys_B):
    c = self.config

    def drop(y_BTD, branch):
      if keys_B is None:
        return y_BTD
      own_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, branch)
      return ops.dropout(y_BTD, own_B, c.dropout)

    ones = nn.initializers.ones_init()
    rest = rest or {}
    attention_in_BTD = ops.rms_norm(
      x_BTD, self.param('attention_norm', ones, (c.embed_dim,)), c.norm_eps
    )
    y_BTD, mixing = Attention(c, name='attention')(
      attention_in_BTD, angles, segments_BT, rest.get('attention')
    )
    x_BTD += drop(y_BTD, 0)
    mlp_in_BTD = ops.rms_norm(
      x_BTD, self.param('mlp_norm', ones, (c.embed_dim,)), c.norm_eps
    )
    y_BTD, mlp = Mlp(c, name='mlp')(mlp_in_BTD, rest.get('mlp'))
    x_BTD += drop(y_BTD, 1)
    if self.observe is None:
      return x_BTD, None
    return x_BTD, self.observe({'attention': mixing, 'mlp': mlp})
