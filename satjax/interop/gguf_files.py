"""GGUF files, as llama.cpp and its kin have them, to model directories.

The `gguf` library reads and dequantises. Rows of query and key of the 'llama'
family lie there in pairs of a rotation, as Meta had them; Hugging Face, and so
we, keep the two halves of a head apart.
"""

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

import numpy as np

from satjax import errors, files
from satjax.config.groups import ModelConfig
from satjax.interop import gguf_tokenizer, huggingface, llama, weights, writer
from satjax.model import ops

_FAMILIES = ('llama', 'qwen2', 'qwen3')  # called so there and here
# Keys of config.json to keys there, after the architecture.
_KEYS = {
  'num_hidden_layers': 'block_count',
  'hidden_size': 'embedding_length',
  'intermediate_size': 'feed_forward_length',
  'num_attention_heads': 'attention.head_count',
  'num_key_value_heads': 'attention.head_count_kv',
  'head_dim': 'attention.key_length',
  'rms_norm_eps': 'attention.layer_norm_rms_epsilon',
  'rope_theta': 'rope.freq_base',
  'max_position_embeddings': 'context_length',
  'sliding_window': 'attention.sliding_window',
}
# What Llama 3.1 and later scale their rotations by, besides the factor.
_LLAMA3 = {
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
}
_ROPE_FACTORS = 'rope_freqs.weight'


def convert(
  file: str | os.PathLike,
  directory: str | os.PathLike,
  *,
  dtype: str = 'float32',
) -> None:
  """Writes what a GGUF file holds as a model directory, tokenizer included.

  Args:
    dtype: 'float32' or 'bfloat16', of the stored weights.

  Raises:
    DataError: it is no GGUF file, or of a kind that is not known; names why.
    StorageError: as `writer.write`.
  """
  file = Path(file)
  fields, tensors = read(file)
  config, seq_len = _config(file, fields, tensors)
  tokenizer = gguf_tokenizer.files_of(file, fields)
  special = gguf_tokenizer.ids_of(fields)
  stored = np.dtype(dtype)
  described = {
    'config.json': writer.OURS
    | llama.describe(config, dtype, seq_len)
    | {key: special.get(key) for key in ('bos_token_id', 'eos_token_id')},
    'generation_config.json': special,
  }
  slots, names = llama.slots(config), _names(config)
  is_paired = fields['general.architecture'] == 'llama'

  def tensor(name):
    from gguf import dequantize

    slot, one = slots[name], tensors[names[name]]
    rows = dequantize(one.data, one.tensor_type)
    rows = np.asarray(rows, np.float32).reshape(slot.shape)
    if is_paired and slot.path.endswith(('/query', '/key')):
      rows = _halves(rows, config.head_dim)
    if not weights.is_finite(rows):
      raise errors.DataError(f'{file}: {huggingface.not_finite(name)}')
    return np.ascontiguousarray(rows, stored)

  writer.write(
    directory,
    {name: slot.shape for name, slot in slots.items()},
    tensor,
    {n: files.to_json(v) for n, v in described.items()} | tokenizer,
    dtype=stored,
  )


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The values of a GGUF file by key, and its tensors by name.

  Raises:
    ConfigError: the library is not installed.
    DataError: it is no GGUF file, or is cut off.
  """
  gguf = errors.import_optional('gguf', str(file), 'data')
  try:
    reader = gguf.GGUFReader(file)
    fields = {name: one.contents() for name, one in reader.fields.items()}
    return fields, {one.name: one for one in reader.tensors}
  except OSError as error:
    raise errors.DataError(f'{file}: {error.strerror}') from error
  except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
    raise errors.DataError(
      f'{file} is no whole GGUF file ({error}); download it again'
    ) from error


def _config(
  file: Path, fields: Mapping[str, Any], tensors: Mapping[str, Any]
) -> tuple[ModelConfig, int]:
  """The architecture, and the tokens that the model reads at once."""
  kind = fields.get('general.architecture')
  if kind not in _FAMILIES:
    raise errors.DataError(
      f'{file}: general.architecture = {errors.brief(kind)}; supported:'
      f' {", ".join(_FAMILIES)}; of others, take the safetensors directory'
    )
  own = {key: fields.get(f'{kind}.{name}') for key, name in _KEYS.items()}
  for key in ('rms_norm_eps', 'rope_theta'):
    if isinstance(own[key], float):  # float32, such as 9.999999747378752e-06
      own[key] = float(str(np.float32(own[key])))
  if (parts := fields.get('split.count', 1)) > 1:
    raise errors.DataError(
      f'{file} is one of {parts} parts; join them first (llama-gguf-split'
      ' --merge)'
    )
  embed = tensors.get('token_embd.weight')
  stored = own | {
    'model_type': kind,
    'vocab_size': None if embed is None else int(embed.shape[1]),
    'tie_word_embeddings': 'output.weight' not in tensors,
    'rope_scaling': _scaling(file, fields, tensors, kind),
  }
  config, problems = llama.config_of(stored)
  turned = fields.get(f'{kind}.rope.dimension_count', config.head_dim)
  if turned != config.head_dim:
    problems.append(
      f'rope.dimension_count = {turned}; supported: {config.head_dim}, all'
    )
  weights.refuse(file, problems or _differences(config, tensors))
  return config, own['max_position_embeddings'] or huggingface.MAX_LENGTH


def _scaling(file, fields, tensors, kind):
  """`rope_scaling` of config.json."""
  old = fields.get(f'{kind}.rope.scale_linear')
  factor = fields.get(f'{kind}.rope.scaling.factor', old)
  unnamed = 'linear' if factor else 'none'
  named = fields.get(f'{kind}.rope.scaling.type', unnamed)
  if _ROPE_FACTORS not in tensors:
    return None if named == 'none' else {'rope_type': named, 'factor': factor}
  # Llama 3.1 and later; the file holds what the rule of `ops` comes to.
  found = np.asarray(tensors[_ROPE_FACTORS].data, np.float64)
  factor, steps = float(found.max()), np.arange(len(found)) / len(found)
  frequency = fields[f'{kind}.rope.freq_base'] ** -steps
  scaled = ops.scale_rope(frequency, 'llama3', factor, *_LLAMA3.values())
  if not np.allclose(found, frequency / scaled, rtol=1e-3):
    raise errors.DataError(
      f'{file}: {_ROPE_FACTORS} are not those of Llama 3.1 (factors'
      f' {errors.brief(found.tolist())}); take the safetensors directory'
    )
  return {'rope_type': 'llama3', 'factor': factor, **_LLAMA3}


def _differences(config, tensors):
  """What is missing, of another shape, or not known."""
  names, slots = _names(config), llama.slots(config)
  expected = {names[name]: slot.shape for name, slot in slots.items()}
  expected[_ROPE_FACTORS] = (config.head_dim // 2,)
  found = {name: tuple(map(int, x.shape[::-1])) for name, x in tensors.items()}
  return [
    f'{name}: found {found.get(name, "nothing")}, expected'
    f' {expected.get(name, "nothing")}'
    for name in sorted({*expected, *found})
    if found.get(name) != expected.get(name)
    and (name != _ROPE_FACTORS or name in found)
  ]


def _names(config: ModelConfig) -> dict[str, str]:
  """What the tensors of a model directory are called there."""
  import gguf

  # Of these families the one that has all tensors.
  known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_layers)
  return {
    name: known.get_name(name, ('.weight', '.bias'))
    for name in llama.slots(config)
  }


def _halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
  """Rows in pairs of a rotation to rows in halves of a head."""
  paired = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
  return paired.swapaxes(1, 2).reshape(rows.shape)
