"""satjax prepare."""

import dataclasses
import time
from typing import Any

from satjax import errors, runtime
from satjax.commands import shared

SUMMARY = (
  'write sources as a tokenised table on disk, for config.data.train to name as'
  ' tokens:DIR; after a kill, the same command goes on'
)
OPTIONS = {
  '--source': shared.value(
    'SOURCE',
    'such as text:books/**/*.txt, jsonl:GLOB, parquet:GLOB, tfds:NAME'
    ' or stdlib:docs; may be given again',
    action='append',
  ),
  **shared.TOKENIZER,
  '--out': shared.value('DIR', 'folder to write', required=True),
  '--weight': shared.value(
    'W', 'of each --source in training (default: 1)', float, action='append'
  ),
  **shared.TEXT,
  '--held_out': shared.preset(
    'SHARE',
    'of the documents, for evaluation; 1: all, of a file of its own; 0: none',
    0.05,
  ),
  '--test': shared.preset('SHARE', 'of the documents, for final numbers', 0.0),
  '--duplicates': shared.value(
    'RULE',
    'keep (default); exact: leave out documents of the same words;'
    ' near: and those of nearly the same',
    default='keep',
  ),
  '--min_tokens': shared.preset('N', 'leave out shorter documents', 0),
  '--max_tokens': shared.value(
    'N', 'leave out longer documents (default: no limit)', int
  ),
  '--shard_tokens': shared.preset('N', 'tokens after which a file ends', 2**26),
  '--workers': shared.value(
    'N',
    'processes that tokenise; 0: none but this one (default: one for'
    ' each core)',
    int,
  ),
  '--verify': shared.flag(
    'only compare the files in --out with their checksums'
  ),
}


def run(options: Any) -> None:
  from satjax.data import prepared

  if options.verify:
    size = prepared.verify(options.out)
    print(f'{options.out} is whole: {size / 1e6:,.1f} MB have their checksums')
  elif options.source:
    _prepare(options)
  else:
    raise errors.ConfigError('name at least one --source=SOURCE')


def _prepare(options: Any) -> None:
  from satjax import console
  from satjax.data import prepare, tokenise

  names = {field.name for field in dataclasses.fields(tokenise.Settings)}
  asked = {n: value for n, value in vars(options).items() if n in names}
  settings = tokenise.Settings(
    **asked | {'tokenizer': options.tokenizer or 'byte'},
    sources=tuple(options.source),
    weights=tuple(options.weight or [1.0] * len(options.source)),
  )
  workers = options.workers
  workers = len(runtime.cores()) if workers is None else workers
  begin = time.monotonic()
  with console.Progress('prepare') as bar:
    table = prepare.prepare(
      settings, options.out, workers=workers, start=bar.start
    )
  seconds = time.monotonic() - begin
  for part in table.parts:
    print(_render(part))
  if bar.done:
    print(f'{seconds:,.1f} s, {bar.done / 1e6 / seconds:,.2f} MB/s')
    print(f'wrote {options.out}')
  else:
    print(f'{options.out} was finished before')


def _render(part: Any) -> str:
  """What came of a source."""
  from satjax.data import encode

  counts = dict(part.counts)
  lines = [f'{part.source}: {counts.pop("documents"):,} documents']
  lines += [
    f'  {encode.in_words(name):28} {count:14,}'
    for name, count in counts.items()
    if count
  ]
  lines += [
    f'  {name:28} {split.num_documents:14,} with {split.num_tokens:,} tokens'
    for name, split in part.splits.items()
  ]
  return '\n'.join(lines)
