"""The Llama of Hugging Face: its `config.json`, tensor names and shapes.

Each part of config.json is read here and described here, for the transformers
of before version 5 and of after it, which spell some keys differently.
"""

from collections.abc import Mapping
import dataclasses
import math
import re
from types import EllipsisType
from typing import Any, NamedTuple

from satjax import errors, tree
from satjax.config.groups import ModelConfig
from satjax.errors import brief

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
# Phi-3 stores some matrices as one, rows after rows.
FUSED = {
  _LAYER + 'self_attn.qkv_proj.weight': (
    'blocks/attention/query',
    'blocks/attention/key',
    'blocks/attention/value',
  ),
  _LAYER + 'mlp.gate_up_proj.weight': ('blocks/mlp/gate', 'blocks/mlp/up'),
}
# Old exports stored the rotary frequencies, which follow from rope_theta.
IGNORED = re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq')

KEYS = {
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
_PLAIN = {'qkv_bias': False, 'qk_norm': False}
FAMILIES = {
  'llama': ('LlamaForCausalLM', _PLAIN | {'sliding_window': 0}),
  'mistral': ('MistralForCausalLM', _PLAIN),
  'qwen2': ('Qwen2ForCausalLM', _PLAIN | {'qkv_bias': True}),
  'qwen3': ('Qwen3ForCausalLM', _PLAIN | {'qk_norm': True}),
  'phi3': ('Phi3ForCausalLM', _PLAIN),
}
# What a run settles, and no config.json does.
TRAINING = {
  'dropout': 0.0,
  'dtype': 'float32',
  'attention': 'auto',
  'scan': True,
  'remat': 'none',
  'init_from': '',
  'vocab_multiple': 0,
}


_ORIGINAL = 'original_max_position_embeddings'
_ROPE_KEYS = {
  'linear': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', _ORIGINAL),
}
# Of an absent key, the value that transformers assumes; null means no window.
_WINDOW_OF = {'mistral': 4096, 'qwen2': 4096, 'qwen3': 4096}
_FIRST_LAYER = 28
_SWITCHED = ('qwen2', 'qwen3')  # by use_sliding_window, from a layer on
_FULL, _SLIDING = 'full_attention', 'sliding_attention'
# Keys of a config.json that are not true of a model made of that one: its
# name, code that stays behind, settings of each layer, what is said anew.
_STALE = (
  '_name_or_path',
  'auto_map',
  'layer_types',
  'rope_scaling',
  'sliding_window',
)


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
  sliding_window = _window_of(stored, family, problems)
  stored = {key: value for key, value in stored.items() if value is not None}
  problems += [
    f'{key} = {brief(stored[key])}; supported: {value!r}'
    for key, value in _SUPPORTED.items()
    if key in stored and stored[key] != value
  ]
  theta, scaling = _rope_of(stored, problems)
  values = _ABSENT | _ABSENT_OF.get(family, {}) | stored
  if theta is not None:
    values['rope_theta'] = theta
  heads, width = values.get('num_attention_heads'), values.get('hidden_size')
  if heads is not None:
    values.setdefault('num_key_value_heads', heads)
  if isinstance(heads, int) and isinstance(width, int) and heads > 0:
    values.setdefault('head_dim', width // heads)
  fields = TRAINING | FAMILIES[family][1]
  fields |= {'rope_scaling': scaling, 'sliding_window': sliding_window}
  for field in dataclasses.fields(ModelConfig):
    if field.name in KEYS:
      fields[field.name] = _value(field, values, problems)
  config = ModelConfig(**fields)
  return config, problems or [*config.problems()]


def _value(
  field: dataclasses.Field, values: Mapping[str, Any], problems: list[str]
) -> Any:
  """The value of one field of `ModelConfig`; appends what is wrong with it."""
  key, allowed = KEYS[field.name], field.metadata['allowed']
  if key not in values:
    problems.append(f'{key} is missing; allowed: {allowed}')
    return None
  value = values[key]
  if field.type is float and type(value) is int and abs(value) < 2**53:
    value = float(value)
  good = type(value) is field.type and field.metadata['check'](value)
  if not good or value == math.inf:
    problems.append(f'{key} = {brief(value)}; allowed: {allowed}')
  return value


def family_of(stored: Mapping[str, Any], problems: list[str]) -> str:
  """The family of a `config.json`, by its name or that of its class.

  What is wrong with it is added to `problems`; the family is 'llama' then.
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


def _rope_of(
  stored: Mapping[str, Any], problems: list[str]
) -> tuple[Any | None, tuple[Any, ...]]:
  """`rope_theta`, if it is given, and `ModelConfig.rope_scaling`.

  transformers keeps them in one place or another; all have to agree.
  """
  thetas = {key: stored[key] for key in stored.keys() & {'rope_theta'}}
  scalings = []
  for key in ('rope_parameters', 'rope_scaling'):
    rope = stored.get(key, {})
    if not isinstance(rope, dict):
      problems.append(f'{key} = {brief(rope)}; supported: an object')
      continue
    if 'rope_theta' in rope:
      thetas[f'{key}.rope_theta'] = rope['rope_theta']
    if key in stored:
      scalings.append(_scaling(key, rope, problems))
    if rope.get('partial_rotary_factor', 1.0) != 1.0:
      factor = brief(rope['partial_rotary_factor'])
      problems.append(f'{key}.partial_rotary_factor = {factor}; supported: 1.0')
  values = list(thetas.values())
  if any(value != values[0] for value in values):
    problems.append(f'{brief(thetas)} differ; expected one value')
  if any(scaling != scalings[0] for scaling in scalings):
    problems.append(
      'rope_parameters and rope_scaling differ; expected the same'
    )
  return values[0] if values else None, scalings[0] if scalings else ()


def _scaling(key: str, rope: Mapping[str, Any], problems: list[str]) -> Any:
  """`ModelConfig.rope_scaling` of a dictionary in config.json."""
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return ()
  if kind not in _ROPE_KEYS:
    problems.append(
      f"{key}.rope_type = {brief(kind)}; supported: 'default', "
      f'{", ".join(map(repr, _ROPE_KEYS))}; take a release of the model without'
      ' it'
    )
    return ()
  values = tuple(rope.get(name) for name in _ROPE_KEYS[kind])
  for name, value in zip(_ROPE_KEYS[kind], values):
    if type(value) not in (int, float) or not 0 < value < math.inf:
      problems.append(f'{key}.{name} = {brief(value)}; allowed: above 0')
      return ()
  return (kind, *map(float, values))


def _window_of(
  stored: Mapping[str, Any], family: str, problems: list[str]
) -> int:
  """`ModelConfig.sliding_window`, where all layers have the same one.

  transformers lets a query see the keys `k > q - sliding_window`: itself and
  the `sliding_window - 1` tokens before it, as `ModelConfig` counts, too.
  """
  window = stored.get('sliding_window', _WINDOW_OF.get(family))
  if family in _SWITCHED and not stored.get('use_sliding_window'):
    window = None
  if window is not None and (type(window) is not int or window < 1):
    problems.append(
      f'sliding_window = {brief(window)}; allowed: null, or at least 1'
    )
    return 0
  if window and family == 'llama':
    longest = stored.get('max_position_embeddings')
    if type(longest) is not int or window < longest:
      problems.append(
        f'sliding_window = {window}; supported: null, or no less than'
        f' max_position_embeddings ({brief(longest)}); a llama has no window,'
        ' and with one it is a mistral'
      )
    window = None
  kinds = stored.get('layer_types')
  allowed = [_SLIDING] if window else [_FULL]
  if window and family in _SWITCHED:
    allowed.append(_FULL)
    if kinds is None:
      kinds = _switched_kinds(stored, problems)
  if kinds is None:
    return window or 0
  for kind in allowed:
    if isinstance(kinds, list) and all(k == kind for k in kinds):
      return window if kind == _SLIDING else 0
  problems.append(
    f'layer_types = {brief(kinds)}; supported:'
    f' {" or ".join(map(repr, allowed))} in all layers, where sliding_window ='
    f' {"null" if window is None else window}'
  )
  return 0


def _switched_kinds(
  stored: Mapping[str, Any], problems: list[str]
) -> list[str]:
  """The kind of all layers, where the window begins at one of them."""
  first = stored.get('max_window_layers', _FIRST_LAYER)
  count = stored.get('num_hidden_layers')
  if type(first) is type(count) is int and (first <= 0 or first >= count):
    return [_SLIDING if first <= 0 else _FULL]
  problems.append(
    f'max_window_layers = {brief(first)} of {brief(count)} layers; supported:'
    ' 0, a window in all layers, or a window in none'
  )
  return [_FULL]


def describe(
  config: ModelConfig,
  dtype: str,
  seq_len: int,
  base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """`config.json`, which old and new transformers read; see `config_of`.

  What else `base`, that of the model it was made of, says stays; so do the
  types of its numbers.

  Raises:
    ConfigError: no family of transformers has such an architecture.
  """
  family, base = _export_family(config), base or {}
  described = {
    'architectures': [FAMILIES[family][0]],
    'model_type': family,
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'max_position_embeddings': seq_len,
    **{key: getattr(config, field) for field, key in KEYS.items()},
    **_rope(config.rope_theta, config.rope_scaling),
    **_window(config.sliding_window, family, config.num_layers),
    'torch_dtype': dtype,
    'dtype': dtype,
  }
  same = {
    k: base[k] for k, v in described.items() if k in base and base[k] == v
  }
  return {k: base[k] for k in base if k not in _STALE} | described | same


def _export_family(config: ModelConfig) -> str:
  for family, (_, marks) in FAMILIES.items():
    if all(getattr(config, key) == value for key, value in marks.items()):
      return family
  raise errors.ConfigError(
    f'qkv_bias {config.qkv_bias} with qk_norm {config.qk_norm}: no model of'
    ' transformers has both; set one of them to False'
  )


def _rope(theta: float, scaling: tuple[Any, ...]) -> dict[str, Any]:
  kind, *numbers = scaling or ('default',)
  rope = {'rope_type': kind, **dict(zip(_ROPE_KEYS.get(kind, ()), numbers))}
  if kind == 'llama3':  # whose length is a whole number
    rope[_ORIGINAL] = int(rope[_ORIGINAL])
  old = {'rope_scaling': rope} if scaling else {}
  return {**old, 'rope_parameters': {**rope, 'rope_theta': theta}}


def _window(window: int, family: str, num_layers: int) -> dict[str, Any]:
  if family not in _SWITCHED:
    return {'sliding_window': window} if window else {}
  return {
    'use_sliding_window': bool(window),
    'sliding_window': window or None,
    'max_window_layers': 0 if window else num_layers,
  }
