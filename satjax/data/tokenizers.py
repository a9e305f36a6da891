"""Tokenizers: text to ids and back."""

from collections.abc import Iterable
import hashlib
from typing import Protocol

import numpy as np

from satjax import errors


class Tokenizer(Protocol):
  """What the tables need of a tokenizer."""

  name: str
  vocab_size: int
  bos_id: int
  eos_id: int
  fingerprint: str  # changes whenever the same text may give other ids

  def encode(self, text: str) -> np.ndarray: ...

  def decode(self, ids: Iterable[int]) -> str: ...


class ByteTokenizer:
  """The 256 bytes of UTF-8, begin of text (256) and end of text (257)."""

  name = 'byte'
  vocab_size = 258
  bos_id = 256
  eos_id = 257

  @property
  def fingerprint(self) -> str:
    rule = f'{self.name}/utf-8/surrogatepass/{self.bos_id}/{self.eos_id}'
    return hashlib.blake2b(rule.encode(), digest_size=16).hexdigest()

  def encode(self, text: str) -> np.ndarray:
    """Returns uint16 [num_bytes], without begin and end of text.

    Every str is accepted: JSON may hold lone surrogates, which strict UTF-8
    refuses. They become three bytes each, and U+FFFD when decoded.
    """
    data = text.encode('utf-8', errors='surrogatepass')
    return np.frombuffer(data, np.uint8).astype(np.uint16)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text; broken UTF-8 becomes U+FFFD.

    Begin, end and the unused rows of a padded vocabulary are skipped.
    """
    ids = np.asarray(ids, np.int64).ravel()
    data = ids[(ids >= 0) & (ids < 256)].astype(np.uint8).tobytes()
    return data.decode('utf-8', errors='replace')


def get_tokenizer(spec: str) -> Tokenizer:
  """Returns the tokenizer that a configuration names.

  Raises:
    ConfigError: `spec` names none.
  """
  if spec != ByteTokenizer.name:
    raise errors.ConfigError(
      f'data.tokenizer {spec!r} is not a known tokenizer; allowed:'
      f' {ByteTokenizer.name!r} (256 bytes, begin and end of text)'
    )
  return ByteTokenizer()
