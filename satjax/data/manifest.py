"""What a prepared table consists of: its table.json."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from satjax import errors

FORMAT = 1
NAME = 'table.json'
# What tables were made with before it was a setting.
ADDED = {'test': 0.0}


@dataclasses.dataclass
class WrittenFile:
  """A file, and how to tell whether it is what was written."""

  name: str
  num_bytes: int
  sha256: str


@dataclasses.dataclass
class Shard(WrittenFile):
  """A file of tokens."""

  num_tokens: int


@dataclasses.dataclass
class Split:
  """The documents of one split of a part.

  Attributes:
    has_turns: whether some are pairs or conversations.
    starts: the file that says where they begin; None: it is not finished.
    shards: in order.
  """

  num_documents: int = 0
  num_tokens: int = 0
  has_turns: bool = False
  starts: WrittenFile | None = None
  shards: list[Shard] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Part:
  """What came of one source.

  Attributes:
    counts: of its documents: how many it has, and how many were left out why.
    splits: by name.
  """

  source: str
  weight: float
  counts: dict[str, int]
  splits: dict[str, Split]


@dataclasses.dataclass
class Manifest:
  """A prepared table.

  Attributes:
    made_from: everything that the tokens depend on.
    tokenizer: its name and sizes.
    dtype: of a token.
    parts: by number.
  """

  made_from: dict[str, Any]
  tokenizer: dict[str, Any]
  dtype: str
  parts: list[Part]

  def to_json(self) -> dict[str, Any]:
    return {'format': FORMAT, **dataclasses.asdict(self)}

  @classmethod
  def from_json(cls, described: dict[str, Any]) -> 'Manifest':
    fields = {key: described[key] for key in described if key != 'format'}
    return cls(**fields | {'parts': [_part(p) for p in fields['parts']]})


def _part(described: dict[str, Any]) -> Part:
  splits = {}
  for name, split in described['splits'].items():
    files = {'shards': [Shard(**shard) for shard in split['shards']]}
    if split['starts']:
      files['starts'] = WrittenFile(**split['starts'])
    splits[name] = Split(**split | files)
  return Part(**described | {'splits': splits})


def check_same(before: Manifest, now: Manifest, directory: Path) -> None:
  """Raises ConfigError unless both are made from the same."""
  asked = json.loads(json.dumps(now.made_from))
  made = ADDED | before.made_from
  for key, value in asked.items():
    if made.get(key) != value:
      flag = {'sources': 'source', 'weights': 'weight'}.get(key, key)
      what = f'--{flag}={made.get(key)}, not {value}'
      if key == 'inputs':
        what = 'other files: their names or sizes have changed'
      if key == 'tokenizer':
        what = f'another tokenizer, {before.tokenizer["name"]}'
      raise errors.ConfigError(
        f'{directory} was begun with {what}; name another --out, or run the'
        ' command that it was begun with'
      )


def folder(number: int, split: str) -> str:
  """Where the files of a split of a part lie."""
  return f'part-{number:02}/{split}'


def read(directory: Path) -> Manifest | None:
  """The manifest of a directory; None: it has none.

  Raises:
    DataError: it has one that cannot be read.
  """
  path = directory / NAME
  try:
    described = json.loads(path.read_text(encoding='utf-8'))
    if described['format'] == FORMAT:
      return Manifest.from_json(described)
  except FileNotFoundError:
    return None
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise errors.DataError(
      f'{path} is damaged ({error!r}); prepare the table again'
    ) from error
  raise errors.DataError(
    f'{path} has format {described["format"]}, and this satjax reads {FORMAT};'
    ' prepare it again'
  )


def file_of(path: Path) -> WrittenFile:
  """What a file is now."""
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return WrittenFile(path.name, os.fstat(file.fileno()).st_size, digest)
