"""Files that are written whole or not at all."""

import json
import os
import pathlib
from typing import Any

from satjax import errors


def write(path: pathlib.Path, content: bytes | str) -> None:
  """Replaces a file; it is on disk when this returns.

  Raises:
    OSError: it cannot be written; what was there before stays.
  """
  if isinstance(content, str):
    content = content.encode()
  temporary = path.with_name(f'{path.name}.tmp')
  try:
    with temporary.open('wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise
  sync(path.parent)


def save(path: pathlib.Path, content: bytes | str) -> None:
  """`write` where a user wants it, with the folders above it.

  Raises:
    StorageError: it cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content)
  except OSError as error:
    raise errors.StorageError(
      f'cannot write {path}: {error.strerror}; choose another place'
    ) from error


def write_json(path: pathlib.Path, value: object) -> None:
  """The same for a value that JSON can hold."""
  write(path, to_json(value))


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """What `write_json` wrote; DataError: it is damaged, or not there."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    found = error
  if not isinstance(found, dict) or not found:
    raise errors.DataError(f'{path} is damaged ({found}); remove it or its run')
  return found


def to_json(value: object) -> bytes:
  """The content of a JSON file that a person may read."""
  return (json.dumps(value, indent=2) + '\n').encode()


def sync(folder: pathlib.Path) -> None:
  """Waits until the names in a folder are on disk."""
  number = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)
