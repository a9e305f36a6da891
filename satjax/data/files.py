"""Sources that are files which the user names with a glob."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import glob
import hashlib
import os
import pathlib
import re
from typing import BinaryIO, NamedTuple

from satjax import errors
from satjax.data.chunks import Chunk, Position, Source


class SourceFile(NamedTuple):
  """A file of a source."""

  name: str  # relative to the source, with forward slashes
  path: str
  size: int  # bytes


# From a file, where in it to start, and about how many bytes to read at a time.
Reader = Callable[[SourceFile, Position, int], Iterator[Chunk]]


def matching(source: str, pattern: str) -> list[SourceFile]:
  """The files that a source names.

  Raises:
    DataError: there is none.
  """
  pattern = os.path.expanduser(pattern)
  paths = [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
  if not paths:
    hint = 'check the path; ** stands for any folders'
    if os.path.isdir(pattern):
      hint = f'it is a folder; name its files: {source.rstrip("/")}/**/*'
    raise errors.DataError(
      f'{source!r} matches no file, seen from {os.getcwd()}; {hint}'
    )
  # Names, which decide the split, must not depend on where the data lies.
  root = os.path.dirname(re.split(r'[*?[]', pattern, maxsplit=1)[0]) or '.'
  return sorted(map(functools.partial(below, root), paths))


def below(root: str, path: str) -> SourceFile:
  """A file, named as seen from a folder above it."""
  name = pathlib.Path(os.path.relpath(path, root)).as_posix()
  with reading(path):
    return SourceFile(name, path, os.path.getsize(path))


def identity(files: Sequence[SourceFile]) -> str:
  """Changes with the names and sizes of files."""
  digest = hashlib.blake2b(digest_size=16)
  for name, _, size in files:
    digest.update(f'{name}\0{size}\n'.encode('utf-8', 'surrogateescape'))
  return digest.hexdigest()


def source(files: list[SourceFile], read: Reader) -> Source:
  """The source that consists of files.

  Args:
    files: in the order of their documents.
    read: what is in a file. `next` and `done` of its chunks are seen from the
      beginning of the file.
  """

  def chunks(start: Position, size: int) -> Iterator[Chunk]:
    first, *place = start or (0,)
    before = sum(file.size for file in files[:first])
    for number, file in enumerate(files[first:], first):
      for chunk in read(file, tuple(place), size):
        yield chunk._replace(
          next=(number, *chunk.next), done=before + chunk.done
        )
      before, place = before + file.size, ()

  return Source(identity(files), sum(file.size for file in files), chunks)


def read(path: str) -> bytes:
  with opened(path) as file:
    return file.read()


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
  """A file to read; explains why it cannot be."""
  with reading(path), open(path, 'rb') as file:
    yield file


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
  """Explains why a file cannot be read."""
  try:
    yield
  except OSError as error:
    raise errors.DataError(
      f'{path} cannot be read ({error.strerror}); fix its permissions, or'
      ' leave it out of the glob'
    ) from error
