"""Llama model directories in the layout of Hugging Face, in and out.

A directory holds `config.json` and `model.safetensors`, or shards and
`model.safetensors.index.json`. Pickled weights are never opened, nor is
anything outside the directory, and no weight is read before every header
agrees with the configuration.
"""

from collections.abc import Mapping
import json
import math
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from satjax import errors, tree
from satjax.config import ModelConfig
from satjax.interop import byte_tokenizer, llama, weights

_NUMPY_DTYPES = tuple(map(np.dtype, weights.DTYPES.values()))
_SHARDS = 'model-*-of-*.safetensors'
_TEMPORARY = '.saving-'
_OURS = {'written_by': 'satjax'}  # only such a directory is overwritten


def read_config(directory: str | os.PathLike) -> ModelConfig:
  """Reads the architecture from `config.json`.

  Raises:
    DataError: names every key that is missing, wrong or not implemented.
  """
  path = Path(directory) / 'config.json'
  config, problems = llama.config_of(weights.read_json(path.parent, path.name))
  weights.refuse(path, problems)
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
  slots = llama.slots(config)
  found, problems = weights.scan(directory)
  problems += weights.differences(config, slots, found)
  if config.tied:
    problems += weights.tied_problems(directory, found)
  weights.refuse(directory, problems)
  dtype = weights.DTYPES[found[next(iter(slots))].dtype]
  params = {
    path: np.empty(s, dtype) for path, s in llama.shapes(config).items()
  }
  for name, slot in slots.items():
    matrix = weights.read_tensor(directory, name, found[name].file)
    if not np.isfinite(matrix).all():
      problems.append(f'{name}: found NaN or infinity, expected finite numbers')
    out = params[slot.path][slot.index]
    out[...] = (matrix.T if slot.transposed else matrix).reshape(out.shape)
  weights.refuse(directory, problems)
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
  slots = llama.slots(config)
  shards = _cut(slots, dtype.itemsize, max_shard_bytes)
  contents = _json_files(config, dtype.name, tokenizer, seq_len)
  if len(shards) > 1:
    contents[weights.INDEX] = _index(slots, shards, dtype.itemsize)
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
  expected = llama.shapes(config)
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
  weights.refuse(Path('params'), problems)
  return np.dtype(dtype) if dtype else dtypes.pop()


def _cut(
  slots: Mapping[str, llama.Slot], itemsize: int, max_shard_bytes: int
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
    return {weights.SINGLE: groups[0]}
  total = len(groups)
  return {
    f'model-{number:05}-of-{total:05}.safetensors': names
    for number, names in enumerate(groups, start=1)
  }


def _index(
  slots: Mapping[str, llama.Slot],
  shards: Mapping[str, list[str]],
  itemsize: int,
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
  described = _OURS | llama.describe(config, dtype, seq_len) | special
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
  leaves: Mapping[str, Any], slot: llama.Slot, dtype: np.dtype
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
    if not weights.same_bits(
      weights.read_tensor(path.parent, name, path.name), array
    ):
      raise OSError(f'{name} in {path.name} reads back different')


def _refuse_foreign(root: Path) -> None:
  """Protects a model of somebody else, such as a download."""
  there = [
    n
    for n in ('config.json', weights.SINGLE, weights.INDEX)
    if (root / n).exists()
  ]
  if not there and not any(root.glob(_SHARDS)):
    return
  try:
    ours = _OURS.items() <= weights.read_json(root, 'config.json').items()
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
  for stale in (
    root / weights.SINGLE,
    root / weights.INDEX,
    *root.glob(_SHARDS),
  ):
    stale.unlink(missing_ok=True)
  mode = (temporary / 'config.json').stat().st_mode
  last = (weights.SINGLE, weights.INDEX)
  for path in sorted(temporary.iterdir(), key=lambda file: file.name in last):
    path.chmod(mode)  # safetensors makes its files private to the user
    os.replace(path, root / path.name)
