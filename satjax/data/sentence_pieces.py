"""Tokenizers of the library `sentencepiece`."""

import functools
from pathlib import Path

import numpy as np

from satjax import errors
from satjax.data.subword import Subword, import_library, read_file, to_json

_SPACE = '\u2581'  # how the library writes a space in a token


class SentencePieceTokenizer(Subword):
  """A sentencepiece model.

  Attributes:
    name, vocab_size, bos_id, eos_id, fingerprint: as of every tokenizer.
  """

  def __init__(self, path: str):
    """Reads the model.

    Args:
      path: a file such as tokenizer.model.

    Raises:
      ConfigError: it is not there, has no end of text, or needs a library
        that is not installed.
      DataError: the file cannot be used.
    """
    library = import_library('sentencepiece', f'sentencepiece:{path}')
    self.name = f'sentencepiece:{path}'
    file = Path(path).expanduser()
    self._content = read_file(file, 'sentencepiece:PATH names a .model file')
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
    self.bos_id = begin if begin >= 0 else self.eos_id
    self._identify(self._content)

  def special_id(self, token: str) -> int | None:
    """The id of a token that no text spells; None: there is none."""
    number = self._pieces.piece_to_id(token)
    return number if self._pieces.is_control(number) else None

  def token(self, number: int) -> str:
    """What an id is called, for messages."""
    known = 0 <= number < self.vocab_size
    return self._pieces.id_to_piece(number) if known else f'<{number}>'

  def _encode(self, texts: list[str]) -> list[list[int]]:
    return self._pieces.encode(texts, add_bos=False, add_eos=False)

  def _decode(self, ids: list[int]) -> str:
    return self._pieces.decode(ids)

  @functools.cached_property
  def id_bytes(self) -> np.ndarray:
    """int64 [vocab_size]: bytes of text of each id; special tokens: none."""
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
    """Content of the files that AutoTokenizer reads, by name."""
    names = {'bos': self.bos_id, 'eos': self.eos_id}
    if self._pieces.unk_id() >= 0:
      names['unk'] = self._pieces.unk_id()
    config = {
      'tokenizer_class': 'LlamaTokenizer',
      'add_bos_token': self.bos_id != self.eos_id,
      'add_eos_token': False,
      'clean_up_tokenization_spaces': False,
      'legacy': True,  # a space before every text, as the library has it
    }
    for kind, number in names.items():
      config[f'{kind}_token'] = self._pieces.id_to_piece(number)
    return {
      'tokenizer.model': self._content,
      'tokenizer_config.json': to_json(config),
    }
