"""What a model directory holds, and whether all of it is as it should be.

No number of the weights is looked at: the headers are read, and every byte
goes into a checksum.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent import futures
import os
from pathlib import Path
import re
from typing import Any

from satjax import console, errors, flops
from satjax.config.groups import ModelConfig
from satjax.data import tokenizers
from satjax.interop import huggingface, models, weights, writer

_LAYER = re.compile(r'\.\d+\.')

Rows = list[tuple[str, ...]]


def inspect(directory: str | os.PathLike) -> tuple[str, list[str]]:
  """What is to say of a model directory, and what is wrong with it.

  Checksums are taken of the files that `checksums.json` names, and compared;
  of all files where there is none.

  Returns:
    Markdown: facts, if config.json can be used, files, tensors and a verdict;
    and the problems.

  Raises:
    DataError: there is no such directory.
    StorageError: a file cannot be read.
  """
  directory, problems = Path(directory), []
  if not directory.is_dir():
    raise errors.DataError(
      f'{directory} is no directory; name one with config.json and safetensors'
    )
  listed = _attempt(problems, _read_checksums, directory)
  files = _files(directory, listed, problems)
  config = _attempt(problems, huggingface.read_config, directory)
  # With a configuration, `check` reports what is wrong with the weights.
  scanned = _attempt([] if config else problems, weights.scan, directory)
  found, more = scanned or ({}, [])
  facts = {}
  if config:
    _attempt(problems, huggingface.check, directory)
    facts = _facts(directory, config, found)
    facts |= _tokenizer(directory, config, problems)
  else:
    problems += more
  tables = (
    (('', ''), [*facts.items()]),
    (('file', 'bytes', writer.ALGORITHM, ''), files),
    (('tensor', 'shape', 'dtype', 'count'), _tensors(found)),
  )
  shown = [
    # Names from a file may hold what would steer a terminal.
    console.markdown(
      heads, [[c if c.isprintable() else ascii(c) for c in row] for row in rows]
    )
    for heads, rows in tables
    if rows
  ]
  return '\n'.join([*shown, _verdict(problems, listed is not None)]), problems


def _attempt(problems: list[str], fn: Callable[..., Any], *args: Any) -> Any:
  """What a function returns; None, and problems, where data is bad."""
  try:
    return fn(*args)
  except errors.DataError as error:
    first, *listed = str(error).splitlines()
    problems += [line.strip() for line in listed] or [first]
    return None


def _read_checksums(directory: Path) -> dict[str, Any] | None:
  """The checksums by file name; None: the directory has none."""
  if not (directory / writer.CHECKSUMS).exists():
    return None
  content = weights.read_json(directory, writer.CHECKSUMS)
  if (algorithm := content.get('algorithm')) != writer.ALGORITHM:
    raise errors.DataError(
      f'{writer.CHECKSUMS}: algorithm = {errors.brief(algorithm)}; supported:'
      f' {writer.ALGORITHM!r}'
    )
  if not isinstance(content.get('files'), dict):
    raise errors.DataError(
      f'{writer.CHECKSUMS} has no files; expected checksums by name'
    )
  return content['files']


def _files(
  directory: Path,
  listed: Mapping[str, Any] | None,
  problems: list[str],
) -> Rows:
  """All files, with checksums; several files are read at a time."""
  names = sorted(p.name for p in directory.iterdir() if not p.is_dir())
  verdicts = {
    name: reason
    for name in {*names, *(listed or {})}
    if (reason := weights.unsafe(directory, name))
  }
  wanted = [
    n for n in (names if listed is None else listed) if n not in verdicts
  ]
  sizes = {
    name: 0 if name in verdicts else (directory / name).stat().st_size
    for name in {*names, *wanted}
  }
  total, sums = sum(sizes[n] for n in wanted), {}
  with (
    console.Progress('checksums', total) as bar,
    futures.ThreadPoolExecutor(os.cpu_count()) as pool,
  ):
    taken = pool.map(lambda n: writer.checksum(directory / n), wanted)
    for name, digest in zip(wanted, taken):
      sums[name] = digest
      bar.advance(sizes[name])
  for name, expected in sorted((listed or {}).items()):
    if name in verdicts:
      problems.append(f'{name} {verdicts[name]}; {writer.CHECKSUMS} lists it')
    elif sums[name] == expected:
      verdicts[name] = 'as written'
    else:
      verdicts[name] = 'differs'
      problems.append(
        f'{name}: found {writer.ALGORITHM} {sums[name]}, expected'
        f' {errors.brief(expected)}; it was changed or damaged since it was'
        ' written'
      )
  return [
    (n, f'{sizes[n]:,}', sums.get(n, ''), verdicts.get(n, '')) for n in names
  ]


def _facts(
  directory: Path, config: ModelConfig, found: Mapping[str, Any]
) -> dict[str, str]:
  """What config.json and the headers say."""
  dtypes = Counter(header.dtype for header in found.values() if header)
  total = flops.num_params(config)
  embeddings = config.vocab_size * config.embed_dim * (1 if config.tied else 2)
  scaling = ' '.join(map(str, config.rope_scaling)) or 'not scaled'
  window = config.sliding_window
  stored = weights.read_json(directory, 'config.json')
  context = stored.get('max_position_embeddings')
  return {
    'family': huggingface.family(directory),
    'dtype': ', '.join(f'{n} {dtypes[n]} tensors' for n in sorted(dtypes)),
    'parameters': f'{total:,}, without embeddings {total - embeddings:,}',
    'layers': f'{config.num_layers}',
    'width': f'{config.embed_dim}, mlp {config.mlp_dim}',
    'heads': f'{config.num_heads}, of keys and values {config.num_kv_heads},'
    f' head_dim {config.head_dim}',
    'vocabulary': f'{config.vocab_size},'
    f' output {"" if config.tied else "not "}tied to the embedding',
    'context': 'not given' if context is None else errors.brief(context),
    'rope': f'base {config.rope_theta:g}, {scaling}',
    'window': f'{window} tokens' if window else 'none',
  }


def _tokenizer(
  directory: Path, config: ModelConfig, problems: list[str]
) -> dict[str, str]:
  """The tokenizer beside the weights, which has to fit the vocabulary."""
  known = models.TOKENIZERS
  file = next((n for n in known if (directory / n).is_file()), None)
  if file is None:
    return {'tokenizer': f'none, no {" and no ".join(known)}'}
  spec = known[file].format(directory)
  try:
    tokenizer = tokenizers.get_tokenizer(spec)
  except errors.SatjaxError as error:
    # A library that is not installed is no damage.
    if isinstance(error, errors.DataError):
      problems.append(str(error))
    return {'tokenizer': f'{file} cannot be used: {error}'}
  kind, special = 'sentencepiece', set()
  if file == 'tokenizer.json':
    content = weights.read_json(directory, file)
    kind = content['model'].get('type', 'of unknown type')
    if models.tokenizer_spec(directory) == 'byte':
      kind = 'byte'
    added = content.get('added_tokens') or ()
    special = {token['id'] for token in added if token.get('special')}
  size, room = tokenizer.vocab_size, config.vocab_size
  if size > room:
    problems.append(
      f'{file}: found a vocabulary of {size}, expected at most {room}, the'
      ' vocab_size of config.json; use the tokenizer of this model, or add rows'
      ' (satjax grow --vocab_multiple=64)'
    )
  begin = tokenizer.markers.get(tokenizer.named_tokens.get('bos_token'))
  ids = {'begin': begin, 'end': tokenizer.eos_id}
  ids = {name: i for name, i in ids.items() if i is not None}
  named = [f'{n} {i} {tokenizer.token(i)}' for n, i in ids.items()]
  more = len(special - set(ids.values()))
  return {
    'tokenizer': f'{kind}, {size} tokens'
    f' {"do not fit" if size > room else "fit"}',
    'special': ', '.join(named + ([f'{more} more'] if more else [])),
  }


def _tensors(found: Mapping[str, Any]) -> Rows:
  """Tensors that differ in the layer alone are counted together."""
  counts = Counter(
    (_LAYER.sub('.*.', name), header.shape, header.dtype)
    for name, header in found.items()
    if header
  )
  return [
    (name, ' x '.join(map(str, shape)), dtype, f'{count}')
    for (name, shape, dtype), count in counts.items()
  ]


def _verdict(problems: list[str], has_checksums: bool) -> str:
  if count := len(problems):
    return f'{count} problem{"s" if count > 1 else ""}'
  if has_checksums:
    return f'whole: every file of {writer.CHECKSUMS} is as it was written'
  return (
    f'there is no {writer.CHECKSUMS}, and so nothing to compare the checksums'
    ' with; headers and shapes are as expected'
  )
