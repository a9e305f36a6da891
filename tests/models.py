"""Small models for tests: one place names every key of `model`."""

from typing import Any

from satjax.config import ModelConfig

_DEFAULTS = {
  'num_layers': 2,
  'embed_dim': 8,
  'num_heads': 4,
  'num_kv_heads': 2,
  'head_dim': 4,
  'mlp_dim': 6,
  'vocab_size': 16,
  'tied': False,
  'rope_theta': 100.0,
  'rope_scaling': (),
  'norm_eps': 1e-5,
  'qkv_bias': False,
  'qk_norm': False,
  'dtype': 'float32',
  'scan': True,
  'remat': 'none',
  'init_from': '',
}


def make(**changes: Any) -> ModelConfig:
  """The small model of the tests, with some keys changed."""
  return ModelConfig(**(_DEFAULTS | changes))
