"""Prepared tables: opened, and checked against what they say of themselves."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from satjax import errors
from satjax.data import blocks, manifest, table
from satjax.data.manifest import Manifest, Split, WrittenFile
from satjax.data.table import TokenTable
from satjax.data.tokenizers import Tokenizer


def open_tables(
  directory: str | os.PathLike,
  split: str,
  tokenizer: Tokenizer,
  *,
  template: str,
  held_out: float,
  test: float,
) -> list[tuple[TokenTable, float]]:
  """The tables of a directory that `satjax prepare` wrote, with their weights.

  Nothing is read but sizes; see `verify`.

  Args:
    directory: `~` is understood.
    split: of `table.SPLITS`.
    tokenizer: of the run.
    template: data.template of the run.
    held_out: data.held_out of the run.
    test: data.test of the run.

  Returns:
    A table for each source that was prepared; the weights are 1 together.

  Raises:
    ConfigError: there is no such table, or it was made with another tokenizer,
      template or other shares for the splits.
    DataError: a file is missing or has another size, or a source has no
      document in the split.
  """
  if split not in table.SPLITS:
    raise errors.ConfigError(f'split {split!r}; allowed: {table.SPLITS}')
  root = Path(directory).expanduser()
  found = _read(root)
  shares = {'held_out': held_out, 'test': test}
  _check_made(found, root, tokenizer, {'template': template} | shares)
  total = sum(part.weight for part in found.parts)
  tables = []
  for number, part in enumerate(found.parts):
    described = part.splits.get(split)  # 'test' is there where it was asked for
    name = f'tokens:{directory}, {part.source} ({split})'
    if described is None or not described.num_documents:
      key = 'test' if split == 'test' else 'held_out'
      raise errors.DataError(
        f'{name}: no document fell into this split ({key} {shares[key]}); add'
        f' documents, or prepare it with another --{key}'
      )
    folder = root / manifest.folder(number, split)
    opened = _table(folder, described, found.dtype, name)
    tables.append((opened, part.weight / total))
  return tables


def verify(directory: str | os.PathLike) -> int:
  """Reads all files of a prepared table; returns how many bytes they have.

  Raises:
    ConfigError: there is no table.
    DataError: a file is missing, or is not what was written.
  """
  root = Path(directory).expanduser()
  total = 0
  for number, part in enumerate(_read(root).parts):
    for name, split in part.splits.items():
      folder = root / manifest.folder(number, name)
      for file in _files(folder, split):
        found = manifest.file_of(folder / file.name)
        if found.sha256 != file.sha256:
          raise _damaged(folder / file.name, 'its checksum is another one')
        total += found.num_bytes
  return total


def _read(root: Path) -> Manifest:
  if found := manifest.read(root):
    return found
  raise errors.ConfigError(
    f'{root} has no {manifest.NAME}; tokens:DIR names a folder that satjax'
    ' prepare has finished: run its command again, and it goes on'
  )


def _check_made(found, root, tokenizer, settings) -> None:
  made = manifest.ADDED | found.made_from
  if made['tokenizer'] != tokenizer.fingerprint:
    raise errors.ConfigError(
      f'{root} was prepared with the tokenizer {found.tokenizer["name"]} of'
      f' {found.tokenizer["vocab_size"]} ids; data.tokenizer is another one,'
      f' {tokenizer.name} of {tokenizer.vocab_size}, by name or by content; use'
      ' the same, or prepare it again'
    )
  for key, value in settings.items():
    if made[key] != value:
      raise errors.ConfigError(
        f'{root} was prepared with {key} {made[key]!r}; data.{key} is'
        f' {value!r}; use the same, or prepare it again'
      )


def _table(folder: Path, split: Split, dtype: str, name: str) -> TokenTable:
  _files(folder, split)
  paths = [folder / shard.name for shard in split.shards]
  sizes = [shard.num_tokens for shard in split.shards]
  opened = blocks.Blocks(paths, sizes, np.dtype(dtype))
  described = json.dumps([dtype, dataclasses.asdict(split)])
  return TokenTable(
    blocks.Tokens(opened),
    # As an array: the class of mapped ones makes every look-up slower.
    np.asarray(np.load(folder / split.starts.name, mmap_mode='r')),
    hashlib.blake2b(described.encode(), digest_size=16).hexdigest(),
    name,
    blocks.IsTrained(opened) if split.has_turns else None,
  )


def _files(folder: Path, split: Split) -> list[WrittenFile]:
  """The files of a split: they are there, and of their size."""
  files = [split.starts, *split.shards]
  for file in files:
    path = folder / file.name
    if not path.is_file():
      raise _damaged(path, 'it is missing')
    if (size := path.stat().st_size) != file.num_bytes:
      raise _damaged(path, f'it has {size:,} of {file.num_bytes:,} bytes')
  return files


def _damaged(path: Path, what: str) -> errors.DataError:
  return errors.DataError(
    f'{path} is damaged: {what}; copy the table again, or prepare it again'
  )
