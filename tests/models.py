"""Small models for tests: one place names every key of `model` and `data`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.config.data import DataConfig
from satjax.config.groups import ModelConfig
from satjax.model import decoder

_DEFAULTS = {
  'num_layers': 2,
  'embed_dim': 8,
  'num_heads': 4,
  'num_kv_heads': 2,
  'head_dim': 4,
  'mlp_dim': 6,
  'vocab_size': 16,
  'vocab_multiple': 0,
  'tied': False,
  'rope_theta': 100.0,
  'rope_scaling': (),
  'sliding_window': 0,
  'norm_eps': 1e-5,
  'qkv_bias': False,
  'qk_norm': False,
  'dropout': 0.0,
  'dtype': 'float32',
  'attention': 'auto',
  'scan': True,
  'remat': 'none',
  'init_from': '',
}


def make(**changes: Any) -> ModelConfig:
  """The small model of the tests, with some keys changed."""
  return ModelConfig(**(_DEFAULTS | changes))


_DATA = {
  'train': ('stdlib:docs',),
  'eval': (),
  'columns': (),
  'template': 'bare',
  'reasoning': 'template',
  'unlearned': 'keep',
  'tokenizer': 'byte',
  'seq_len': 8,
  'packing': 'concat_then_split',
  'too_long': 'cut',
  'attend': 'document',
  'held_out': 0.2,
  'test': 0.0,
  'seed': 0,
}


def make_data(**changes: Any) -> DataConfig:
  """Settings of the data, with some keys changed."""
  return DataConfig(**(_DATA | changes))


@functools.cache
def make_params(model: ModelConfig) -> tree.PyTree:
  """Weights that are large enough for every part to matter."""
  abstract = jax.eval_shape(
    functools.partial(decoder.init_params, model), jax.random.key(0)
  )
  random = np.random.default_rng(0)

  def draw(path, x):
    noise = random.normal(size=x.shape, scale=0.4)
    return jnp.asarray(noise + path.endswith('_norm'), jnp.float32)

  return tree.map_with_path(draw, abstract)
