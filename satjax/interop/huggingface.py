"""Llama model directories in the layout of Hugging Face, in and out.

A directory holds `config.json` and `model.safetensors`, or shards and
`model.safetensors.index.json`. Pickled weights are never opened, nor is
anything outside the directory, and no weight is read before every header
agrees with the configuration.
"""

import collections
from collections.abc import Callable, Mapping
import dataclasses
import functools
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from satjax import console, errors, files, tree
from satjax.config.groups import ModelConfig
from satjax.data import special_tokens, subword
from satjax.interop import llama, small_files, weights, writer
from satjax.interop.small_files import Settings

MAX_LENGTH = 2048  # where nothing is said, as transformers has it
_NUMPY_DTYPES = tuple(map(np.dtype, weights.DTYPES.values()))


def read_config(directory: str | os.PathLike) -> ModelConfig:
  """Reads the architecture from `config.json`.

  Raises:
    DataError: names every key that is missing, wrong or not implemented.
  """
  directory = Path(directory)
  config, problems = llama.config_of(
    weights.read_json(directory, small_files.CONFIG)
  )
  weights.refuse(directory / small_files.CONFIG, problems)
  return config


def family(directory: str | os.PathLike) -> str:
  """The family of a directory whose `config.json` is as it should be."""
  return llama.family_of(
    weights.read_json(Path(directory), small_files.CONFIG), []
  )


def max_length(directory: str | os.PathLike) -> int:
  """Tokens that a model reads at once, by its `config.json`.

  Raises:
    DataError: it says what is no length.
  """
  stored = Settings.read(directory).config
  return _length_of(stored, Path(directory)) or MAX_LENGTH


def longest(seq_len: int, base: Settings) -> int:
  """The same of a model that was made of `base`, in rows of `seq_len`."""
  least = MAX_LENGTH if base.config else 0
  return max(seq_len, _length_of(base.config) or least)


def _length_of(stored: Mapping[str, Any], where: Path = Path()) -> int | None:
  length = stored.get('max_position_embeddings')
  if length and (type(length) is not int or length < 1):
    problem = f'max_position_embeddings = {errors.brief(length)}'
    weights.refuse(where, [f'{problem}; allowed: at least 1'])
  return length


# Rows and columns of a leaf, as a device asks for its part, to numbers.
Read = Callable[[tuple[slice, ...]], np.ndarray]


def _whole(path: str, shape: tuple[int, ...], read: Read) -> np.ndarray:
  del path
  return read((slice(None),) * len(shape))


def load(
  directory: str | os.PathLike,
  place: Callable[[str, tuple[int, ...], Read], Any] = _whole,
  vocab_size: int = 0,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Reads a model: its configuration and its parameters.

  Args:
    place: makes a leaf of its path, its shape and a function that reads any
      part of it, so that a model that is split over devices, or over hosts, is
      never whole in one memory. Default: a NumPy array.
    vocab_size: rows of the tables of words, if they are to be more than there
      are; the others are their mean.

  Returns:
    The leaves are nested, and in the stored dtype: float32, bfloat16, float16.

  Raises:
    DataError: names every problem of config.json; if it has none, every
      problem of the headers; if they have none, every tensor with NaN.
    StorageError: a file cannot be read.
  """
  directory = Path(directory)
  config, headers = check(directory)
  words = max(vocab_size, config.vocab_size)
  config = dataclasses.replace(config, vocab_size=words)
  problems, parts = [], collections.defaultdict(list)
  for name, slot in llama.slots(config).items():
    parts[slot.path].append((name, slot))

  def read(path, shape, index):
    is_stacked = parts[path][0][1].index is not ...
    chosen = parts[path][index[0]] if is_stacked else parts[path]
    found = []
    for name, slot in chosen:
      matrix = weights.read_tensor(directory, headers[name])
      if tree.AXES[path][0] == 'vocab':
        matrix = weights.with_rows(matrix, words)
      inner = 1 if is_stacked else 0
      part = from_stored(matrix, slot, shape[inner:])[index[inner:]]
      if not weights.is_finite(part):
        problems.append(not_finite(name))
      found.append(part)
    return np.stack(found) if is_stacked else np.array(found[0])

  params = {
    path: place(path, shape, functools.partial(read, path, shape))
    for path, shape in tree.shapes(config).items()
  }
  weights.refuse(directory, list(dict.fromkeys(problems)))
  return config, tree.unflatten(params)


def check(
  directory: str | os.PathLike,
) -> tuple[ModelConfig, dict[str, weights.Header]]:
  """What `load` would read: the configuration, and every tensor of it.

  Raises:
    DataError, StorageError: as `load`, but for numbers, which are not read.
  """
  directory = Path(directory)
  config = read_config(directory)
  found, problems = weights.scan(directory)
  if family(directory) == 'phi3':
    found, more = weights.unfuse(config, found)
    problems += more
  problems += weights.differences(directory, config, found)
  weights.refuse(directory, problems)
  return config, {name: found[name] for name in llama.slots(config)}


def copy(source: str | os.PathLike, directory: str | os.PathLike) -> None:
  """Copies a model directory with its tokenizer, and checks what it holds.

  Raises:
    DataError: as `check`.
    StorageError: as `writer.replacing`.
  """
  source = Path(source)
  _, headers = check(source)
  names = {header.file for header in headers.values()}
  names |= {path.name for path in source.glob('*.json')} - {writer.CHECKSUMS}
  names |= {path.name for path in source.glob('*.jinja')}
  names |= {path.name for path in source.glob('*.model')}
  names |= {*_templates(source)}
  size = sum((source / name).stat().st_size for name in names)
  with (
    console.Progress('files', size) as bar,
    writer.replacing(
      Path(directory), writer.foreign_model, num_bytes=size
    ) as temporary,
  ):
    for name in sorted(names):
      (temporary / name).parent.mkdir(exist_ok=True)
      shutil.copyfile(source / name, temporary / name)
      bar.advance((source / name).stat().st_size)


def _templates(directory: str | os.PathLike) -> list[str]:
  """Names of the files of chat templates that have names of their own."""
  found = Path(directory).glob(f'{special_tokens.TEMPLATES}/*.jinja')
  return [f'{special_tokens.TEMPLATES}/{path.name}' for path in found]


def not_finite(name: str) -> str:
  """The problem of a tensor whose numbers are not all finite."""
  return f'{name}: found NaN or infinity, expected finite numbers'


def save(
  directory: str | os.PathLike,
  config: ModelConfig,
  params: Mapping[str, Any],
  *,
  dtype: str | None = None,
  max_shard_bytes: int = writer.MAX_SHARD_BYTES,
  tokenizer: Any = None,
  stop_id: int | None = None,
  seq_len: int = 2048,
  base: Settings | None = None,
  template: str | None = None,
  card: str = '',
) -> None:
  """Writes a model directory that transformers 4 and 5 read; see `writer`.

  Args:
    params: JAX or NumPy arrays of `tree.AXES`, all of one dtype.
    dtype: 'float32' or 'bfloat16' to cast to; None keeps the dtype.
    tokenizer: its special ids are noted, rows without a token are named as
      `suppress_tokens`, and its files written for AutoTokenizer; those of
      another tokenizer are taken away.
    stop_id: token that ends an answer in a chat; generation ends there too.
    seq_len: tokens of the longest row; see `longest`.
    base: of the model that this one was made of; what it says stays.
    template: the chat template; None: the tokenizer's own.
    card: text of a README.md; one that another wrote there stays.

  Raises:
    DataError: `params` are not those of `config`; names every difference.
    StorageError: as `writer.write`.
  """
  leaves = tree.flatten(params)
  dtype = _stored_dtype(config, leaves, dtype)
  slots, base = llama.slots(config), base or Settings()
  # Absent ids would mean 1 and 2, which are ordinary bytes here.
  special = dict.fromkeys(('bos_token_id', 'eos_token_id'))
  said, contents = Settings(special, special), {}
  if tokenizer:
    said = small_files.described(base, tokenizer, config.vocab_size, stop_id)
    contents |= small_files.tokenizer_files(tokenizer, template)
    base = base.of(tokenizer)
  length = longest(seq_len, base)
  model = llama.describe(config, dtype.name, length, base.config)
  model |= writer.OURS | said.config
  contents |= {
    small_files.CONFIG: files.to_json(model),
    small_files.GENERATION: files.to_json(said.generation),
  }
  if card:
    contents[writer.CARD] = card.encode()
  writer.write(
    directory,
    {name: slot.shape for name, slot in slots.items()},
    lambda n: to_stored(leaves[slots[n].path][slots[n].index], slots[n], dtype),
    contents,
    dtype=dtype,
    max_shard_bytes=max_shard_bytes,
    stale=[*subword.FILES, *_templates(directory)] if tokenizer else (),
  )


def _stored_dtype(
  config: ModelConfig, leaves: Mapping[str, Any], dtype: str | None
) -> np.dtype:
  """Checks the parameters; the dtype to store them in."""
  if dtype not in (None, 'float32', 'bfloat16'):
    raise errors.ConfigError(
      f'dtype = {dtype!r}; allowed: None | float32 | bfloat16'
    )
  expected = tree.shapes(config)
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


def from_stored(
  matrix: np.ndarray, slot: llama.Slot, shape: tuple[int, ...]
) -> np.ndarray:
  """A stored tensor in the layout of `tree.AXES`, of one layer."""
  return (matrix.T if slot.transposed else matrix).reshape(shape)


def to_stored(array: Any, slot: llama.Slot, dtype: np.dtype) -> np.ndarray:
  """The inverse: a tensor as it is stored, contiguous."""
  shape = slot.shape[::-1] if slot.transposed else slot.shape
  matrix = np.asarray(array).reshape(shape)
  return np.ascontiguousarray(matrix.T if slot.transposed else matrix, dtype)
