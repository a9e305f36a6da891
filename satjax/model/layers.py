"""The two halves of a transformer block, as Linen modules.

Each half is a plain function of its input and its weights, so that the same
lines compute the neurons that take part and, where asked, the parked ones.
"""

from collections.abc import Callable, Mapping
import math
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from satjax import tree
from satjax.config.groups import ModelConfig
from satjax.model import attention, ops

Weights = Mapping[str, jax.Array]
Mix = Callable[..., tuple[jax.Array, Any]]  # such as `mix_rows`

# What `model.remat` 'minimal' keeps for the backward pass: what matmuls gave.
# The last one of a block is not among them, since nothing needs it again.
KEPT = ('projection', attention.NAME)


def mix_rows(config, qkv, segments_BT, layer, cache):
  """How heads look at positions: at the past of their document.

  All that a cache of keys and values changes (`cached`).

  From rotated queries `[B, T, N, H]` and keys, and values `[B, T, K, H]` to
  mixed values `[B, T, N, H]`, and the cache of the stack with what is new. The
  segments are `decoder.run`'s context; without a cache, `layer` (its number in
  the stack) and `cache` are None.
  """
  del layer
  window, kind = config.sliding_window, config.attention
  return attention.attention(qkv, segments_BT, window, kind), cache


def attend(x_BTD, weights, angles, norm_eps, mix):
  """Self-attention, and what may be observed of it.

  `mix` goes from rotated queries and keys, and values, to what `mix_rows`
  returns.
  """
  w = {name: leaf.astype(x_BTD.dtype) for name, leaf in weights.items()}

  def project(name):  # to heads, before the rotation
    y_BTNH = _project(x_BTD, w[name])
    if f'{name}_bias' in w:
      y_BTNH += w[f'{name}_bias']
    if f'{name}_norm' in w:
      y_BTNH = ops.rms_norm(y_BTNH, w[f'{name}_norm'], norm_eps)
    return y_BTNH

  query_BTNH, key_BTKH, value_BTKH = map(project, ('query', 'key', 'value'))
  rotated_BTKH = ops.apply_rope(key_BTKH, angles)
  mixed_BTNH, cache = mix(
    ops.apply_rope(query_BTNH, angles), rotated_BTKH, value_BTKH
  )
  if 'tap' in w:
    mixed_BTNH = ops.tap(mixed_BTNH, None, w['tap'])
  seen = {
    'input': x_BTD,
    'query': query_BTNH,
    'key': key_BTKH,
    'rotated_key': rotated_BTKH,
    'value': value_BTKH,
    'hidden': mixed_BTNH,
    'cache': cache,
  }
  y_BTD = ops.project_out(mixed_BTNH, w['output'])
  return checkpoint_name(y_BTD, 'projection'), seen


def _project(x_BTD, w_FD):
  return checkpoint_name(ops.project_in(x_BTD, w_FD), 'projection')


def transform(x_BTD, weights):
  """Gated MLP (SwiGLU), and what a probe may observe of it."""
  w = {name: leaf.astype(x_BTD.dtype) for name, leaf in weights.items()}
  hidden_BTF = ops.swiglu(_project(x_BTD, w['gate']), _project(x_BTD, w['up']))
  if 'tap' in w:
    hidden_BTF = ops.tap(hidden_BTF, None, w['tap'])
  seen = {'input': x_BTD, 'hidden': hidden_BTF}
  return ops.project_out(hidden_BTF, w['down']), seen


def complete(
  y_BTD: jax.Array,
  x_BTD: jax.Array,
  weights: Weights,
  extra: Weights | None,
  branch: Callable[[jax.Array, Weights], tuple[jax.Array, Any]],
) -> jax.Array:
  """Adds what parked neurons contribute to a branch.

  Args:
    y_BTD: output of the neurons that take part.
    x_BTD: input of the branch.
    weights: of the neurons that take part.
    extra: nothing, or any of 'scale' [], a factor on `y`; 'offset' [D], a
      constant; and parked rows of the weights, which compute exactly what is
      missing: 'exact' ones without any gradient, 'through' ones without one of
      their own. Matrices that are not cut are those of `weights`.
    branch: input and weights to output.
  """
  extra = extra or {}
  if 'scale' in extra:
    y_BTD *= extra['scale'].astype(y_BTD.dtype)
  if 'offset' in extra:
    y_BTD += extra['offset'].astype(y_BTD.dtype)
  if 'exact' in extra:
    x_and_weights = x_BTD, {**weights, **extra['exact']}
    y_BTD += branch(*jax.lax.stop_gradient(x_and_weights))[0]
  if 'through' in extra:
    parked = jax.lax.stop_gradient(extra['through'])
    y_BTD += branch(x_BTD, {**weights, **parked})[0]
  return y_BTD


class HalfBlock(nn.Module):
  """The parameters 'attention' or 'mlp' of a block, as `tree.AXES` has them.

  Matrices are normal with variance 1 / fan-in. Those that write to the residual
  stream share it among the 2 branches of all layers, so that the variance of
  the stream does not grow with their number (Radford et al., 2019).
  """

  config: ModelConfig

  @nn.compact
  def __call__(self) -> Weights:
    c, weights = self.config, {}
    for path, (_, *shape) in tree.shapes(c).items():
      folder, _, name = path.rpartition('/')
      if folder != f'blocks/{self.name}':
        continue
      fan_in = c.embed_dim
      if path in tree.WRITES.values():
        fan_in = math.prod(shape[:-1]) * 2 * c.num_layers
      init = nn.initializers.normal(fan_in**-0.5)
      if path not in tree.READS:  # a norm or a bias
        init = nn.initializers.constant(float(name.endswith('_norm')))
      weights[name] = self.param(name, init, tuple(shape))
    return weights


class Block(nn.Module):
  """Pre-norm residual block, in the form that `nn.scan` iterates."""

  config: ModelConfig
  mix: Mix
  observe: Callable[[dict[str, Any]], Any] | None

  @nn.compact
  def __call__(self, carry, shared, own):
    c = self.config
    x_BTD, cache = carry
    angles, context = shared
    extra, keys_B, layer = own
    extra, stream_BTD = extra or {}, x_BTD

    def mix(*qkv):
      return self.mix(c, qkv, context, layer, cache)

    def attention_branch(x_BTD, weights):
      return attend(x_BTD, weights, angles, c.norm_eps, mix)

    seen = {}
    branches = ('attention', attention_branch), ('mlp', transform)
    for number, (name, branch) in enumerate(branches):
      ones = nn.initializers.ones_init()
      gain_D = self.param(f'{name}_norm', ones, (c.embed_dim,))
      in_BTD = ops.rms_norm(x_BTD, gain_D, c.norm_eps)
      weights, added = HalfBlock(c, name=name)(), extra.get(name, {})
      taps = {n: x for n, x in added.items() if n == 'tap'}
      y_BTD, seen[name] = branch(in_BTD, weights | taps)
      y_BTD = complete(y_BTD, in_BTD, weights, added, branch)
      if keys_B is not None:
        own_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
        y_BTD = ops.dropout(y_BTD, own_B, c.dropout)
      x_BTD += y_BTD
    seen['stream'] = {'input': stream_BTD, 'output': x_BTD}
    if 'tap' in extra:
      x_BTD = ops.tap(x_BTD, x_BTD - stream_BTD, extra['tap'])
    carry = x_BTD, seen['attention'].pop('cache')
    return carry, self.observe and self.observe(seen)
