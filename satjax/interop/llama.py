"""The Llama of Hugging Face: its `config.json`, tensor names and shapes."""

from collections.abc import Mapping
import dataclasses
import math
import re
import reprlib
from types import EllipsisType
from typing import Any, NamedTuple

from satjax import tree
from satjax.config import ModelConfig

_MAX_LAYERS = 10_000  # bounds the tensor names that a forged config asks for

# Our path: (Hugging Face name, whether its matrix is the transpose of ours).
# Rows of ours are neurons: [heads * head_dim, embed] and [mlp, embed].
_LAYER = 'model.layers.{}.'
TENSORS = {
  'embed': ('model.embed_tokens.weight', False),
  'blocks/attention_norm': (_LAYER + 'input_layernorm.weight', False),
  'blocks/attention/query': (_LAYER + 'self_attn.q_proj.weight', False),
  'blocks/attention/key': (_LAYER + 'self_attn.k_proj.weight', False),
  'blocks/attention/value': (_LAYER + 'self_attn.v_proj.weight', False),
  'blocks/attention/output': (_LAYER + 'self_attn.o_proj.weight', True),
  'blocks/mlp_norm': (_LAYER + 'post_attention_layernorm.weight', False),
  'blocks/mlp/gate': (_LAYER + 'mlp.gate_proj.weight', False),
  'blocks/mlp/up': (_LAYER + 'mlp.up_proj.weight', False),
  'blocks/mlp/down': (_LAYER + 'mlp.down_proj.weight', True),
  'final_norm': ('model.norm.weight', False),
  'unembed': ('lm_head.weight', False),
}
# Old exports stored the rotary frequencies, which follow from rope_theta.
IGNORED = re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq')

_KEYS = {
  'num_layers': 'num_hidden_layers',
  'embed_dim': 'hidden_size',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'head_dim': 'head_dim',
  'mlp_dim': 'intermediate_size',
  'vocab_size': 'vocab_size',
  'tied': 'tie_word_embeddings',
  'rope_theta': 'rope_theta',
  'norm_eps': 'rms_norm_eps',
}
# Of an absent key, the value that transformers assumes.
_ABSENT = {
  'tie_word_embeddings': False,
  'rope_theta': 10_000.0,
  'rms_norm_eps': 1e-6,
}
_SUPPORTED = {
  'model_type': 'llama',
  'architectures': ['LlamaForCausalLM'],
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'partial_rotary_factor': 1.0,
  'quantization_config': None,
}
_TRAINING = {'dtype': 'float32', 'scan': True, 'remat': 'none', 'init_from': ''}


class Slot(NamedTuple):
  """Where one stored tensor lives in our tree, and its stored shape."""

  path: str
  index: int | EllipsisType
  shape: tuple[int, ...]
  transposed: bool


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shape of every leaf, by path."""
  sizes = {
    'layers': config.num_layers,
    'embed': config.embed_dim,
    'heads': config.num_heads,
    'kv_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'mlp': config.mlp_dim,
    'vocab': config.vocab_size,
  }
  return {
    path: tuple(sizes[name] for name in axes)
    for path, axes in tree.AXES.items()
    if not (config.tied and path == 'unembed')
  }


def slots(config: ModelConfig) -> dict[str, Slot]:
  """Every tensor that a file of this model holds, by its name there."""
  slots = {}
  for path, shape in shapes(config).items():
    template, transposed = TENSORS[path]
    indices: Any = [...]
    if tree.AXES[path][0] == 'layers':
      indices, shape = range(config.num_layers), shape[1:]
    if len(shape) > 1:
      shape = (math.prod(shape[:-1]), shape[-1])
    stored = shape[::-1] if transposed else shape
    for index in indices:
      slots[template.format(index)] = Slot(path, index, stored, transposed)
  return slots


def config_of(stored: Mapping[str, Any]) -> tuple[ModelConfig, list[str]]:
  """The architecture that a `config.json` describes, and what is wrong.

  Returns:
    The configuration, of use only if the second, the list of problems (every
    key that is missing, wrong or not implemented), is empty.
  """
  stored = {key: value for key, value in stored.items() if value is not None}
  problems = [
    f'{key} = {brief(stored[key])}; supported: {value!r}'
    for key, value in _SUPPORTED.items()
    if key in stored and stored[key] != value
  ]
  if 'model_type' not in stored and 'architectures' not in stored:
    problems.append("model_type is missing; supported: 'llama'")
  values = _ABSENT | stored | _rope(stored, problems)
  heads, width = (
    values.get(_KEYS[name]) for name in ('num_heads', 'embed_dim')
  )
  if heads is not None:
    values.setdefault('num_key_value_heads', heads)
  if isinstance(heads, int) and isinstance(width, int) and heads > 0:
    values.setdefault('head_dim', width // heads)
  fields = dict(_TRAINING)
  for field in dataclasses.fields(ModelConfig):
    if field.name in _KEYS:
      fields[field.name] = _value(field, values, problems)
  config = ModelConfig(**fields)
  return config, problems or config.problems()


def _value(
  field: dataclasses.Field, values: Mapping[str, Any], problems: list[str]
) -> Any:
  """The value of one field of `ModelConfig`; appends what is wrong with it."""
  key, allowed = _KEYS[field.name], field.metadata['allowed']
  if key not in values:
    problems.append(f'{key} is missing; allowed: {allowed}')
    return None
  value = values[key]
  if field.type is float and type(value) is int and abs(value) < 2**53:
    value = float(value)
  if field.name == 'num_layers':
    allowed += f', at most {_MAX_LAYERS}'
    good = type(value) is int and 1 <= value <= _MAX_LAYERS
  else:
    good = type(value) is field.type and field.metadata['check'](value)
  if not good or value == math.inf:
    problems.append(f'{key} = {brief(value)}; allowed: {allowed}')
  return value


def _rope(stored: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """`rope_theta`, which transformers 5 keeps inside `rope_parameters`."""
  thetas = {}
  if 'rope_theta' in stored:
    thetas['rope_theta'] = stored['rope_theta']
  for key in ('rope_parameters', 'rope_scaling'):
    rope = stored.get(key, {})
    if not isinstance(rope, dict):
      problems.append(f'{key} = {brief(rope)}; supported: an object')
      continue
    if 'rope_theta' in rope:
      thetas[f'{key}.rope_theta'] = rope['rope_theta']
    for name in ('rope_type', 'type'):
      if rope.get(name, 'default') != 'default':
        problems.append(
          f'{key}.{name} = {brief(rope[name])}; supported: '
          "'default', that is, rotary positions without scaling"
        )
    if rope.get('partial_rotary_factor', 1.0) != 1.0:
      factor = brief(rope['partial_rotary_factor'])
      problems.append(f'{key}.partial_rotary_factor = {factor}; supported: 1.0')
  values = list(thetas.values())
  if any(value != values[0] for value in values):
    problems.append(f'{brief(thetas)} differ; expected one value')
  return {'rope_theta': values[0]} if values else {}


def brief(value: Any) -> str:
  """A value of a file for a message, however long or deep it is."""
  form = reprlib.Repr()
  form.maxstring = 200
  return form.repr(value)


def describe(config: ModelConfig, dtype: str, seq_len: int) -> dict[str, Any]:
  """`config.json` for old and new transformers; the inverse of `config_of`."""
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'max_position_embeddings': seq_len,
    **{key: getattr(config, field) for field, key in _KEYS.items()},
    'rope_parameters': {
      'rope_type': 'default',
      'rope_theta': config.rope_theta,
    },
    'torch_dtype': dtype,
    'dtype': dtype,
  }
