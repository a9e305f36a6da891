"""Prepared tables: described by their table.json, opened, and checked."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from satjax import errors
from satjax.data import blocks
from satjax.data.encode import Encoder
from satjax.data.table import TokenTable

FORMAT = 2
NAME = 'table.json'
# What tables were made with before it was a setting.
_ADDED = {'test': 0.0, 'reasoning': 'template'}
# What templates of format 1 are called today, if something else.
_RENAMED = {'plain': 'bare'}


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
  """The documents of one split of a part."""

  num_documents: int = 0
  num_tokens: int = 0
  has_turns: bool = False  # some are pairs or conversations
  num_unlearned: int | None = 0  # documents; None: nobody counted them
  starts: WrittenFile | None = None  # where they begin; None: not finished
  shards: list[Shard] = dataclasses.field(default_factory=list)

  @property
  def files(self) -> list[WrittenFile]:
    return [self.starts, *self.shards]


@dataclasses.dataclass
class Part:
  """What came of one source."""

  source: str
  weight: float
  counts: dict[str, int]  # of its documents: all, and those left out, by why
  splits: dict[str, Split]


@dataclasses.dataclass
class Manifest:
  """A prepared table: its table.json."""

  made_from: dict[str, Any]  # everything that the tokens depend on
  tokenizer: dict[str, Any]  # its name and sizes
  dtype: str  # of a token
  parts: list[Part]

  def to_json(self) -> dict[str, Any]:
    return {'format': FORMAT, **dataclasses.asdict(self)}

  @classmethod
  def from_json(cls, described: dict[str, Any]) -> 'Manifest':
    fields = {key: described[key] for key in described if key != 'format'}
    for key, value in _ADDED.items():
      fields['made_from'].setdefault(key, value)
    found = cls(**fields | {'parts': [_part(p) for p in fields['parts']]})
    if described['format'] == 1 and found.has_turns:
      name = found.made_from['template']
      found.made_from['template'] = _RENAMED.get(name, name)
    return found

  @property
  def has_turns(self) -> bool:
    """Whether some documents are pairs or conversations."""
    return any(s.has_turns for p in self.parts for s in p.splits.values())


def _part(described: dict[str, Any]) -> Part:
  splits = {}
  for name, split in described['splits'].items():
    split = {'num_unlearned': None} | split
    files = {'shards': [Shard(**shard) for shard in split['shards']]}
    if split['starts']:
      files['starts'] = WrittenFile(**split['starts'])
    splits[name] = Split(**split | files)
  return Part(**described | {'splits': splits})


def read(directory: Path) -> Manifest | None:
  """What a directory says of itself; None: it holds no table.

  Raises:
    DataError: its table.json cannot be read.
  """
  path = directory / NAME
  try:
    described = json.loads(path.read_text(encoding='utf-8'))
    if described['format'] in (1, FORMAT):
      return Manifest.from_json(described)
  except FileNotFoundError:
    return None
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise errors.DataError(
      f'{path} is damaged ({error!r}); prepare the table again'
    ) from error
  raise errors.DataError(
    f'{path} has format {described["format"]}, and this satjax reads 1 to'
    f' {FORMAT}; prepare it again'
  )


def check_same(before: Manifest, now: Manifest, directory: Path) -> None:
  """Raises ConfigError unless both are made from the same."""
  asked = json.loads(json.dumps(now.made_from))
  made = before.made_from
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


def file_of(path: Path) -> WrittenFile:
  """What a file is now."""
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return WrittenFile(path.name, os.fstat(file.fileno()).st_size, digest)


def open_tables(
  directory: str | os.PathLike,
  split: str,
  encoder: Encoder,
  *,
  held_out: float | None,
  test: float | None,
) -> list[tuple[TokenTable, float]]:
  """The tables that `satjax prepare` wrote, one for each source.

  Nothing is read but sizes; see `verify`.

  Args:
    held_out, test: shares that the table must have; None: any.

  Returns:
    The tables, and their weights, which are 1 together.

  Raises:
    ConfigError: there is no such table, or it was made with another tokenizer,
      template or other shares for the splits than those of the run.
    DataError: a file is missing or has another size, or a source has no
      document in the split.
  """
  root = Path(directory).expanduser()
  found = _read_finished(root)
  settings = {'held_out': held_out, 'test': test}
  if found.has_turns:
    settings['template'] = encoder.chat.identity
    settings['reasoning'] = encoder.reasoning
  _check_made(found, root, encoder.tokenizer, settings)
  total = sum(part.weight for part in found.parts)
  tables = []
  for number, part in enumerate(found.parts):
    described = part.splits.get(split)  # 'test' is there where it was asked for
    name = f'tokens:{directory}, {part.source} ({split})'
    if described is None or not described.num_documents:
      key = 'test' if split == 'test' else 'held_out'
      raise errors.DataError(
        f'{name}: no document fell into this split ({key}'
        f' {found.made_from[key]}); add documents, or prepare it with another'
        f' --{key}'
      )
    opened = _table(root / folder(number, split), described, found.dtype, name)
    count = sum(one.num_documents for one in part.splits.values())
    opened = dataclasses.replace(opened, num_found=count)
    tables.append((opened, part.weight / total))
  return tables


def sources_of(directory: str | os.PathLike) -> tuple[str, ...]:
  """The sources that a table was made from; (): there is no table."""
  found = read(Path(directory).expanduser())
  return tuple(found.made_from['sources']) if found else ()


def verify(directory: str | os.PathLike) -> int:
  """Reads all files of a prepared table; returns how many bytes they have.

  Raises:
    ConfigError: there is no table.
    DataError: a file is missing, or is not what was written.
  """
  root = Path(directory).expanduser()
  total = 0
  for number, part in enumerate(_read_finished(root).parts):
    for name, split in part.splits.items():
      place = root / folder(number, name)
      _check_sizes(place, split)
      for file in split.files:
        if file_of(place / file.name).sha256 != file.sha256:
          raise _damaged(place / file.name, 'its checksum is another one')
        total += file.num_bytes
  return total


def _read_finished(root: Path) -> Manifest:
  if found := read(root):
    return found
  raise errors.ConfigError(
    f'{root} has no {NAME}; tokens:DIR names a folder that satjax prepare has'
    ' finished: run its command again, and it goes on'
  )


def _check_made(found, root, tokenizer, settings) -> None:
  made = found.made_from
  if made['tokenizer'] != tokenizer.fingerprint:
    raise errors.ConfigError(
      f'{root} was prepared with the tokenizer {found.tokenizer["name"]} of'
      f' {found.tokenizer["vocab_size"]} ids; data.tokenizer is another one,'
      f' {tokenizer.name} of {tokenizer.vocab_size}, by name or by content; use'
      ' the same, or prepare it again'
    )
  for key, value in settings.items():
    if value is not None and made[key] != value:
      raise errors.ConfigError(
        f'{root} was prepared with {key} {made[key]!r}; data.{key} is'
        f' {value!r}; use the same, or prepare it again'
      )


def _table(place: Path, split: Split, dtype: str, name: str) -> TokenTable:
  _check_sizes(place, split)
  opened = blocks.Blocks(
    [place / shard.name for shard in split.shards],
    [shard.num_tokens for shard in split.shards],
    np.dtype(dtype),
  )
  files = dataclasses.asdict(split)
  del files['num_unlearned']  # which follows from the files
  described = json.dumps([dtype, files])
  return TokenTable(
    blocks.Column(opened, blocks.TOKENS),
    # As an array: the class of mapped ones makes every look-up slower.
    np.asarray(np.load(place / split.starts.name, mmap_mode='r')),
    hashlib.blake2b(described.encode(), digest_size=16).hexdigest(),
    name,
    blocks.Column(opened, blocks.IS_TRAINED) if split.has_turns else None,
    unlearned=split.num_unlearned,
  )


def _check_sizes(place: Path, split: Split) -> None:
  for file in split.files:
    path = place / file.name
    if not path.is_file():
      raise _damaged(path, 'it is missing')
    if (size := path.stat().st_size) != file.num_bytes:
      raise _damaged(path, f'it has {size:,} of {file.num_bytes:,} bytes')


def _damaged(path: Path, what: str) -> errors.DataError:
  return errors.DataError(
    f'{path} is damaged: {what}; copy the table again, or prepare it again'
  )
