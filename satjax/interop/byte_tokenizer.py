"""The byte tokenizer as the files that transformers' AutoTokenizer reads.

Ids 0..255 are the bytes of UTF-8, 256 begins a text and 257 ends it: a byte
pair encoding without pairs. Its vocabulary has to be text, so each byte is
written as the printable character that byte-level BPE (Radford et al., 2019)
gives it.
"""

from typing import Any

BEGIN = '<|begin_of_text|>'
END = '<|end_of_text|>'


def files() -> dict[str, dict[str, Any]]:
  """Content of `tokenizer.json` and `tokenizer_config.json`, by file name."""
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': False,
  }
  pipeline = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [_special(256, BEGIN), _special(257, END)],
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
  return {'tokenizer.json': pipeline, 'tokenizer_config.json': config}


def _special(token_id: int, text: str) -> dict[str, Any]:
  marks = dict.fromkeys(
    ('single_word', 'lstrip', 'rstrip', 'normalized'), False
  )
  return {'id': token_id, 'content': text, **marks, 'special': True}


def _characters() -> list[str]:
  """The character of each byte: itself if printable, else one from 256 up."""
  stand_in = iter(range(256, 512))
  # Of Latin-1; a space, a soft hyphen and controls are not printable.
  printable = {*range(33, 127), *range(161, 256)} - {173}
  return [chr(n if n in printable else next(stand_in)) for n in range(256)]
