"""Tokenizers: text to ids and back."""

import abc
from collections.abc import Iterable, Mapping, Sequence
import functools
import hashlib
import itertools
from typing import NamedTuple

import numpy as np

from satjax import errors, files, hub
from satjax.config import data as config_data
from satjax.data import special_tokens

BEGIN, END = '<|begin_of_text|>', '<|end_of_text|>'  # of bytes, for others


class Parts(NamedTuple):
  """The tokens of a text that is given in parts."""

  ids: np.ndarray  # integers [num_tokens]
  first: np.ndarray  # int64 [num_tokens], number of the part each begins in
  last: np.ndarray  # int64 [num_tokens], and of the one it ends in


class Tokenizer(abc.ABC):
  """What tables, evaluation and export need; a kind sets the attributes."""

  name: str
  vocab_size: int  # the highest id, and 1
  bos_id: int | None  # None: nothing stands before a text
  eos_id: int
  # Jinja templates of its model by name, 'default' among them; or none.
  chat_templates: Mapping[str, str] = {}
  named_tokens: Mapping[str, str]  # such as 'eos_token', as templates get them
  markers: Mapping[str, int]  # special tokens, which no text spells, and ids
  fingerprint: str  # changes whenever the same text may give other ids
  # int64 [vocab_size]: bytes of text of each id; special tokens: none.
  id_bytes: np.ndarray

  @functools.cached_property
  def prefix_bytes(self) -> int:
    """Bytes that `id_bytes` counts at the start of a text, but it lacks."""
    return max(0, int(self.id_bytes[self.encode('a')].sum()) - 1)

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, without begin and end of text."""
    return self.encode_batch([text])[0]

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """`encode` of each text; threads of a library share the work."""

  def encode_parts(self, texts: Sequence[Sequence[str | int]]) -> list[Parts]:
    """Texts in parts, strings and special tokens; a text is encoded whole."""
    return [self._joined(text) for text in texts]

  def _joined(self, text: Sequence[str | int]) -> Parts:
    found, at = [], 0
    for is_marker, run in itertools.groupby(text, lambda p: isinstance(p, int)):
      run = list(run)
      if is_marker:
        places = np.arange(len(run))
        part = Parts(np.array(run, np.uint32), places, places)
      else:
        part = self._encode_run(run)
      found.append(Parts(part.ids, part.first + at, part.last + at))
      at += len(run)
    none = np.empty(0, np.int64)
    return Parts(*(np.concatenate([none, *each]) for each in zip(*found)))

  def _encode_run(self, texts: list[str]) -> Parts:
    """Texts that adjoin, without special tokens between."""
    raise NotImplementedError

  @abc.abstractmethod
  def token(self, number: int) -> str:
    """What an id is called, for messages."""

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of a document; broken UTF-8 becomes U+FFFD.

    Special tokens and the unused rows of a padded vocabulary are skipped. A
    space that the tokenizer puts before a text is taken off again: text that
    goes on from other text has to be decoded together with it.
    """
    ids = np.asarray(ids, np.int64).ravel()
    return self._decode(ids[(ids >= 0) & (ids < self.vocab_size)].tolist())

  @abc.abstractmethod
  def _decode(self, ids: list[int]) -> str:
    """`decode` of ids that are in the vocabulary."""

  @abc.abstractmethod
  def files(self) -> dict[str, bytes]:
    """Content of the files that AutoTokenizer reads, by name."""


class ByteTokenizer(Tokenizer):
  """The 256 bytes of UTF-8, begin of text (256) and end of text (257)."""

  name = 'byte'
  vocab_size = 258
  bos_id = 256
  eos_id = 257
  named_tokens = {'bos_token': BEGIN, 'eos_token': END}
  markers = {BEGIN: bos_id, END: eos_id}

  @property
  def fingerprint(self) -> str:
    rule = f'{self.name}/utf-8/surrogatepass/{self.bos_id}/{self.eos_id}'
    return hashlib.blake2b(rule.encode(), digest_size=16).hexdigest()

  @property
  def id_bytes(self) -> np.ndarray:
    return (np.arange(self.vocab_size) < 256).astype(np.int64)

  def encode(self, text: str) -> np.ndarray:
    """Returns uint16 [num_bytes].

    Every str is accepted: JSON may hold lone surrogates, which strict UTF-8
    refuses. They become three bytes each, and U+FFFD when decoded.
    """
    data = text.encode('utf-8', errors='surrogatepass')
    return np.frombuffer(data, np.uint8).astype(np.uint16)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def _encode_run(self, texts: list[str]) -> Parts:
    ids = self.encode_batch(texts)
    number = np.repeat(np.arange(len(texts)), list(map(len, ids)))
    return Parts(np.concatenate(ids), number, number)

  def token(self, number: int) -> str:
    names = {self.bos_id: '<begin>', self.eos_id: '<end>'}
    return names.get(number) or f'<{number}>'

  def _decode(self, ids: list[int]) -> str:
    data = bytes(number for number in ids if number < 256)
    return data.decode('utf-8', errors='replace')

  def files(self) -> dict[str, bytes]:
    """A byte pair encoding without pairs, of the class `ByteLevel`."""
    byte_level = {
      'type': 'ByteLevel',
      'add_prefix_space': False,
      'trim_offsets': True,
      'use_regex': False,
    }
    ends = {self.bos_id: BEGIN, self.eos_id: END}
    pipeline = {
      'version': '1.0',
      'truncation': None,
      'padding': None,
      'added_tokens': [special_tokens.entry(*end) for end in ends.items()],
      'normalizer': None,
      'pre_tokenizer': byte_level,
      'post_processor': None,
      'decoder': byte_level,
      'model': {
        'type': 'BPE',
        'dropout': None,
        'unk_token': None,
        'continuing_subword_prefix': None,
        'end_of_word_suffix': None,
        'fuse_unk': False,
        'byte_fallback': False,
        'ignore_merges': False,
        'vocab': {char: byte for byte, char in enumerate(_characters())},
        'merges': [],
      },
    }
    config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': BEGIN,
      'eos_token': END,
      # The default deletes spaces before punctuation when it decodes.
      'clean_up_tokenization_spaces': False,
    }
    return {
      'tokenizer.json': files.to_json(pipeline),
      'tokenizer_config.json': files.to_json(config),
    }


def _characters() -> list[str]:
  """What stands for each byte where a vocabulary has to be text.

  That is the byte itself if printable, else one from 256 up (byte-level BPE,
  Radford et al., 2019).
  """
  stand_in = iter(range(256, 512))
  # Of Latin-1; a space, a soft hyphen and controls are not printable.
  printable = {*range(33, 127), *range(161, 256)} - {173}
  return [chr(n if n in printable else next(stand_in)) for n in range(256)]


def begun(tokenizer: Tokenizer, text: str) -> np.ndarray:
  """The ids of a text that a model goes on from, begin of text included.

  Where nothing stands before a text, an empty one is the end of another.
  """
  ids = tokenizer.encode(text)
  begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  if not len(ids) + len(begin):
    begin = [tokenizer.eos_id]
  return np.concatenate([begin, ids]).astype(ids.dtype)


def get_tokenizer(spec: str) -> Tokenizer:
  """The tokenizer 'byte', 'hf:PATH' or 'sentencepiece:PATH', `~` understood.

  Raises:
    ConfigError: `spec` names none, or a library for it is missing.
    DataError: its files cannot be used.
  """
  kind, _, path = spec.partition(':')
  if not config_data.names_tokenizer(spec):
    raise errors.ConfigError(
      f'data.tokenizer {spec!r} is not a known tokenizer; allowed:'
      f' {config_data.TOKENIZERS}'
    )
  if kind == 'byte':
    return ByteTokenizer()
  from satjax.data import subword  # builds on this file

  if kind == 'hf':
    return subword.HuggingFaceTokenizer(str(hub.local(path)))
  return subword.SentencePieceTokenizer(path)
