"""Datasets that TensorFlow Datasets prepared, read without TensorFlow.

Of its formats only array_record and parquet can be read so. The code of a
dataset is not needed, and never run.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import functools
import os
from typing import Any

from satjax import errors
from satjax.data import chunks
from satjax.data.chunks import Chunk, Source
from satjax.data.documents import Document

_REMEDY = (
  "prepare it with file_format='array_record' on a machine that has TensorFlow,"
  ' or write it as Parquet and use parquet:GLOB'
)


def source(name: str, columns: Sequence[str]) -> Source:
  """A prepared dataset.

  Args:
    name: NAME[/CONFIG][:VERSION] below the folder of TFDS_DATA_DIR, or the
      folder of a version; then ?SPLIT, if not train, as TFDS slices them.

  Raises:
    DataError: it is not there, or in a format that needs TensorFlow.
  """
  full_name, examples, average = _opened(name)
  count = len(examples)

  def read(size: int) -> Iterator[Chunk]:
    step = max(1, size // average)
    for begin in range(0, count, step):
      end = min(count, begin + step)
      made = functools.partial(_documents, name, begin, end, tuple(columns))
      yield Chunk(made, average * (end - begin), average * end)

  return Source(f'{full_name} {count} {average}', average * count, read)


def folder(name: str) -> str:
  """Where the files of a prepared dataset lie; raises as `source`."""
  return str(_builder(name.partition('?')[0]).data_dir)


def _documents(
  name: str, begin: int, end: int, columns: Sequence[str], counts: Counter[str]
) -> Iterator[Document]:
  full_name, examples, _ = _opened(name)
  for number in range(begin, end):
    id, place = f'{full_name}#{number}', f'tfds:{name}, example {number}'
    record = chunks.text_of(examples[number])
    yield from chunks.of_record(record, columns, id, place, counts)


@functools.cache  # each process opens it once
def _opened(name: str) -> tuple[str, Any, int]:
  """A split: its full name, its examples, and the bytes of one on average."""
  place, _, split = name.partition('?')
  split = split or 'train'
  builder = _builder(place)
  whole = builder.info.splits
  try:
    examples = builder.as_data_source(split)
  except (NotImplementedError, ModuleNotFoundError) as error:
    raise errors.DataError(
      f'tfds:{name} was prepared as {builder.info.file_format.value}, which'
      f' only TensorFlow reads; {_REMEDY}'
    ) from error
  except (KeyError, ValueError) as error:
    raise errors.DataError(
      f'tfds:{name} has no split {split!r}; it has {", ".join(whole)}'
    ) from error
  size = sum(part.num_bytes for part in whole.values())
  count = sum(part.num_examples for part in whole.values())
  average = max(1, size // max(1, count))
  return f'{builder.info.full_name}?{split}', examples, average


def _builder(place: str) -> Any:
  """What describes a prepared dataset: of a folder, or of a name."""
  import tensorflow_datasets

  core = tensorflow_datasets.core
  path = os.path.expanduser(place)
  try:
    if os.path.isdir(path):
      return tensorflow_datasets.builder_from_directory(path)
    return core.read_only_builder.builder_from_files(place)
  except (
    core.DatasetNotFoundError,
    core.dataset_info.DatasetInfoFileError,
    ValueError,
  ) as error:
    raise errors.DataError(
      f'tfds:{place} is not a prepared dataset: there is none in'
      f' {core.constants.DATA_DIR} (TFDS_DATA_DIR), nor is it a folder with a'
      f' dataset_info.json; satjax downloads nothing; {_REMEDY}'
    ) from error
