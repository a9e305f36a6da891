"""The decoder: embedding, a stack of blocks, norm, logits.

`apply` reads the number of layers, heads and channels off the parameter tree,
so that one function runs the dense model, any sub-network and any grown model.
"""

from collections.abc import Mapping
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from satjax import config as config_lib
from satjax import sharding
from satjax.model import layers, ops
from satjax.tree import PyTree


class Decoder(nn.Module):
  """tokens `[B, T]` -> logits `[B, T, V]` in float32, and block inputs."""

  config: config_lib.ModelConfig
  capture: bool = False

  @nn.compact
  def __call__(self, tokens_BT, positions_BT, segments_BT):
    c = self.config
    init = nn.initializers.normal(c.embed_dim**-0.5)
    embed_VD = self.param('embed', init, (c.vocab_size, c.embed_dim))
    x_BTD = jnp.take(embed_VD, tokens_BT, axis=0, mode='clip')
    x_BTD = sharding.constrain_batch(x_BTD.astype(c.dtype))
    angles = ops.rope_angles(positions_BT, c.head_dim, c.rope_theta)
    x_BTD, inputs = self._blocks()(x_BTD, angles, segments_BT)
    gain_D = self.param(
      'final_norm', nn.initializers.ones_init(), (c.embed_dim,)
    )
    x_BTD = ops.rms_norm(x_BTD, gain_D, c.norm_eps)
    unembed_VD = embed_VD
    if not c.tied:
      unembed_VD = self.param('unembed', init, (c.vocab_size, c.embed_dim))
    logits_BTV = ops.project_in(x_BTD, unembed_VD.astype(c.dtype))
    dtype = jnp.promote_types(c.dtype, jnp.float32)
    return logits_BTV.astype(dtype), inputs

  def _blocks(self):
    c = self.config
    block = layers.Block
    if c.remat == 'full':
      block = nn.remat(block, prevent_cse=not c.scan)
    stack = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=nn.broadcast,
      length=c.num_layers,
      unroll=1 if c.scan else c.num_layers,
    )
    return stack(c, self.capture, name='blocks')


def init_params(
  config: config_lib.ModelConfig, key: jax.Array
) -> dict[str, PyTree]:
  """Random float32 parameters, layers stacked on axis 0 (`tree.AXES`)."""
  tokens_BT = jnp.zeros((1, 2), jnp.int32)
  variables = Decoder(config).init(key, tokens_BT, tokens_BT, None)
  return variables['params']


def apply(
  config: config_lib.ModelConfig, params: PyTree, batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Logits of every position.

  Args:
    config: of the dense model; counts of layers, heads and channels are read
      off `params`.
    params: tree of `tree.AXES`, dense or a sub-network.
    batch: 'tokens' int32 [B, T]; optional 'positions' int32 [B, T] (default 0,
      1, 2...) and 'segments' int32 [B, T] (default: one document a row).

  Returns:
    float32 [B, T, V].
  """
  return _run(config, params, batch, capture=False)[0]


def block_inputs(
  config: config_lib.ModelConfig, params: PyTree, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Normed inputs `[L, B, T, D]` of every 'attention' and every 'mlp'."""
  return _run(config, params, batch, capture=True)[1]


def _run(config, params, batch, capture):
  tokens_BT = batch['tokens']
  positions_BT = batch.get('positions')
  if positions_BT is None:
    positions_BT = jnp.arange(tokens_BT.shape[1])[None]
  model = Decoder(fit(config, params), capture)
  return model.apply(
    {'params': params}, tokens_BT, positions_BT, batch.get('segments')
  )


def fit(
  config: config_lib.ModelConfig, params: PyTree
) -> config_lib.ModelConfig:
  """The configuration with the counts that `params` really has."""
  blocks = params['blocks']
  num_layers, num_heads = blocks['attention']['query'].shape[:2]
  return dataclasses.replace(
    config,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=blocks['attention']['key'].shape[1],
    mlp_dim=blocks['mlp']['gate'].shape[1],
  )
