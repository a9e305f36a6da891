"""The two halves of a transformer block, as Linen modules."""

import flax.linen as nn

from satjax import config as config_lib
from satjax.model import ops


def _initializer(fan_in: int, depth: int = 1) -> nn.initializers.Initializer:
  """Normal with variance 1 / (fan_in depth).

  The branches that write to the residual stream pass `depth` = 2 layers, so
  that its variance does not grow with the number of layers (Radford et al.,
  2019).
  """
  return nn.initializers.normal((fan_in * depth) ** -0.5)


class Attention(nn.Module):
  """Grouped-query attention; one head is contiguous rows of every matrix."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(self, x_BTD, angles, segments_BT):
    c = self.config
    dtype = x_BTD.dtype
    inner = _initializer(c.embed_dim)
    outer = _initializer(c.num_heads * c.head_dim, depth=2 * c.num_layers)
    query_NHD = self.param(
      'query', inner, (c.num_heads, c.head_dim, c.embed_dim)
    )
    kv_shape = (c.num_kv_heads, c.head_dim, c.embed_dim)
    key_KHD = self.param('key', inner, kv_shape)
    value_KHD = self.param('value', inner, kv_shape)
    output_NHD = self.param(
      'output', outer, (c.num_heads, c.head_dim, c.embed_dim)
    )
    query_BTNH = ops.project_in(x_BTD, query_NHD.astype(dtype))
    key_BTKH = ops.project_in(x_BTD, key_KHD.astype(dtype))
    value_BTKH = ops.project_in(x_BTD, value_KHD.astype(dtype))
    mixed_BTNH = ops.attention(
      ops.apply_rope(query_BTNH, angles),
      ops.apply_rope(key_BTKH, angles),
      value_BTKH,
      segments_BT,
    )
    return ops.project_out(mixed_BTNH, output_NHD.astype(dtype))


class Mlp(nn.Module):
  """Gated MLP (SwiGLU); one channel is a row of each matrix."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(self, x_BTD):
    c = self.config
    shape = (c.mlp_dim, c.embed_dim)
    inner = _initializer(c.embed_dim)
    outer = _initializer(c.mlp_dim, depth=2 * c.num_layers)
    gate_FD = self.param('gate', inner, shape).astype(x_BTD.dtype)
    up_FD = self.param('up', inner, shape).astype(x_BTD.dtype)
    down_FD = self.param('down', outer, shape).astype(x_BTD.dtype)
    hidden_BTF = ops.swiglu(
      ops.project_in(x_BTD, gate_FD), ops.project_in(x_BTD, up_FD)
    )
    return ops.project_out(hidden_BTF, down_FD)


class Block(nn.Module):
  """Pre-norm residual block, in the form that `nn.scan` iterates."""

  config: config_lib.ModelConfig
  capture: bool

  @nn.compact
  def __call__(self, x_BTD, angles, segments_BT):
    c = self.config
    ones = nn.initializers.ones_init()
    attention_in_BTD = ops.rms_norm(
      x_BTD, self.param('attention_norm', ones, (c.embed_dim,)), c.norm_eps
    )
    x_BTD += Attention(c, name='attention')(
      attention_in_BTD, angles, segments_BT
    )
    mlp_in_BTD = ops.rms_norm(
      x_BTD, self.param('mlp_norm', ones, (c.embed_dim,)), c.norm_eps
    )
    x_BTD += Mlp(c, name='mlp')(mlp_in_BTD)
    inputs = {'attention': attention_in_BTD, 'mlp': mlp_in_BTD}
    return x_BTD, inputs if self.capture else None
