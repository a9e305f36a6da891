"""Checksums of a model directory: written beside it, compared by `inspect`."""

from collections.abc import Callable, Mapping
import hashlib
from pathlib import Path
from typing import Any

from satjax import errors
from satjax.interop import weights

FILE = 'checksums.json'
ALGORITHM = 'sha256'
_PART = 2**20  # bytes that are read together


def of(path: Path, tick: Callable[[int], None] = lambda size: None) -> str:
  """The checksum of a file, read in parts.

  Args:
    path: of the file.
    tick: called with the bytes of each part.

  Raises:
    StorageError: it cannot be read.
  """
  digest = hashlib.new(ALGORITHM)
  try:
    with path.open('rb') as file:
      while part := file.read(_PART):
        digest.update(part)
        tick(len(part))
  except OSError as error:
    raise errors.StorageError(f'{path} cannot be read: {error}') from error
  return digest.hexdigest()


def describe(sums: Mapping[str, str]) -> dict[str, Any]:
  """Content of the file, from the checksums by file name."""
  return {'algorithm': ALGORITHM, 'files': dict(sorted(sums.items()))}


def read(directory: Path) -> dict[str, Any] | None:
  """The checksums by file name; None: the directory has none.

  Raises:
    DataError: the file is damaged, or of another kind.
  """
  if not (directory / FILE).exists():
    return None
  content = weights.read_json(directory, FILE)
  found = content.get('algorithm')
  if found != ALGORITHM:
    raise errors.DataError(
      f'{FILE}: algorithm = {errors.brief(found)}; supported: {ALGORITHM!r}'
    )
  if not isinstance(content.get('files'), dict):
    raise errors.DataError(f'{FILE} has no files; expected checksums by name')
  return content['files']
