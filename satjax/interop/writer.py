"""Model directories written tensor by tensor, whole or not at all.

No more than one file of weights is held in memory. Everything goes to a
temporary folder first; what is there is replaced last.
"""

from collections.abc import Callable, Mapping, Sequence
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

from satjax import errors
from satjax.interop import checksums, weights

OURS = {'written_by': 'satjax'}  # only such a directory is overwritten
MAX_SHARD_BYTES = 5 * 2**30
_SHARDS = 'model-*-of-*.safetensors'
_TEMPORARY = '.saving-'


def write(
  directory: str | os.PathLike,
  shapes: Mapping[str, tuple[int, ...]],
  tensor: Callable[[str], np.ndarray],
  contents: Mapping[str, bytes],
  *,
  dtype: np.dtype,
  max_shard_bytes: int = MAX_SHARD_BYTES,
  tick: Callable[[int], None] = lambda num_bytes: None,
  stale: Sequence[str] = (),
) -> None:
  """Writes a model directory; a model that satjax wrote there is replaced.

  Args:
    directory: made if need be; other files in it stay.
    shapes: of the stored tensors, by name, in their order.
    tensor: from a name to that tensor, contiguous and of `dtype`. Called once
      each, in order.
    contents: other files by name; a config.json with `OURS` among them. The
      checksums of all files are added.
    dtype: of every tensor.
    max_shard_bytes: more weights than this go into several files; as much is
      held in memory.
    tick: called with the bytes of each tensor when it is made, and again when
      it is written and read back.
    stale: names of files that would contradict `contents`; deleted, unless
      they are among them.

  Raises:
    StorageError: the directory cannot be written, has too little room, holds
      a model that satjax did not write, or a file reads back different.
  """
  root = Path(directory).resolve()
  sizes = {n: math.prod(s) * dtype.itemsize for n, s in shapes.items()}
  shards = _cut(sizes, max_shard_bytes)
  contents, sums = dict(contents), {}
  if len(shards) > 1:
    contents[weights.INDEX] = to_json(_index(shards, sum(sizes.values())))
  try:
    _prepare(root, sum(sizes.values()) + sum(map(len, contents.values())))
    # Inside the directory, so that moving never crosses file systems.
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=root) as name:
      temporary = Path(name)
      for file, content in contents.items():
        _write_file(temporary / file, content)
        sums[file] = checksums.of(temporary / file)
      for file, names in shards.items():
        _write_shard(temporary / file, names, tensor, tick)
        sums[file] = checksums.of(temporary / file)
      content = to_json(checksums.describe(sums))
      _write_file(temporary / checksums.FILE, content)
      _move(temporary, root, stale)
  except (OSError, safetensors.SafetensorError) as error:
    if isinstance(error, errors.SatjaxError):
      raise
    raise errors.StorageError(f'{root} cannot be written: {error}') from error


def to_json(content: Mapping[str, Any]) -> bytes:
  return (json.dumps(content, indent=2) + '\n').encode()


def _prepare(root: Path, num_bytes: int) -> None:
  """Makes the directory, unless it is somebody else's or has no room."""
  if root.exists():
    _refuse_foreign(root)
    for leftover in root.glob(_TEMPORARY + '*'):
      shutil.rmtree(leftover)
  there = next(p for p in (root, *root.parents) if p.exists())
  free = shutil.disk_usage(there).free
  if num_bytes > free:
    raise OSError(
      f'it takes {num_bytes / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free;'
      ' make room, or choose a directory on another disk'
    )
  root.mkdir(parents=True, exist_ok=True)


def _cut(
  sizes: Mapping[str, int], max_shard_bytes: int
) -> dict[str, list[str]]:
  """Tensor names by file, in order, each file as full as it may be."""
  groups: list[list[str]] = []
  room = 0
  for name, size in sizes.items():
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
  shards: Mapping[str, list[str]], total_size: int
) -> dict[str, dict[str, Any]]:
  weight_map = {name: file for file, names in shards.items() for name in names}
  return {'metadata': {'total_size': total_size}, 'weight_map': weight_map}


def _write_file(path: Path, content: bytes) -> None:
  path.write_bytes(content)
  if path.read_bytes() != content:
    raise OSError(f'{path.name} reads back different')


def _write_shard(
  path: Path,
  names: list[str],
  tensor: Callable[[str], np.ndarray],
  tick: Callable[[int], None],
) -> None:
  """One file; what was written is compared, which the page cache makes cheap.

  safetensors 0.8.0 writes wrong numbers from arrays with other strides.
  """
  arrays = {}
  for name in names:
    arrays[name] = tensor(name)
    tick(arrays[name].nbytes)
  safetensors.numpy.save_file(arrays, path, metadata={'format': 'pt'})
  headers = weights.headers(path.parent, path.name)
  for name, array in arrays.items():
    if name not in headers or not weights.same_bits(
      weights.read_tensor(path.parent, headers[name]), array
    ):
      raise OSError(f'{name} in {path.name} reads back different')
    tick(array.nbytes)


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
    ours = OURS.items() <= weights.read_json(root, 'config.json').items()
  except errors.DataError:
    ours = False
  if not ours:
    raise OSError(
      'it holds a model that satjax did not write; choose another directory'
    )


def _move(temporary: Path, root: Path, stale: Sequence[str]) -> None:
  """Replaces the old model; what an interruption leaves does not load.

  First the old weights go and the configuration comes, last what makes the
  weights whole: the index, or the one file.
  """
  for old in (
    root / weights.SINGLE,
    root / weights.INDEX,
    *root.glob(_SHARDS),
    *(root / name for name in stale if not (temporary / name).exists()),
  ):
    old.unlink(missing_ok=True)
  mode = (temporary / 'config.json').stat().st_mode
  last = (weights.SINGLE, weights.INDEX)
  for path in sorted(temporary.iterdir(), key=lambda file: file.name in last):
    path.chmod(mode)  # safetensors makes its files private to the user
    os.replace(path, root / path.name)
