"""Sources: a name such as 'stdlib:docs' or 'text:books/*.txt' to documents.

The order of the documents depends on their paths alone, never on the file
system.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
import re

from satjax import errors
from satjax.data import chunks, readers, stdlib, tfds
from satjax.data.chunks import Source
from satjax.data.documents import Document

_SPLIT = re.compile(r'\w*')  # of 'train[:50%]', what stands before the slice
FORMS = (
  'stdlib:docs (docstrings and language reference of Python)',
  'stdlib:code (the standard library of Python)',
  'stdlib:docstrings (pairs: a signature of Python, answered by its docstring)',
  'text:GLOB (text files, such as text:books/**/*.txt)',
  'jsonl:GLOB (one JSON object a line: a text in the field "text", a pair such'
  ' as "prompt" and "answer", or "messages" of a chat)',
  'parquet:GLOB (Parquet files; their columns as the fields of jsonl:)',
  'tfds:NAME (a dataset that TensorFlow Datasets prepared: its name or folder,'
  ' and ?SPLIT if not train; its features as the fields of jsonl:)',
  'tokens:DIR (a folder that satjax prepare wrote; in a configuration only)',
)


def find(source: str, columns: Sequence[str] = ()) -> Source:
  """Looks up one of `FORMS`; `columns` are those of `documents.from_record`.

  Raises:
    ConfigError: `source` has none of the known forms.
    DataError: nothing matches; also, while it is read, a file that cannot be
      used.
  """
  kind, _, name = source.partition(':')
  if kind in readers.READERS and name:
    return readers.source(source, columns)
  if kind == 'tfds' and name:
    return tfds.source(name, columns)
  if kind == 'tokens':
    raise errors.ConfigError(
      f'{source!r} holds tokens, and text is needed; name it in'
      ' config.data.train or config.data.eval'
    )
  if found := stdlib.source(source):
    return found
  allowed = '\n  '.join(FORMS)
  raise errors.ConfigError(
    f'{source!r} is not a known source; allowed:\n  {allowed}'
  )


def trained_names(
  source: str, trained: Sequence[str]
) -> Mapping[str, str] | None:
  """Which files of a source were trained on, and what they were called then.

  The name of a document decides whether it is held out, and the name of its
  file depends on the glob. What comes with Python counts as trained on: other
  sources there have the same texts.

  Args:
    trained: sources, and fingerprints of files (`identify`).

  Returns:
    From the name of each such file in `source` to that in `trained`. None: all
    of `source` was trained on, by the names that it has.

  Raises:
    DataError: `source` matches no file.
  """
  kind = source.partition(':')[0]
  if kind == 'stdlib' or _key(source) in map(_key, trained):
    return None
  if kind not in readers.READERS:
    return {}
  files = readers.matching(source)
  if readers.fingerprint(files) in trained:
    return None
  names = {}
  for other in trained:
    if other.partition(':')[0] == kind:
      with contextlib.suppress(errors.DataError):  # no longer there
        for file in readers.matching(other):
          names[os.path.realpath(file.path)] = file.name
  paths = {file.name: os.path.realpath(file.path) for file in files}
  return {name: names[path] for name, path in paths.items() if path in names}


def identify(source: str) -> list[str]:
  """A source, and the fingerprint of its files if it has some."""
  found = [source]
  if source.partition(':')[0] in readers.READERS:
    with contextlib.suppress(errors.DataError):
      found.append(readers.fingerprint(readers.matching(source)))
  return found


def _key(source: str) -> str:
  """The same for sources that are written differently."""
  kind, _, name = source.partition(':')
  if kind == 'tfds':  # slices of a split may have examples in common
    place, _, split = name.partition('?')
    return f'{kind}:{place}?{_SPLIT.match(split or "train")[0]}'
  if kind == 'tokens' or kind in readers.READERS:
    return f'{kind}:{os.path.realpath(os.path.expanduser(name))}'
  return source


def documents(
  source: str,
  columns: Sequence[str] = (),
  counts: Counter[str] | None = None,
) -> Iterator[Document]:
  """The documents of what `find` finds, in the order of their paths.

  `counts` gets what `documents.from_record` counts.
  """
  found = find(source, columns)
  counts = Counter() if counts is None else counts
  return (
    document
    for chunk in found.chunks(chunks.CHUNK_BYTES)
    for document in chunk.documents(counts)
  )
