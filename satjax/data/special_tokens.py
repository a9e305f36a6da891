"""Where a tokenizer.json, or the files beside it, say begin and end of text.

And the chat templates, which lie there too.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from satjax import errors

# Where nothing else tells; the first that is in the vocabulary.
_KNOWN = {
  'bos': ('<s>', '<|begin_of_text|>', '<bos>', '<|startoftext|>'),
  'eos': ('</s>', '<|end_of_text|>', '<eos>', '<|endoftext|>', '<|im_end|>'),
}
_SETTINGS = {  # files that name a token, or its id; the first that does
  'tokenizer_config.json': '_token',
  'special_tokens_map.json': '_token',
  'generation_config.json': '_token_id',
}

TEMPLATES = 'additional_chat_templates'  # a folder, of those that have names


def parse(content: bytes, path: Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    DataError: it is none.
  """
  try:
    values = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise errors.DataError(f'{path} is not valid JSON: {error}') from error
  if not isinstance(values, dict):
    raise errors.DataError(f'{path} does not hold a JSON object')
  return values


def find(
  described: Mapping[str, Any],
  vocab: Mapping[str, int],
  folder: Path | None,
  file: Path,
) -> tuple[int | None, int]:
  """The ids that are called begin and end of a text; None: there is no begin.

  In this order: what the settings in `folder` name, what the post-processor
  puts around a text, a well-known name.

  Args:
    described: content of the tokenizer.json, which is `file`.

  Raises:
    ConfigError: there is no end, or one that is no token.
  """
  around = _around(described.get('post_processor'))
  ids = {}
  for kind, known in _KNOWN.items():
    ids[kind] = _from_settings(kind, vocab, folder)
    for token in (around.get(kind), *known):
      if ids[kind] is None:
        ids[kind] = vocab.get(token)
  if ids['eos'] is None:
    raise errors.ConfigError(
      f'{file} has no end of text; name a token of its vocabulary as eos_token'
      ' in a tokenizer_config.json beside it, and use hf:DIRECTORY'
    )
  return ids['bos'], ids['eos']


def begin(described: Mapping[str, Any], vocab: Mapping[str, int]) -> int | None:
  """The token that AutoTokenizer puts before every text; None: it puts none.

  The post-processor alone decides, whatever the settings say.
  """
  return vocab.get(_around(described.get('post_processor')).get('bos'))


def named(folder: Path | None) -> dict[str, str]:
  """The special tokens that the settings name, as templates get them."""
  found = {}
  for name in ('special_tokens_map.json', 'tokenizer_config.json'):
    for key, value in read(folder, name).items():
      if key.endswith('_token') and not key.startswith('add_'):
        found[key] = _content(value)
  return {key: token for key, token in found.items() if token}


def chat_templates(folder: Path | None) -> dict[str, str]:
  """Jinja templates by name, 'default' the one that nobody has to name.

  Files of their own hide those of the tokenizer_config.json, as they do for
  transformers.
  """
  if folder is None:
    return {}
  files = {'default': folder / 'chat_template.jinja'}
  for path in sorted((folder / TEMPLATES).glob('*.jinja')):
    files[path.stem] = path
  if found := {
    k: p.read_text('utf-8') for k, p in files.items() if p.is_file()
  }:
    return found
  value = read(folder, 'tokenizer_config.json').get('chat_template')
  if isinstance(value, list):
    return {one['name']: one['template'] for one in value}
  return {'default': value} if value else {}


def read(folder: Path | None, name: str) -> dict[str, Any]:
  """The JSON object in a file of a folder; nothing where there is none."""
  path = folder and folder / name
  return parse(path.read_bytes(), path) if path and path.is_file() else {}


def _content(token: Any) -> str | None:
  """The text of a token, which may be described by an object."""
  found = token.get('content') if isinstance(token, dict) else token
  return found if isinstance(found, str) else None


def mark(
  described: dict[str, Any],
  ids: tuple[int | None, ...],
  vocab: Mapping[str, int],
) -> None:
  """Makes `ids` special in `described`, so that text never spells them."""
  added = described['added_tokens'] = described.get('added_tokens') or []
  there = {one['id']: one for one in added}
  names = {number: token for token, number in vocab.items() if number in ids}
  for number in sorted(names):
    if number in there:
      there[number]['special'] = True
    else:
      added.append(entry(number, names[number]))
  added.sort(key=lambda one: one['id'])


def spelled(number: int) -> str:
  """How a special token is written in a tokenizer of `hidden`.

  Of two code points that Unicode keeps from ever being characters.
  """
  return f'\ufdd0{number}\ufdd1'


def hidden(
  described: Mapping[str, Any], is_plain: bool = False
) -> dict[str, Any]:
  """The tokenizer with special tokens that no text spells; see `spelled`.

  If `is_plain`, they are found wherever they stand, whatever their flags say.
  """
  found = {'normalized': False, 'single_word': False} if is_plain else {}
  added = [
    one | found | {'content': spelled(one['id'])} if one['special'] else one
    for one in described['added_tokens']
  ]
  # What it would put around a text, and cut off what a token stands for.
  return {**described, 'added_tokens': added, 'post_processor': None}


def entry(number: int, token: str) -> dict[str, Any]:
  """How a tokenizer.json lists a special token."""
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  marks = dict.fromkeys(flags, False)
  return {'id': number, 'content': token, **marks, 'special': True}


def _from_settings(
  kind: str, vocab: Mapping[str, int], folder: Path | None
) -> int | None:
  """What the first file that says something says."""
  for name, ending in _SETTINGS.items() if folder else ():
    path, key = folder / name, kind + ending
    if not path.is_file():
      continue
    value = found = parse(path.read_bytes(), path).get(key)
    if isinstance(value, dict):
      found = value.get('content')
    if isinstance(value, list):
      found = next(iter(value), None)
    if found is None:
      continue
    if ending == '_token' and isinstance(found, str):
      found = vocab.get(found)
    if type(found) is not int or found not in vocab.values():
      raise errors.ConfigError(
        f'{path}: {key} = {value!r} is not in the vocabulary of tokenizer.json;'
        ' name a token that is'
      )
    return found
  return None


def _around(processor: Any) -> dict[str, str]:
  """The tokens that a post-processor puts before and after one text."""
  if not isinstance(processor, dict):
    return {}
  if processor.get('type') == 'Sequence':
    parts = [_around(part) for part in processor.get('processors', ())]
    return {kind: token for part in parts for kind, token in part.items()}
  if 'cls' in processor and 'sep' in processor:
    return {'bos': processor['cls'][0], 'eos': processor['sep'][0]}
  found, kind = {}, 'bos'
  for piece in processor.get('single') or ():
    if 'Sequence' in piece:
      kind = 'eos'
    elif 'SpecialToken' in piece:
      found.setdefault(kind, piece['SpecialToken']['id'])
  return found
