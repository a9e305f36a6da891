"""FLOPs in closed form: a multiply-add is 2, causal attention counts half.

Embedding look-ups, norms and the optimizer are not counted; the backward pass
is twice the forward pass. Only what is executed counts: omitted neurons earn no
credit.
"""

from satjax import config as config_lib


def forward_flops_per_token(
  model: config_lib.ModelConfig,
  seq_len: int,
  *,
  num_layers: int | None = None,
  num_heads: int | None = None,
  mlp_dim: int | None = None,
) -> float:
  """FLOPs of one token in the forward pass of rows of `seq_len` tokens.

  Args:
    model: the dense model.
    seq_len: tokens in a row.
    num_layers: layers that run; None: all.
    num_heads: query heads that run; None: all. Without grouped queries keys and
      values go with them.
    mlp_dim: channels that run; None: all.
  """
  layers = model.num_layers if num_layers is None else num_layers
  heads = model.num_heads if num_heads is None else num_heads
  channels = model.mlp_dim if mlp_dim is None else mlp_dim
  kv_heads = model.num_kv_heads
  if kv_heads == model.num_heads:
    kv_heads = heads
  dim = model.embed_dim
  linear = 4 * dim * model.head_dim * (heads + kv_heads)
  scores = 2 * heads * model.head_dim * seq_len
  mlp = 6 * dim * channels
  return layers * (linear + scores + mlp) + 2 * dim * model.vocab_size


def train_flops_per_token(
  model: config_lib.ModelConfig, seq_len: int, **counts: int | None
) -> float:
  """Forward and backward; arguments as `forward_flops_per_token`."""
  return 3 * forward_flops_per_token(model, seq_len, **counts)
