"""The Llama of Hugging Face: its `config.json`, tensor names and shapes."""

from collections.abc import Mapping
import dataclasses
import math
import re
from types import EllipsisType
from typing import Any, NamedTuple

from satjax import errors, tree
from satjax.config.groups import ModelConfig
from satjax.errors import brief
from satjax.interop import rope, window

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
  'blocks/attention/query_bias': (_LAYER + 'self_attn.q_proj.bias', False),
  'blocks/attention/key_bias': (_LAYER + 'self_attn.k_proj.bias', False),
  'blocks/attention/value_bias': (_LAYER + 'self_attn.v_proj.bias', False),
  'blocks/attention/query_norm': (_LAYER + 'self_attn.q_norm.weight', False),
  'blocks/attention/key_norm': (_LAYER + 'self_attn.k_norm.weight', False),
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
_ABSENT_OF = {'phi3': {'rms_norm_eps': 1e-5}}
_SUPPORTED = {
  'hidden_act': 'silu',
  'attention_bias': False,
  'mlp_bias': False,
  'partial_rotary_factor': 1.0,
  'quantization_config': None,
}
# By model_type: the class of transformers, and what sets the family apart.
# The first one that fits names an export.
FAMILIES = {
  'llama': (
    'LlamaForCausalLM',
    {'qkv_bias': False, 'qk_norm': False, 'sliding_window': 0},
  ),
  'mistral': ('MistralForCausalLM', {'qkv_bias': False, 'qk_norm': False}),
  'qwen2': ('Qwen2ForCausalLM', {'qkv_bias': True, 'qk_norm': False}),
  'qwen3': ('Qwen3ForCausalLM', {'qkv_bias': False, 'qk_norm': True}),
  'phi3': ('Phi3ForCausalLM', {'qkv_bias': False, 'qk_norm': False}),
}
_TRAINING = {
  'dropout': 0.0,
  'dtype': 'float32',
  'attention': 'auto',
  'scan': True,
  'remat': 'none',
  'init_from': '',
}


class Slot(NamedTuple):
  """Where one stored tensor lives in our tree, and its stored shape."""

  path: str
  index: int | EllipsisType
  shape: tuple[int, ...]
  transposed: bool


def slots(config: ModelConfig) -> dict[str, Slot]:
  """Every tensor that a file of this model holds, by its name there."""
  slots = {}
  for path, shape in tree.shapes(config).items():
    template, transposed = TENSORS[path]
    indices: Any = [...]
    if tree.AXES[path][0] == 'layers':
      indices, shape = range(config.num_layers), shape[1:]
    if tree.AXES[path][-1] != 'embed':
      shape = (math.prod(shape),)
    elif len(shape) > 1:
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
  problems: list[str] = []
  family = family_of(stored, problems)
  sliding_window = window.read(stored, family, problems)
  stored = {key: value for key, value in stored.items() if value is not None}
  problems += [
    f'{key} = {brief(stored[key])}; supported: {value!r}'
    for key, value in _SUPPORTED.items()
    if key in stored and stored[key] != value
  ]
  theta, scaling = rope.read(stored, problems)
  values = _ABSENT | _ABSENT_OF.get(family, {}) | stored
  if theta is not None:
    values['rope_theta'] = theta
  heads, width = (
    values.get(_KEYS[name]) for name in ('num_heads', 'embed_dim')
  )
  if heads is not None:
    values.setdefault('num_key_value_heads', heads)
  if isinstance(heads, int) and isinstance(width, int) and heads > 0:
    values.setdefault('head_dim', width // heads)
  fields = _TRAINING | FAMILIES[family][1]
  fields |= {'rope_scaling': scaling, 'sliding_window': sliding_window}
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


def family_of(stored: Mapping[str, Any], problems: list[str]) -> str:
  """The family of a `config.json`, by its name or that of its class.

  Args:
    stored: `config.json`.
    problems: what is wrong with it is added; the family is 'llama' then.
  """
  classes = {name: family for family, (name, _) in FAMILIES.items()}
  names = stored.get('architectures')
  if names is not None and (
    not isinstance(names, list) or len(names) != 1 or names[0] not in [*classes]
  ):
    problems.append(
      f'architectures = {brief(names)}; supported: one of {", ".join(classes)}'
    )
    return 'llama'
  family = stored.get('model_type') or (classes[names[0]] if names else None)
  if family not in [*FAMILIES]:  # whatever it is
    said = 'is missing' if family is None else f'= {brief(family)}'
    problems.append(f'model_type {said}; supported: {", ".join(FAMILIES)}')
    return 'llama'
  if names and classes[names[0]] != family:
    problems.append(
      f'model_type = {family!r} and architectures = {names!r} differ'
    )
  return family


def describe(config: ModelConfig, dtype: str, seq_len: int) -> dict[str, Any]:
  """`config.json` for old and new transformers; the inverse of `config_of`.

  Raises:
    ConfigError: no family of transformers has such an architecture.
  """
  family = _export_family(config)
  return {
    'architectures': [FAMILIES[family][0]],
    'model_type': family,
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'max_position_embeddings': seq_len,
    **{key: getattr(config, field) for field, key in _KEYS.items()},
    **rope.describe(config.rope_theta, config.rope_scaling),
    **window.describe(config.sliding_window, family, config.num_layers),
    'torch_dtype': dtype,
    'dtype': dtype,
  }


def _export_family(config: ModelConfig) -> str:
  for family, (_, marks) in FAMILIES.items():
    if all(getattr(config, key) == value for key, value in marks.items()):
      return family
  raise errors.ConfigError(
    f'qkv_bias {config.qkv_bias} with qk_norm {config.qk_norm}: no model of'
    ' transformers has both; set one of them to False'
  )
