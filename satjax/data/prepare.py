"""Sources to a tokenised table on disk, in a stream that can be interrupted.

Killed at any time, the same call goes on where it was. The table is the same,
byte for byte, however often that happens and for any number of processes.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math
import os
from pathlib import Path

from satjax import errors
from satjax.data import chat, duplicates, manifest, sources, table
from satjax.data.chunks import Source
from satjax.data.journal import Journal
from satjax.data.manifest import Manifest, Part, Split
from satjax.data.prepare_steps import Progress
from satjax.data.tokenise import Settings, Tokeniser
from satjax.data.workers import Workers

_JOURNAL = 'journal.sqlite'
COUNTS = (
  'documents',
  'empty',
  'cut',
  'replaced',
  'too_short',
  'too_long',
  'duplicates',
)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """What is prepared.

  Attributes:
    sources: of `sources.FORMS`.
    weights: of each in training.
    columns: fields to read of records, as `documents.from_record` does.
    shard_tokens: a file ends with the step that reaches so many.
  """

  sources: Sequence[str]
  weights: Sequence[float]
  columns: Sequence[str]
  shard_tokens: int


# From a whole in bytes to a function that is told what was done of it.
Start = Callable[[int], Callable[[int], None]]


def prepare(
  mixture: Mixture,
  settings: Settings,
  out: str | os.PathLike,
  *,
  workers: int = 0,
  start: Start = lambda size: lambda done: None,
) -> Manifest:
  """Writes a table, or goes on with one.

  Args:
    mixture, settings: what it consists of.
    out: directory, new or of an earlier call with the same arguments.
    workers: processes; 0: none but this one.
    start: shows progress.

  Raises:
    ConfigError: a setting is wrong, or another one than before.
    DataError: a source cannot be used, or gives no document.
    StorageError: somebody else writes there.
  """
  _check(mixture, settings, workers)
  out = Path(out).expanduser()
  found = [sources.find(name, mixture.columns) for name in mixture.sources]
  fresh = _manifest(mixture, settings, found)
  if finished := manifest.read(out):
    manifest.check_same(finished, fresh, out)
  else:
    finished = _write(out, fresh, found, mixture, settings, workers, start)
  for path in out.glob(f'{_JOURNAL}*'):
    path.unlink()
  return finished


def _write(out, fresh, found, mixture, settings, workers, start) -> Manifest:
  if out.exists() and any(out.iterdir()) and not (out / _JOURNAL).exists():
    raise errors.ConfigError(
      f'--out={out} has files that satjax prepare did not write; name a new'
      ' folder'
    )
  out.mkdir(parents=True, exist_ok=True)
  with Journal(out / _JOURNAL) as journal:
    progress = Progress(out, journal, fresh)
    sizes = [source.size for source in found]
    advance = start(sum(sizes[progress.number :]) - progress.done)
    with Workers(settings, workers) as pool:
      for source in found[progress.number :]:
        progress.write_part(source, pool, mixture.shard_tokens, advance)
    manifest.write(out, progress.manifest)
  return progress.manifest


def _manifest(
  mixture: Mixture, settings: Settings, found: Iterable[Source]
) -> Manifest:
  """The manifest of a table that is still empty."""
  encoder = Tokeniser(settings).encoder
  tokenizer = encoder.tokenizer
  made_from = dataclasses.asdict(mixture) | dataclasses.asdict(settings)
  made_from['tokenizer'] = tokenizer.fingerprint
  made_from['inputs'] = [source.identity for source in found]
  described = {
    'name': tokenizer.name,
    'vocab_size': tokenizer.vocab_size,
    'stop_id': encoder.stop_id,
  }
  splits = [name for name in table.SPLITS if name != 'test' or settings.test]
  parts = [
    Part(
      name,
      weight,
      dict.fromkeys(COUNTS, 0),
      {split: Split() for split in splits},
    )
    for name, weight in zip(mixture.sources, mixture.weights)
  ]
  return Manifest(made_from, described, encoder.dtype.name, parts)


def _check(mixture: Mixture, settings: Settings, workers: int) -> None:
  """Raises ConfigError if a setting is out of range."""
  most = settings.max_tokens
  rules = {
    '--source': (mixture.sources, len(mixture.sources) > 0, 'at least one'),
    '--weight': (
      mixture.weights,
      len(mixture.weights) == len(mixture.sources)
      and all(0 < weight < math.inf for weight in mixture.weights),
      'one above 0 for each --source, or none at all',
    ),
    '--columns': (mixture.columns, len(mixture.columns) <= 2, 'two at most'),
    '--shard_tokens': (
      mixture.shard_tokens,
      mixture.shard_tokens > 0,
      'above 0',
    ),
    '--template': (
      settings.template,
      settings.template in chat.TEMPLATES,
      ', '.join(chat.TEMPLATES),
    ),
    '--held_out': (
      settings.held_out,
      0 < settings.held_out < 1,
      'between 0 and 1',
    ),
    '--test': (
      settings.test,
      settings.test >= 0 and settings.held_out + settings.test < 1,
      'from 0, and below 1 together with --held_out',
    ),
    '--duplicates': (
      settings.duplicates,
      settings.duplicates in duplicates.RULES,
      ', '.join(duplicates.RULES),
    ),
    '--min_tokens': (
      settings.min_tokens,
      settings.min_tokens >= 0,
      '0 or more',
    ),
    '--max_tokens': (
      most,
      most is None or most >= max(1, settings.min_tokens),
      'at least --min_tokens, and 1',
    ),
    '--workers': (workers, workers >= 0, '0 or more'),
  }
  for flag, (value, is_right, allowed) in rules.items():
    if not is_right:
      raise errors.ConfigError(f'{flag} {value}; allowed: {allowed}')
