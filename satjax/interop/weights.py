"""Weights of a model directory: safetensors, checked before they are read."""

from collections import Counter
from collections.abc import Mapping
import json
import math
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from satjax import errors
from satjax.config.groups import ModelConfig
from satjax.data import special_tokens
from satjax.interop import llama

_MAX_SMALL_BYTES = 64 * 2**20
SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.ckpt')
_PLAIN = re.compile(r'[\w.+=@ -]+\.safetensors')
_PART = 2**20  # numbers that are looked at together
DTYPES = {'F32': np.float32, 'BF16': ml_dtypes.bfloat16, 'F16': np.float16}


class Header(NamedTuple):
  """A tensor of a file; its numbers begin at byte `start`."""

  file: str
  dtype: str
  shape: tuple[int, ...]
  start: int

  def __str__(self) -> str:
    return f'{self.dtype} {list(self.shape)}'


def read_json(directory: Path, name: str) -> dict[str, Any]:
  """The object in a JSON file; raises as `read_small`, and if it is none."""
  return special_tokens.parse(read_small(directory, name), directory / name)


def read_small(directory: Path, name: str) -> bytes:
  """A file that holds no weights.

  Raises:
    DataError: it is missing, a link that leaves the directory, or large.
    StorageError: it cannot be read.
  """
  path = directory / name
  if reason := unsafe(directory, name):
    raise errors.DataError(f'{path} {reason}')
  try:
    with path.open('rb') as file:
      content = file.read(_MAX_SMALL_BYTES + 1)
  except OSError as error:
    raise errors.StorageError(f'{path} cannot be read: {error}') from error
  if len(content) > _MAX_SMALL_BYTES:
    raise errors.DataError(f'{path} is larger than {_MAX_SMALL_BYTES} bytes')
  return content


def unsafe(directory: Path, name: str) -> str | None:
  """Why a file may not be opened, or None."""
  path = directory / name
  if not os.path.lexists(path):
    if directory.suffix == '.gguf':
      return f'is missing; first: satjax fetch {directory} --out=MODEL_DIR'
    return 'is missing'
  root = os.path.realpath(directory)
  allowed = [root, os.path.join(root, special_tokens.TEMPLATES)]
  if directory.parent.name == 'snapshots':  # of the hub's cache, which links
    allowed.append(os.path.realpath(directory.parents[1] / 'blobs'))
  if os.path.dirname(os.path.realpath(path)) not in allowed:
    return (
      'is a link that leaves the directory; copy the file itself here (hf'
      ' download --local-dir does)'
    )
  if not os.path.isfile(path):
    return 'is not a file'
  return None


def refuse(where: Path, problems: list[str]) -> None:
  """Raises one error that lists all problems, if there are any."""
  if problems:
    text = '\n  '.join([f'{where} cannot be used:', *problems])
    # Names from a file may hold what a terminal cannot print.
    raise errors.DataError(text.encode('utf-8', 'backslashreplace').decode())


def scan(directory: Path) -> tuple[dict[str, Header | None], list[str]]:
  """Reads the headers of all weight files.

  Returns:
    Headers by tensor name, None where a problem already says why there is
    none; and the problems.
  """
  weight_map, problems = _weight_map(directory)
  found: dict[str, Header | None] = {}
  lost = set()
  files = sorted(set(weight_map.values()) - {None}) if weight_map else [SINGLE]
  for file in files:
    try:
      found_here = headers(directory, file)
    except OSError as error:
      problems.append(f'{file} {error}')
      lost.add(file)
      continue
    for name, header in found_here.items():
      if name in found:
        problems.append(f'{name}: found again in {file}, expected once')
      elif weight_map and (weight_map.get(name) or file) != file:
        problems.append(
          f'{name}: found in {file}, expected in {weight_map[name]}'
        )
      found[name] = header
  if SINGLE in lost and not weight_map:
    refuse(directory, problems)
  for name, file in weight_map.items():
    if name not in found:
      found[name] = None
      if file and file not in lost:
        problems.append(f'{name}: found nowhere, expected in {file}')
  return found, problems


def _weight_map(directory: Path) -> tuple[dict[str, str | None], list[str]]:
  """Which file holds which tensor; nothing when there is a single file."""
  single, index = (os.path.lexists(directory / n) for n in (SINGLE, INDEX))
  if single and index:
    problem = f'{SINGLE} and {INDEX} are both there; remove the stale one'
    refuse(directory, [problem])
  if single:
    return {}, []
  if not index:
    refuse(directory, [_no_weights(directory)])
  weight_map = read_json(directory, INDEX).get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    refuse(directory, [f'{INDEX} has no weight_map'])
  problems = []
  for name, file in weight_map.items():
    if not isinstance(file, str) or not _PLAIN.fullmatch(file):
      problems.append(
        f'{name}: found {errors.brief(file)} in {INDEX}, expected the plain'
        ' name of a .safetensors file in the same directory'
      )
      weight_map[name] = None
  return weight_map, problems


def _no_weights(directory: Path) -> str:
  names = sorted(path.name for path in directory.iterdir())
  expected = f'expected {SINGLE}, or shards and {INDEX}'
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


def headers(directory: Path, file: str) -> dict[str, Header]:
  """What a file holds, by tensor name.

  Raises:
    OSError: says why the file cannot be used.
  """
  if reason := unsafe(directory, file):
    raise OSError(reason)
  try:
    with safetensors.safe_open(directory / file, framework='numpy'):
      pass  # It checks the whole header, and that the numbers are all there.
  except safetensors.SafetensorError as error:
    raise OSError(f'is not a whole safetensors file: {error}') from error
  # 8 bytes hold the length of the header, which is JSON; the numbers follow
  # (safetensors, README). The library keeps the offsets to itself, and its own
  # arrays are copies, which take as long as the disk does.
  with (directory / file).open('rb') as opened:
    length = int.from_bytes(opened.read(8), 'little')
    entries = json.loads(opened.read(length))
  entries.pop('__metadata__', None)
  return {
    name: Header(
      file,
      entry['dtype'],
      tuple(entry['shape']),
      8 + length + entry['data_offsets'][0],
    )
    for name, entry in entries.items()
  }


def unfuse(
  config: ModelConfig, found: Mapping[str, Header | None]
) -> tuple[dict[str, Header | None], list[str]]:
  """The headers of a Llama out of those of a Phi-3, as `scan` returns them.

  Each part of a fused matrix gets a header of its own, where it is in the file.
  """
  slots, found, problems = llama.slots(config), dict(found), []
  for layer in range(config.num_layers):
    for template, paths in llama.FUSED.items():
      whole = template.format(layer)
      names = [llama.TENSORS[path][0].format(layer) for path in paths]
      shape = (sum(slots[n].shape[0] for n in names), config.embed_dim)
      is_known = whole in found and not found[whole]  # why there is none
      header = found.pop(whole, None)
      if not header or header.shape != shape:
        if not is_known:
          problems.append(
            f'{whole}: found {header or "nothing"}, expected {[*shape]}'
          )
        found |= dict.fromkeys(names)
        continue
      start = header.start
      # Of an unknown type, which is refused later, any size will do.
      size = np.dtype(DTYPES.get(header.dtype, np.uint8)).itemsize
      for name in names:
        shape = slots[name].shape
        found[name] = header._replace(shape=shape, start=start)
        start += math.prod(shape) * size
  return found, problems


def differences(
  directory: Path, config: ModelConfig, found: Mapping[str, Header | None]
) -> list[str]:
  """What is missing, misshaped, of another dtype, or too much."""
  slots = llama.slots(config)
  dtypes = Counter(
    header.dtype
    for name, header in found.items()
    if header and name in slots and header.dtype in DTYPES
  )
  # The dtype of most tensors, so that the odd ones are named.
  dtype = dtypes.most_common(1)[0][0] if dtypes else ' | '.join(DTYPES)
  problems = []
  for name, slot in slots.items():
    expected = f'{dtype} {list(slot.shape)}'
    if name not in found:
      problems.append(f'{name}: found nothing, expected {expected}')
    elif found[name] and str(found[name]) != expected:
      problems.append(f'{name}: found {found[name]}, expected {expected}')
  embed, head = (llama.TENSORS[path][0] for path in ('embed', 'unembed'))
  legal = {*slots, head} if config.tied else set(slots)
  for name, header in found.items():
    if header and name not in legal and not llama.IGNORED.fullmatch(name):
      problems.append(f'{name}: found {header}, expected no such tensor')
  if config.tied and found.get(embed) and found.get(head):
    problems += _tied_problems(directory, found[embed], found[head])
  return problems


def _tied_problems(directory: Path, embed: Header, head: Header) -> list[str]:
  """A tied output matrix may be stored, if it is the embedding."""
  if str(embed) != str(head):
    return [f'lm_head.weight: found {head}, expected {embed} as embeddings']
  if head.dtype in DTYPES and not same_bits(
    read_tensor(directory, embed), read_tensor(directory, head)
  ):
    return [
      'lm_head.weight: found numbers that differ from the embedding, expected'
      ' the same, or tie_word_embeddings false in config.json'
    ]
  return []


def read_tensor(directory: Path, header: Header) -> np.ndarray:
  """A tensor as it is stored: a view of the file that cannot be written.

  Mapped anew for each tensor, so that pages that were read do not pile up.
  """
  dtype = np.dtype(DTYPES[header.dtype])
  if 0 in header.shape:
    return np.empty(header.shape, dtype)
  mapped = np.memmap(
    directory / header.file, dtype, 'r', header.start, header.shape
  )
  return np.asarray(mapped)


def with_rows(table: np.ndarray, count: int) -> np.ndarray:
  """A table `[V, D]` with rows added up to `count`, the mean of the others."""
  if len(table) == count:
    return table
  mean = table.mean(axis=0, dtype=np.float64).astype(table.dtype)
  more = np.broadcast_to(mean, (count - len(table), *mean.shape))
  return np.concatenate([table, more])


def is_finite(x: np.ndarray) -> bool:
  """Whether no number is NaN or infinite."""
  flat = x.reshape(-1)
  # In parts that stay in the cache.
  parts = range(0, flat.size, _PART)
  return all(np.isfinite(flat[i : i + _PART]).all() for i in parts)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether dtype, shape and every bit are the same, that of a NaN too."""
  if a.dtype != b.dtype or a.shape != b.shape:
    return False
  bits = f'u{a.dtype.itemsize}'
  a, b = (x.reshape(-1).view(bits) for x in (a, b))
  parts = range(0, a.size, _PART)
  return all(np.array_equal(a[i : i + _PART], b[i : i + _PART]) for i in parts)
