"""Model directories written tensor by tensor, whole or not at all.

No more than one file of weights is held in memory. Everything goes to a
temporary folder first; what is there is replaced last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import math
import os
from pathlib import Path
import shutil
import tempfile

import numpy as np
import safetensors
import safetensors.numpy

from satjax import console, errors, files
from satjax.interop import weights

OURS = {'written_by': 'satjax'}  # only such a directory is overwritten
MAX_SHARD_BYTES = 5 * 2**30
CHECKSUMS = 'checksums.json'
CARD = 'README.md'
CARD_MARK = 'written_by: satjax'  # in the card itself
ALGORITHM = 'sha256'
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
  stale: Sequence[str] = (),
) -> None:
  """Writes a model directory; a model that satjax wrote there is replaced.

  Other files stay, and so does a card that somebody else wrote. The checksums
  of all that is written are added, but that of the card, which people edit.

  Args:
    shapes: of the stored tensors, by name, in their order.
    tensor: from a name to that tensor, contiguous; called once each, in order.
    contents: other files by name; a config.json with `OURS` among them.
    stale: files to delete, unless they are in `contents`.

  Raises:
    StorageError: the directory cannot be written, has too little room, holds
      a model that satjax did not write, or a file reads back different.
  """
  root = Path(directory).resolve()
  sizes = {n: math.prod(s) * dtype.itemsize for n, s in shapes.items()}
  shards = _cut(sizes, max_shard_bytes)
  total = sum(sizes.values())
  contents, sums = without_foreign_card(root, contents), {}
  if len(shards) > 1:
    contents[weights.INDEX] = _index(shards, total)

  # An interruption leaves what does not load: the old weights go first, and
  # what makes the new ones whole comes last, the index or the one file.
  whole = (weights.SINGLE, weights.INDEX)
  shards_there = [path.name for path in root.glob(_SHARDS)]
  with (
    console.Progress('weights', 2 * total) as bar,  # made, and read back
    replacing(
      root,
      foreign_model,
      num_bytes=total + sum(map(len, contents.values())),
      stale=[*whole, *shards_there, *(n for n in stale if n not in contents)],
      last=whole,
    ) as temporary,
  ):
    for file, content in contents.items():
      write_file(temporary / file, content)
      if file != CARD:
        sums[file] = checksum(temporary / file)
    for file, names in shards.items():
      arrays = {}
      for name in names:
        arrays[name] = tensor(name)
        bar.advance(sizes[name])
      write_tensors(temporary / file, arrays, tick=bar.advance)
      sums[file] = checksum(temporary / file)
    listed = {'algorithm': ALGORITHM, 'files': dict(sorted(sums.items()))}
    write_file(temporary / CHECKSUMS, files.to_json(listed))


def _index(shards: Mapping[str, Sequence[str]], total: int) -> bytes:
  """Which file has which tensor."""
  owners = {name: file for file, names in shards.items() for name in names}
  index = {'metadata': {'total_size': total}, 'weight_map': owners}
  return files.to_json(index)


@contextlib.contextmanager
def replacing(
  root: Path,
  foreign: Callable[[Path], str | None],
  *,
  num_bytes: int,
  stale: Sequence[str] = (),
  last: Sequence[str] = (),
) -> Iterator[Path]:
  """A folder whose files go to `root` when all of them are written.

  The root is made if need be; other files in it stay.

  Args:
    foreign: names what is somebody else's in an existing directory, if it is.
    num_bytes: that the files will take.
    stale: names of files that are deleted before any is moved.
    last: names of files that are moved after the others.

  Raises:
    StorageError: there is too little room, or any OSError.
  """
  try:
    if root.exists():
      if what := foreign(root):
        raise OSError(
          f'it holds {what} that satjax did not write; choose another directory'
        )
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
    # Inside the directory, so that moving never crosses file systems.
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=root) as name:
      temporary = Path(name)
      yield temporary
      for old in stale:
        (root / old).unlink(missing_ok=True)
      written = [path for path in temporary.rglob('*') if path.is_file()]
      written.sort(key=lambda file: file.name in last)
      # safetensors makes its files private to the user.
      mode = next(f for f in written if f.suffix == '.json').stat().st_mode
      for path in written:
        path.chmod(mode)
        target = root / path.relative_to(temporary)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
  except errors.StorageError:
    raise
  except (OSError, safetensors.SafetensorError) as error:
    raise errors.StorageError(f'{root} cannot be written: {error}') from error


def write_file(path: Path, content: bytes) -> None:
  """Writes a file in a temporary folder, and reads it back."""
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content)
  if path.read_bytes() != content:
    raise OSError(f'{path.name} reads back different')


def write_tensors(
  path: Path,
  arrays: Mapping[str, np.ndarray],
  *,
  marks: Mapping[str, str] | None = None,
  tick: Callable[[int], None] = lambda num_bytes: None,
) -> None:
  """The same for tensors; the page cache makes reading back cheap.

  The arrays have to be contiguous: safetensors 0.8.0 writes wrong numbers from
  others. `marks` go into the header; `tick` is told the bytes of each array
  that reads back.
  """
  metadata = {'format': 'pt', **(marks or {})}
  safetensors.numpy.save_file(dict(arrays), path, metadata=metadata)
  headers = weights.headers(path.parent, path.name)
  for name, array in arrays.items():
    if name not in headers or not weights.same_bits(
      weights.read_tensor(path.parent, headers[name]), array
    ):
      raise OSError(f'{name} in {path.name} reads back different')
    tick(array.nbytes)


def checksum(path: Path) -> str:
  """By `ALGORITHM`; StorageError: the file cannot be read."""
  try:
    with path.open('rb') as file:
      return hashlib.file_digest(file, ALGORITHM).hexdigest()
  except OSError as error:
    raise errors.StorageError(f'{path} cannot be read: {error}') from error


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


def foreign_model(root: Path) -> str | None:
  """Protects a model of somebody else, such as a download."""
  names = ('config.json', weights.SINGLE, weights.INDEX)
  if any((root / n).exists() for n in names) or any(root.glob(_SHARDS)):
    with contextlib.suppress(errors.DataError):
      if OURS.items() <= weights.read_json(root, 'config.json').items():
        return None
    return 'a model'
  return None


def without_foreign_card(
  root: Path, contents: Mapping[str, bytes]
) -> dict[str, bytes]:
  """Files to write, less the card where one stands that is not of satjax."""
  try:
    is_foreign = CARD_MARK not in (root / CARD).read_text('utf-8', 'replace')
  except OSError:
    is_foreign = False
  return {n: x for n, x in contents.items() if not (is_foreign and n == CARD)}
