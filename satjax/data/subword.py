"""Subword tokenizers out of files, of the libraries that made them.

Begin and end of text are never found inside of a text: a document that spells
them is read as the characters that it has.
"""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import json
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from satjax import errors, files
from satjax.data import special_tokens
from satjax.data.tokenizers import Parts, Tokenizer

# What AutoTokenizer may read; of a directory these are exported.
FILES = (
  *('tokenizer.json', 'tokenizer_config.json', 'tokenizer.model'),
  *('special_tokens_map.json', 'added_tokens.json', 'vocab.json'),
  *('merges.txt', 'chat_template.jinja'),
)
# What no library takes, and how a special token of `hidden` begins.
_NO_TEXT = re.compile('[\ud800-\udfff]|\ufdd0(?=[0-9]+\ufdd1)')
_SPACE = '\u2581'  # how sentencepiece writes a space in a token
_BYTE = re.compile('<0x[0-9A-Fa-f]{2}>')


def _clean(text: str) -> str:
  """U+FFFD for what no library takes; see `special_tokens.spelled`."""
  return _NO_TEXT.sub('\ufffd', text)


class HuggingFaceTokenizer(Tokenizer):
  """A tokenizer.json, and the settings beside it where a directory is named."""

  def __init__(self, path: str):
    """Reads a tokenizer.json under any name, or a directory that has one.

    Raises:
      ConfigError: it is not there, has no end of text, or needs a library
        that is not installed.
      DataError: a file cannot be used.
    """
    self.name = f'hf:{path}'
    library = errors.import_optional('tokenizers', self.name, 'data')
    place = Path(path).expanduser()
    self._folder = place if os.path.isdir(place) else None
    self._file = place / 'tokenizer.json' if self._folder else place
    self._content = _read_file(
      self._file,
      'hf:PATH names a tokenizer.json or a directory that has one; a'
      " sentencepiece model is named 'sentencepiece:DIR/tokenizer.model'",
    )
    described = special_tokens.parse(self._content, self._file)
    try:
      self._tokenizer = library.Tokenizer.from_buffer(self._content)
    except Exception as error:  # The library raises nothing narrower.
      raise errors.DataError(
        f'{self._file} is no tokenizer.json: {error}'
      ) from error
    vocab = self._tokenizer.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocab.values(), default=-1) + 1
    begin, self.eos_id = special_tokens.find(
      described, vocab, self._folder, self._file
    )
    self.named_tokens = special_tokens.named(self._folder)
    self.bos_id = special_tokens.begin(described, vocab)
    self.chat_templates = special_tokens.chat_templates(self._folder)
    special_tokens.mark(described, (begin, self.bos_id, self.eos_id), vocab)
    self._described = described
    self.markers = {
      one['content']: vocab[one['content']]
      for one in described['added_tokens']
      if one['special'] and one['content'] in vocab
    }
    self._read_with(library, vocab)
    self.fingerprint = _fingerprint(self, self._content)

  def _read_with(self, library: Any, vocab: Mapping[str, int]) -> None:
    """Sets what encodes: special tokens are spelled as no text spells them."""
    ids = {special_tokens.spelled(n): n for n in self.markers.values()}
    for is_plain in (False, True):
      reader = special_tokens.hidden(self._described, is_plain)
      self._reader = library.Tokenizer.from_str(json.dumps(reader))
      self._reader.no_truncation()
      self._reader.no_padding()
      found = self._reader.encode_batch([f'a{name}a' for name in ids])
      # A normaliser, or a flag, may keep one from being found inside of a text.
      numbers = map(self._reader.token_to_id, ids)
      if all(n in encoding.ids for n, encoding in zip(numbers, found)):
        break
    added = self._reader.get_added_tokens_decoder()
    size = max((self.vocab_size - 1, *added)) + 1
    self._ids = np.arange(size, dtype=np.uint32)
    for number, token in added.items():
      self._ids[number] = (vocab | ids)[token.content]

  def token(self, number: int) -> str:
    return self._tokenizer.id_to_token(number) or f'<{number}>'

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    found = self._reader.encode_batch_fast(
      list(map(_clean, texts)), add_special_tokens=False
    )
    return [self._ids[encoding.ids] for encoding in found]

  def encode_parts(self, texts: Sequence[Sequence[str | int]]) -> list[Parts]:
    written = [
      [
        special_tokens.spelled(p) if isinstance(p, int) else _clean(p)
        for p in t
      ]
      for t in texts
    ]
    found = self._reader.encode_batch(
      list(map(''.join, written)), add_special_tokens=False
    )
    return [
      _parts(
        self._ids[encoding.ids],
        encoding.offsets,
        list(map(len, strings)),
        [isinstance(part, int) for part in text],
      )
      for text, strings, encoding in zip(texts, written, found)
    ]

  def _decode(self, ids: list[int]) -> str:
    special = set(self.markers.values())
    return self._tokenizer.decode(
      [number for number in ids if number not in special]
    )

  @functools.cached_property
  def id_bytes(self) -> np.ndarray:
    decoder = json.dumps(self._described.get('decoder'))
    added = self._tokenizer.get_added_tokens_decoder()
    special = set(self.markers.values())
    sizes, rest = np.zeros(self.vocab_size, np.int64), []
    for token, number in self._tokenizer.get_vocab().items():
      if number in special:
        continue
      if number in added:
        sizes[number] = len(token.encode())
      elif '"ByteLevel"' in decoder:
        sizes[number] = len(token)  # one character for each byte
      elif '"ByteFallback"' in decoder and _BYTE.fullmatch(token):
        sizes[number] = 1
      else:
        rest.append(number)
    # After other text, so that a space at its start is not taken off.
    before = self.encode('a').tolist()
    texts = self._tokenizer.decode_batch([[*before, i] for i in rest])
    short = len(self._decode(before).encode())
    sizes[rest] = [max(0, len(text.encode()) - short) for text in texts]
    return sizes

  def files(self) -> dict[str, bytes]:
    found = {'tokenizer.json': self._content}
    for name in FILES[1:] if self._folder else ():
      path = self._folder / name
      if path.is_file():
        found[name] = _read_file(path, 'it was there a moment ago')
    config = special_tokens.parse(
      found.get('tokenizer_config.json', b'{}'), self._file
    )
    config.setdefault('tokenizer_class', 'PreTrainedTokenizerFast')
    config.setdefault('clean_up_tokenization_spaces', False)
    if not config.get('eos_token'):
      config['eos_token'] = self._tokenizer.id_to_token(self.eos_id)
    if 'bos_token' not in config and self.bos_id is not None:
      config['bos_token'] = self._tokenizer.id_to_token(self.bos_id)
    if set(self.chat_templates) - {'default'}:  # maybe of files of their own
      found.pop('chat_template.jinja', None)
      config['chat_template'] = [
        {'name': name, 'template': source}
        for name, source in self.chat_templates.items()
      ]
    return found | {'tokenizer_config.json': files.to_json(config)}


class SentencePieceTokenizer(Tokenizer):
  """A sentencepiece model."""

  def __init__(self, path: str):
    """Reads a file such as tokenizer.model; raises as the other kind."""
    self.name = f'sentencepiece:{path}'
    library = errors.import_optional('sentencepiece', self.name, 'data')
    file = Path(path).expanduser()
    self._content = _read_file(file, 'sentencepiece:PATH names a .model file')
    self._pieces = library.SentencePieceProcessor()
    try:
      self._pieces.LoadFromSerializedProto(self._content)
    except RuntimeError as error:
      raise errors.DataError(
        f'{file} is no sentencepiece model: {error}'
      ) from error
    self.vocab_size = self._pieces.vocab_size()
    self.eos_id = self._pieces.eos_id()
    if self.eos_id < 0:
      raise errors.ConfigError(
        f'{file} has no end of text; train it with an eos_id of at least 0, or'
        ' convert it to a tokenizer.json and use hf:PATH'
      )
    begin = self._pieces.bos_id()
    self.bos_id = begin if begin >= 0 else None
    numbers = filter(self._pieces.is_control, range(self.vocab_size))
    self.markers = {self._pieces.id_to_piece(n): n for n in numbers}
    kinds = {'bos_token': begin, 'eos_token': self.eos_id}
    self.named_tokens = {k: self.token(n) for k, n in kinds.items() if n >= 0}
    self.fingerprint = _fingerprint(self, self._content)

  def token(self, number: int) -> str:
    known = 0 <= number < self.vocab_size
    return self._pieces.id_to_piece(number) if known else f'<{number}>'

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    texts = list(map(_clean, texts))
    found = self._pieces.encode(texts, add_bos=False, add_eos=False)
    return [np.array(ids, np.uint32) for ids in found]

  def _encode_run(self, texts: list[str]) -> Parts:
    texts = list(map(_clean, texts))
    found = self._pieces.encode(''.join(texts), return_type='proto').pieces
    ids = np.array([piece.id for piece in found], np.uint32)
    offsets = [(piece.begin, piece.end) for piece in found]
    return _parts(ids, offsets, list(map(len, texts)), [False] * len(texts))

  def _decode(self, ids: list[int]) -> str:
    return self._pieces.decode(ids)

  @functools.cached_property
  def id_bytes(self) -> np.ndarray:
    sizes = np.zeros(self.vocab_size, np.int64)
    for i in range(self.vocab_size):
      if self._pieces.is_byte(i):
        sizes[i] = 1
      elif not (
        self._pieces.is_control(i)
        or self._pieces.is_unknown(i)
        or self._pieces.is_unused(i)
      ):
        piece = self._pieces.id_to_piece(i)
        sizes[i] = len(piece.replace(_SPACE, ' ').encode())
    return sizes

  def files(self) -> dict[str, bytes]:
    names = {'bos': self._pieces.bos_id(), 'eos': self.eos_id}
    names['unk'] = self._pieces.unk_id()
    config = {
      'tokenizer_class': 'LlamaTokenizer',
      'add_bos_token': self.bos_id is not None,
      'add_eos_token': False,
      'clean_up_tokenization_spaces': False,
      'legacy': True,  # a space before every text, as the library has it
    }
    for kind, number in names.items():
      if number >= 0:
        config[f'{kind}_token'] = self._pieces.id_to_piece(number)
    return {
      'tokenizer.model': self._content,
      'tokenizer_config.json': files.to_json(config),
    }


def _parts(
  ids: np.ndarray,
  offsets: Sequence[tuple[int, int]],
  sizes: Sequence[int],
  is_marker: Sequence[bool],
) -> Parts:
  """Which parts of some lengths tokens lie in, from where they lie in all.

  A special token is its own part, whatever spaces around it it takes.
  """
  begin, end = np.array(offsets, np.int64).reshape(-1, 2).T
  bounds, is_marker = np.cumsum(sizes), np.array(is_marker, bool)
  first = np.searchsorted(bounds, begin, 'right').clip(0, len(sizes) - 1)
  last = np.searchsorted(bounds, np.maximum(end - 1, begin), 'right')
  last = last.clip(0, len(sizes) - 1)
  first, last = (
    np.where(is_marker[last], last, first),
    np.where(is_marker[first], first, last),
  )
  return Parts(ids, first, last)


def _fingerprint(tokenizer: Tokenizer, content: bytes) -> str:
  """Of what a file holds, wherever it is."""
  kind = tokenizer.name.partition(':')[0]
  rule = f'{kind}/{tokenizer.bos_id}/{tokenizer.eos_id}/'
  return hashlib.blake2b(rule.encode() + content, digest_size=16).hexdigest()


def _read_file(path: Path, remedy: str) -> bytes:
  try:
    return path.read_bytes()
  except (OSError, ValueError) as error:  # a name may hold what none can
    raise errors.ConfigError(
      f'tokenizer file {str(path)!r} cannot be read'
      f' ({getattr(error, "strerror", error)}); {remedy}'
    ) from error
