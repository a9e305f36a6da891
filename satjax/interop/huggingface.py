"""Llama model directories in the layout of Hugging Face, in and out.

A directory holds `config.json` and `model.safetensors`, or shards and
`model.safetensors.index.json`. Pickled weights are never opened, nor is
anything outside the directory, and no weight is read before every header
agrees with the configuration.
"""

from collections import Counter
from collections.abc import Mapping
import dataclasses
import json
import math
import os
from pathlib import Path
import re
import reprlib
import shutil
import tempfile
from types import EllipsisType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from satjax import errors, tree
from satjax.config import ModelConfig
from satjax.interop import byte_tokenizer

_MAX_JSON_BYTES = 64 * 2**20
_MAX_LAYERS = 10_000  # bounds the tensor names that a forged config asks for
_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.ckpt')
_DTYPES = {'F32': np.float32, 'BF16': ml_dtypes.bfloat16, 'F16': np.float16}
_NUMPY_DTYPES = tuple(map(np.dtype, _DTYPES.values()))
_SHARDS = 'model-*-of-*.safetensors'
_TEMPORARY = '.saving-'
_OURS = {'written_by': 'satjax'}  # only such a directory is overwritten

# Our path: (Hugging Face name, whether its matrix is the transpose of ours).
# Rows of ours are neurons: [heads * head_dim, embed] and [mlp, embed].
_LAYER = 'model.layers.{}.'
_TENSORS = {
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
_IGNORED = re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq')

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


class _Slot(NamedTuple):
  """Where one stored tensor lives in our tree, and its stored shape."""

  path: str
  index: int | EllipsisType
  shape: tuple[int, ...]
  transposed: bool


class _Header(NamedTuple):
  file: str
  dtype: str
  shape: tuple[int, ...]

  def __str__(self) -> str:
    return f'{self.dtype} {list(self.shape)}'


def read_config(directory: str | os.PathLike) -> ModelConfig:
  """Reads the architecture from `config.json`.

  Raises:
    DataError: names every key that is missing, wrong or not implemented.
  """
  stored = _read_json(Path(directory), 'config.json')
  stored = {key: value for key, value in stored.items() if value is not None}
  problems = [
    f'{key} = {_brief(stored[key])}; supported: {value!r}'
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
  if not problems:
    config = ModelConfig(**fields)
    problems = config.problems()
  _refuse(Path(directory) / 'config.json', problems)
  return config


def load(directory: str | os.PathLike) -> tuple[ModelConfig, dict[str, Any]]:
  """Reads a model: its configuration and its parameters.

  Returns:
    The configuration, and the nested dictionary of NumPy arrays of
    `tree.AXES` in the stored dtype (float32, bfloat16 or float16).

  Raises:
    DataError: names every problem of config.json; if it has none, every
      problem of the headers; if they have none, every tensor with NaN.
    StorageError: a file can not be read.
  """
  directory = Path(directory)
  config = read_config(directory)
  slots = _slots(config)
  found, problems = _scan(directory)
  problems += _differences(config, slots, found)
  if config.tied:
    problems += _tied_problems(directory, found)
  _refuse(directory, problems)
  dtype = _DTYPES[found[next(iter(slots))].dtype]
  params = {path: np.empty(s, dtype) for path, s in _shapes(config).items()}
  for name, slot in slots.items():
    matrix = _read_tensor(directory, name, found[name].file)
    if not np.isfinite(matrix).all():
      problems.append(f'{name}: found NaN or infinity, expected finite numbers')
    out = params[slot.path][slot.index]
    out[...] = (matrix.T if slot.transposed else matrix).reshape(out.shape)
  _refuse(directory, problems)
  return config, _nested(params)


def save(
  directory: str | os.PathLike,
  config: ModelConfig,
  params: Mapping[str, Any],
  *,
  dtype: str | None = None,
  max_shard_bytes: int = 5 * 2**30,
  tokenizer: Any = None,
  seq_len: int = 2048,
) -> None:
  """Writes a model directory that transformers 4 and 5 read.

  A model that satjax wrote there before is replaced; other files stay.

  Args:
    directory: made if need be.
    config: the architecture.
    params: JAX or NumPy arrays of `tree.AXES`, all of one dtype.
    dtype: 'float32' or 'bfloat16' to cast to; None keeps the dtype.
    max_shard_bytes: more weights than this go into several files.
    tokenizer: its `bos_id` and `eos_id` are noted; one whose `name` is 'byte'
      is written too.
    seq_len: `max_position_embeddings`, in tokens.

  Raises:
    DataError: `params` are not those of `config`; names every difference.
    StorageError: the directory can not be written, holds a model that satjax
      did not write, or a file reads back different.
  """
  root = Path(directory).resolve()
  leaves = tree.flatten(params)
  dtype = _stored_dtype(config, leaves, dtype)
  slots = _slots(config)
  shards = _cut(slots, dtype.itemsize, max_shard_bytes)
  contents = _json_files(config, dtype.name, tokenizer, seq_len)
  if len(shards) > 1:
    contents[_INDEX] = _index(slots, shards, dtype.itemsize)
  try:
    root.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(root)
    for leftover in root.glob(_TEMPORARY + '*'):
      shutil.rmtree(leftover)
    # Inside the directory, so that moving never crosses file systems.
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=root) as temporary:
      _write_json_files(Path(temporary), contents)
      for file, names in shards.items():
        arrays = {n: _matrix(leaves, slots[n], dtype) for n in names}
        _write_shard(Path(temporary) / file, arrays)
      _move(Path(temporary), root)
  except (OSError, safetensors.SafetensorError) as error:
    raise errors.StorageError(f'{root} can not be written: {error}') from error


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
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


def _slots(config: ModelConfig) -> dict[str, _Slot]:
  """Every tensor that a file of this model holds, by its name there."""
  slots = {}
  for path, shape in _shapes(config).items():
    template, transposed = _TENSORS[path]
    indices: Any = [...]
    if tree.AXES[path][0] == 'layers':
      indices, shape = range(config.num_layers), shape[1:]
    if len(shape) > 1:
      shape = (math.prod(shape[:-1]), shape[-1])
    stored = shape[::-1] if transposed else shape
    for index in indices:
      slots[template.format(index)] = _Slot(path, index, stored, transposed)
  return slots


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
    problems.append(f'{key} = {_brief(value)}; allowed: {allowed}')
  return value


def _rope(stored: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """`rope_theta`, which transformers 5 keeps inside `rope_parameters`."""
  thetas = {}
  if 'rope_theta' in stored:
    thetas['rope_theta'] = stored['rope_theta']
  for key in ('rope_parameters', 'rope_scaling'):
    rope = stored.get(key, {})
    if not isinstance(rope, dict):
      problems.append(f'{key} = {_brief(rope)}; supported: an object')
      continue
    if 'rope_theta' in rope:
      thetas[f'{key}.rope_theta'] = rope['rope_theta']
    for name in ('rope_type', 'type'):
      if rope.get(name, 'default') != 'default':
        problems.append(
          f'{key}.{name} = {_brief(rope[name])}; supported: '
          "'default', that is, rotary positions without scaling"
        )
    if rope.get('partial_rotary_factor', 1.0) != 1.0:
      factor = _brief(rope['partial_rotary_factor'])
      problems.append(f'{key}.partial_rotary_factor = {factor}; supported: 1.0')
  values = list(thetas.values())
  if any(value != values[0] for value in values):
    problems.append(f'{_brief(thetas)} differ; expected one value')
  return {'rope_theta': values[0]} if values else {}


def _read_json(directory: Path, name: str) -> dict[str, Any]:
  path = directory / name
  if reason := _unsafe(directory, name):
    raise errors.DataError(f'{path} {reason}')
  try:
    with path.open('rb') as file:
      text = file.read(_MAX_JSON_BYTES + 1)
  except OSError as error:
    raise errors.StorageError(f'{path} can not be read: {error}') from error
  if len(text) > _MAX_JSON_BYTES:
    raise errors.DataError(f'{path} is larger than {_MAX_JSON_BYTES} bytes')
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise errors.DataError(f'{path} is not valid JSON: {error}') from error
  if not isinstance(content, dict):
    raise errors.DataError(f'{path} does not hold a JSON object')
  return content


def _unsafe(directory: Path, name: str) -> str | None:
  """Why a file may not be opened, or None."""
  path = directory / name
  if not os.path.lexists(path):
    return 'is missing'
  if os.path.dirname(os.path.realpath(path)) != os.path.realpath(directory):
    return (
      'is a link that leaves the directory; copy the file itself here (hf'
      ' download --local-dir does)'
    )
  if not os.path.isfile(path):
    return 'is not a file'
  return None


def _brief(value: Any) -> str:
  """A value of a file for a message, however long or deep it is."""
  form = reprlib.Repr()
  form.maxstring = 200
  return form.repr(value)


def _refuse(where: Path, problems: list[str]) -> None:
  """Raises one error that lists all problems, if there are any."""
  if problems:
    text = '\n  '.join([f'{where} can not be used:', *problems])
    # Names from a file may hold what a terminal can not print.
    raise errors.DataError(text.encode('utf-8', 'backslashreplace').decode())


def _scan(directory: Path) -> tuple[dict[str, _Header | None], list[str]]:
  """Reads the headers of all weight files.

  Returns:
    Headers by tensor name, None where a problem already says why there is
    none; and the problems.
  """
  weight_map, problems = _weight_map(directory)
  found: dict[str, _Header | None] = {}
  lost = set()
  files = sorted(set(weight_map.values()) - {None}) if weight_map else [_SINGLE]
  for file in files:
    try:
      headers = _headers(directory, file)
    except OSError as error:
      problems.append(f'{file} {error}')
      lost.add(file)
      continue
    for name, header in headers.items():
      if name in found:
        problems.append(f'{name}: found again in {file}, expected once')
      elif weight_map and (weight_map.get(name) or file) != file:
        problems.append(
          f'{name}: found in {file}, expected in {weight_map[name]}'
        )
      found[name] = header
  if _SINGLE in lost and not weight_map:
    _refuse(directory, problems)
  for name, file in (weight_map or {}).items():
    if name not in found:
      found[name] = None
      if file and file not in lost:
        problems.append(f'{name}: found nowhere, expected in {file}')
  return found, problems


def _weight_map(
  directory: Path,
) -> tuple[dict[str, str | None] | None, list[str]]:
  """Which file holds which tensor; None when there is a single file."""
  single, index = (os.path.lexists(directory / n) for n in (_SINGLE, _INDEX))
  if single and index:
    problem = f'{_SINGLE} and {_INDEX} are both there; remove the stale one'
    _refuse(directory, [problem])
  if single:
    return None, []
  if not index:
    _refuse(directory, [_no_weights(directory)])
  weight_map = _read_json(directory, _INDEX).get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    _refuse(directory, [f'{_INDEX} has no weight_map'])
  problems = []
  for name, file in weight_map.items():
    if not _is_plain(file):
      problems.append(
        f'{name}: found {_brief(file)} in {_INDEX}, expected the plain'
        ' name of a .safetensors file in the same directory'
      )
      weight_map[name] = None
  return weight_map, problems


def _is_plain(file: Any) -> bool:
  pattern = r'[\w.+=@ -]+\.safetensors'
  return isinstance(file, str) and bool(re.fullmatch(pattern, file))


def _no_weights(directory: Path) -> str:
  names = sorted(path.name for path in directory.iterdir())
  expected = f'expected {_SINGLE}, or shards and {_INDEX}'
  others = [name for name in names if name.endswith('.safetensors')]
  pickles = [name for name in names if name.endswith(_PICKLES)]
  if others:
    return f'{", ".join(others)}: found, {expected}'
  if pickles:
    return (
      f'{", ".join(pickles)}: pickles can run code and are never opened;'
      ' convert them to safetensors with the tool that wrote them'
      ' (transformers: save_pretrained)'
    )
  return f'no weights found, {expected}'


def _headers(directory: Path, file: str) -> dict[str, _Header]:
  if reason := _unsafe(directory, file):
    raise OSError(reason)
  try:
    with safetensors.safe_open(directory / file, framework='numpy') as shard:
      names = shard.keys()
      parts = [shard.get_slice(name) for name in names]
      return {
        name: _Header(file, part.get_dtype(), tuple(part.get_shape()))
        for name, part in zip(names, parts)
      }
  except safetensors.SafetensorError as error:
    raise OSError(f'is not a whole safetensors file: {error}') from error


def _differences(
  config: ModelConfig,
  slots: Mapping[str, _Slot],
  found: Mapping[str, _Header | None],
) -> list[str]:
  """What is missing, misshaped, of another dtype, or too much."""
  dtypes = Counter(
    header.dtype
    for name, header in found.items()
    if header and name in slots and header.dtype in _DTYPES
  )
  # The dtype of most tensors, so that the odd ones are named.
  dtype = dtypes.most_common(1)[0][0] if dtypes else ' | '.join(_DTYPES)
  problems = []
  for name, slot in slots.items():
    expected = f'{dtype} {list(slot.shape)}'
    if name not in found:
      problems.append(f'{name}: found nothing, expected {expected}')
    elif found[name] and str(found[name]) != expected:
      problems.append(f'{name}: found {found[name]}, expected {expected}')
  legal = {*slots, 'lm_head.weight'} if config.tied else set(slots)
  for name, header in found.items():
    if header and name not in legal and not _IGNORED.fullmatch(name):
      problems.append(f'{name}: found {header}, expected no such tensor')
  return problems


def _tied_problems(
  directory: Path, found: Mapping[str, _Header | None]
) -> list[str]:
  """A tied output matrix may be stored, if it is the embedding."""
  embed, head = (found.get(_TENSORS[path][0]) for path in ('embed', 'unembed'))
  if not embed or not head:
    return []
  if str(embed) != str(head):
    return [f'lm_head.weight: found {head}, expected {embed} as embeddings']
  if head.dtype in _DTYPES and not _same_bits(
    _read_tensor(directory, 'model.embed_tokens.weight', embed.file),
    _read_tensor(directory, 'lm_head.weight', head.file),
  ):
    return [
      'lm_head.weight: found numbers that differ from the embedding, expected'
      ' the same, or tie_word_embeddings false in config.json'
    ]
  return []


def _read_tensor(directory: Path, name: str, file: str) -> np.ndarray:
  # Mapped anew for each tensor, so that pages that were read do not pile up.
  with safetensors.safe_open(directory / file, framework='numpy') as shard:
    return shard.get_tensor(name)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  if a.dtype != b.dtype or a.shape != b.shape:
    return False
  return np.array_equal(*(x.reshape(-1).view(np.uint8) for x in (a, b)))


def _nested(params: Mapping[str, np.ndarray]) -> dict[str, Any]:
  nested: dict[str, Any] = {}
  for path, leaf in params.items():
    *groups, last = path.split('/')
    node = nested
    for group in groups:
      node = node.setdefault(group, {})
    node[last] = leaf
  return nested


def _stored_dtype(
  config: ModelConfig, leaves: Mapping[str, Any], dtype: str | None
) -> np.dtype:
  """Checks the parameters; the dtype to store them in."""
  if dtype not in (None, 'float32', 'bfloat16'):
    raise errors.ConfigError(
      f'dtype = {dtype!r}; allowed: None | float32 | bfloat16'
    )
  expected = _shapes(config)
  problems = [
    f'{path}: found {found}, expected {wanted}'
    for path in sorted({*expected, *leaves})
    if (found := tuple(leaves[path].shape) if path in leaves else 'nothing')
    != (wanted := expected.get(path, 'nothing'))
  ]
  dtypes = {np.dtype(leaf.dtype) for leaf in leaves.values()}
  if dtype is None and (len(dtypes) != 1 or dtypes - set(_NUMPY_DTYPES)):
    problems.append(
      f'found dtypes {", ".join(sorted(map(str, dtypes)))}, expected one of'
      f' {", ".join(map(str, _NUMPY_DTYPES))} for all; or pass dtype'
    )
  _refuse(Path('params'), problems)
  return np.dtype(dtype) if dtype else dtypes.pop()


def _cut(
  slots: Mapping[str, _Slot], itemsize: int, max_shard_bytes: int
) -> dict[str, list[str]]:
  """Tensor names by file, in order, each file as full as it may be."""
  groups: list[list[str]] = []
  room = 0
  for name, slot in slots.items():
    size = math.prod(slot.shape) * itemsize
    if not groups or size > room:
      groups.append([])
      room = max_shard_bytes
    groups[-1].append(name)
    room -= size
  if len(groups) == 1:
    return {_SINGLE: groups[0]}
  total = len(groups)
  return {
    f'model-{number:05}-of-{total:05}.safetensors': names
    for number, names in enumerate(groups, start=1)
  }


def _index(
  slots: Mapping[str, _Slot], shards: Mapping[str, list[str]], itemsize: int
) -> dict[str, Any]:
  numbers = sum(math.prod(slot.shape) for slot in slots.values())
  weight_map = {name: file for file, names in shards.items() for name in names}
  return {
    'metadata': {'total_size': numbers * itemsize},
    'weight_map': weight_map,
  }


def _json_files(
  config: ModelConfig, dtype: str, tokenizer: Any, seq_len: int
) -> dict[str, dict[str, Any]]:
  """Content of the JSON files by name, for old and new transformers."""
  special = {
    # Absent would mean 1 and 2, which are ordinary bytes here.
    'bos_token_id': tokenizer.bos_id if tokenizer else None,
    'eos_token_id': tokenizer.eos_id if tokenizer else None,
  }
  described = {
    **_OURS,
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
    **special,
  }
  files = {'config.json': described, 'generation_config.json': special}
  if tokenizer and tokenizer.name == 'byte':
    files |= byte_tokenizer.files()
  return files


def _write_json_files(
  directory: Path, contents: Mapping[str, dict[str, Any]]
) -> None:
  for name, content in contents.items():
    path = directory / name
    written = (json.dumps(content, indent=2) + '\n').encode()
    path.write_bytes(written)
    if path.read_bytes() != written:
      raise OSError(f'{name} reads back different')


def _matrix(
  leaves: Mapping[str, Any], slot: _Slot, dtype: np.dtype
) -> np.ndarray:
  """One tensor as it is stored, contiguous."""
  matrix = np.asarray(leaves[slot.path][slot.index])
  shape = slot.shape[::-1] if slot.transposed else slot.shape
  matrix = matrix.reshape(shape)
  # safetensors 0.8.0 writes wrong numbers from arrays with other strides.
  return np.ascontiguousarray(matrix.T if slot.transposed else matrix, dtype)


def _write_shard(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  safetensors.numpy.save_file(dict(arrays), path, metadata={'format': 'pt'})
  for name, array in arrays.items():
    if not _same_bits(_read_tensor(path.parent, name, path.name), array):
      raise OSError(f'{name} in {path.name} reads back different')


def _refuse_foreign(root: Path) -> None:
  """Protects a model of somebody else, such as a download."""
  there = [n for n in ('config.json', _SINGLE, _INDEX) if (root / n).exists()]
  if not there and not any(root.glob(_SHARDS)):
    return
  try:
    ours = _OURS.items() <= _read_json(root, 'config.json').items()
  except errors.DataError:
    ours = False
  if not ours:
    raise OSError(
      'it holds a model that satjax did not write; choose another directory'
    )


def _move(temporary: Path, root: Path) -> None:
  """Replaces the old model; what an interruption leaves does not load.

  First the old weights go and the configuration comes, last what makes the
  weights whole: the index, or the one file.
  """
  for stale in (root / _SINGLE, root / _INDEX, *root.glob(_SHARDS)):
    stale.unlink(missing_ok=True)
  mode = (temporary / 'config.json').stat().st_mode
  last = (_SINGLE, _INDEX)
  for path in sorted(temporary.iterdir(), key=lambda file: file.name in last):
    path.chmod(mode)  # safetensors makes its files private to the user
    os.replace(path, root / path.name)
