"""Sources: a name such as 'stdlib:docs' or 'text:books/*.txt' to documents.

The order of the documents depends on their paths alone, never on the file
system.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from satjax import errors
from satjax.data import chunks, readers, stdlib, tfds
from satjax.data.chunks import Source
from satjax.data.documents import Document

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
    for chunk in found.chunks((), chunks.CHUNK_BYTES)
    for document in chunk.documents(counts)
  )
