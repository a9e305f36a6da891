"""FLOPs in closed form: a multiply-add is 2, causal attention counts half.

Embedding look-ups, norms and the optimizer are not counted; the backward pass
is twice the forward pass. Only what is executed counts: omitted neurons earn no
credit.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

from satjax import tree
from satjax.config.groups import LORA_BLOCKS, LoraConfig, ModelConfig

# Dense bfloat16 FLOPs a second, from data sheets, by device kind.
PEAK = {
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5p': 459e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
}


@dataclasses.dataclass(frozen=True)
class Layer:
  """What takes part in one layer: query heads, key/value heads, channels."""

  heads: int
  kv_heads: int
  channels: int


def dense_layers(model: ModelConfig) -> tuple[Layer, ...]:
  """Every layer of a model, whole."""
  layer = Layer(model.num_heads, model.num_kv_heads, model.mlp_dim)
  return (layer,) * model.num_layers


def num_params(model: ModelConfig) -> int:
  """How many numbers the dense model holds."""
  return sum(map(math.prod, tree.shapes(model).values()))


def forward_flops_per_token(
  model: ModelConfig, seq_len: int, layers: Sequence[Layer] | None = None
) -> float:
  """FLOPs of one token in the forward pass of rows of `seq_len` tokens.

  `layers`: what takes part in each layer; None: everything.
  """
  layers = layers or dense_layers(model)
  return train_flops_per_token(
    model, seq_len, layers, passes=[1] * len(layers), head_passes=1
  )


def train_flops_per_token(
  model: ModelConfig,
  seq_len: int,
  layers: Sequence[Layer] | None = None,
  *,
  passes: Sequence[float] = (),
  omitted_passes: Mapping[str, float] | None = None,
  head_passes: float = 3,
  lora: LoraConfig | None = None,
) -> float:
  """FLOPs of one token, forward and backward.

  What trains takes three passes: forward, the gradient that goes through it,
  and that of its own weights. What stands still takes the first of them, or the
  first two. In between, a number stands for a share of steps.

  Args:
    model: the dense model.
    seq_len: tokens in a row.
    layers: as of `forward_flops_per_token`.
    passes: of each of these layers; (): three.
    omitted_passes: of what takes no part in them, by axis, 'heads' and 'mlp'.
    head_passes: of the output matrix.
    lora: adapters, if they train alone: matrices take two passes at most.
  """
  layers = layers or dense_layers(model)
  total = _passes(head_passes if lora is None else 2, *[_head_flops(model)] * 2)
  for layer, count in zip(layers, passes or [3] * len(layers)):
    own = count if lora is None else min(count, 2)
    whole = dense_layers(model)[0]
    for axis in ('heads', 'mlp'):
      part = _half_flops(model, seq_len, layer, axis)
      total += _passes(own, *part)
      if omitted := (omitted_passes or {}).get(axis):
        total += _passes(omitted, *_half_flops(model, seq_len, whole, axis))
        total -= _passes(omitted, *part)
    if lora is not None:
      total += _passes(count, *[_adapter_flops(model, layer, lora)] * 2)
  if lora is not None:
    total += 3 * _table_adapter_flops(model, lora)
  return total


def _passes(count, forward, linear):
  """So many passes of what multiplies `linear` of its FLOPs with weights."""
  through, own = (min(max(count - n, 0), 1) for n in (1, 2))
  first = min(count, 1) * forward
  return first + through * (2 * forward - linear) + own * linear


def map_flops(old: ModelConfig, new: ModelConfig) -> float:
  """FLOPs of one `learned.materialise`; its backward pass takes twice as many.

  Rows are mapped first, then columns, then layers.
  """
  total, after = 0.0, tree.shapes(new)
  for path, shape in tree.shapes(old).items():
    if path.endswith(('_bias', 'query_norm', 'key_norm')):
      continue  # too small to be counted
    first = path.startswith('blocks/')  # whether axis 0 has layers
    (layers, rows, width), (deep, tall, wide) = (
      (x[0] if first else 1, math.prod(x[first:-1]), x[-1])
      for x in (shape, after[path])
    )
    total += 2 * layers * rows * tall * width * (rows != tall)
    total += 2 * layers * tall * width * wide * (width != wide)
    total += 2 * layers * deep * tall * wide * (layers != deep)
  return total


def peak_flops(device_kind: str) -> float | None:
  """Data-sheet FLOPs a second of a device; None where unknown (CPUs)."""
  known = [name for name in PEAK if device_kind.startswith(name)]
  return PEAK[max(known, key=len)] if known else None


def _half_flops(model, seq_len, layer, axis):
  """Of attention or the MLP, forward; and what of it is with weights."""
  if axis == 'mlp':
    return (6 * model.embed_dim * layer.channels,) * 2
  # Of the square of scores half, less the triangle that is out of sight.
  window = min(model.sliding_window or seq_len, seq_len)
  seen = window * (1 - window / (2 * seq_len))
  scores = 4 * layer.heads * model.head_dim * seen
  linear = model.embed_dim * 4 * model.head_dim * (layer.heads + layer.kv_heads)
  return linear + scores, linear


def _adapter_flops(model, layer, lora):
  heads, kv_heads = (
    model.head_dim * count for count in (layer.heads, layer.kv_heads)
  )
  sizes = {'query': heads, 'key': kv_heads, 'value': kv_heads, 'output': heads}
  targets = [target for target in lora.targets if target in LORA_BLOCKS]
  rows = sum(sizes.get(target, layer.channels) for target in targets)
  return 2 * lora.rank * (rows + len(targets) * model.embed_dim)


def _table_adapter_flops(model, lora):
  """Of adapters of both tables of words; rows are looked up for nothing."""
  tables = {'embed', 'unembed'} & {*lora.targets}
  if tables and model.tied:
    tables = {'embed', 'unembed'}
  outputs = model.vocab_size if 'unembed' in tables else 0
  return 2 * lora.rank * (outputs + len(tables) * model.embed_dim)


def _head_flops(model):
  return 2 * model.embed_dim * model.vocab_size
