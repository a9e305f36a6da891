"""What the small files of a model directory say besides the architecture.

How texts are generated and where they end, in `config.json` and
`generation_config.json`, and how the tokenizer is opened. What the base of a
run said there is kept, as far as it is true of what was trained.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from satjax import files
from satjax.data import special_tokens
from satjax.data.tokenizers import Tokenizer
from satjax.interop import pieces, weights

CONFIG, GENERATION = 'config.json', 'generation_config.json'
TOKENIZER, TEMPLATE = 'tokenizer_config.json', 'chat_template.jinja'
# Reads a tokenizer.json as it is, in transformers 4 and 5. Others are known to
# one of them, or put a begin before a text by a rule of their own.
_CLASS = 'PreTrainedTokenizerFast'
# Who wrote a generation_config.json. One that is marked as made out of the
# config.json is made anew, without what was added.
_ORIGIN = ('_from_model_config', 'transformers_version')


@dataclasses.dataclass(frozen=True)
class Settings:
  """The content of both files; empty where there is none."""

  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def read(cls, directory: str | os.PathLike) -> Self:
    """Those of a directory; raises as `weights.read_json`."""
    found = files_of(directory)
    return cls(
      *(
        special_tokens.parse(found.get(name, b'{}'), Path(directory) / name)
        for name in (CONFIG, GENERATION)
      )
    )

  @property
  def ends(self) -> tuple[int, ...]:
    """The ids that end a text, in the order in which they are named."""
    found = []
    for stored in (self.generation, self.config):
      ids = stored.get('eos_token_id')
      found += ids if isinstance(ids, list) else [ids]
    return tuple(dict.fromkeys(i for i in found if type(i) is int))

  def fit(self, tokenizer: Tokenizer) -> bool:
    """Whether their ids are those of a tokenizer, as far as can be told."""
    return not self.ends or tokenizer.eos_id in self.ends

  def of(self, tokenizer: Tokenizer) -> Self:
    """The same, without ids that another tokenizer gave."""
    if self.fit(tokenizer):
      return self
    parts = (
      {k: v for k, v in stored.items() if not k.endswith(('_id', '_tokens'))}
      for stored in (self.config, self.generation)
    )
    return Settings(*parts)


def files_of(directory: str | os.PathLike) -> dict[str, bytes]:
  """Both files, by name, where they are there."""
  directory = Path(directory)
  return {
    name: weights.read_small(directory, name)
    for name in (CONFIG, GENERATION)
    if os.path.lexists(directory / name)
  }


def base_of(workdir: str | os.PathLike, init_from: str) -> Settings:
  """Those of the model that a run started from, as far as they are kept.

  In the folder of the run, or else where the model was.
  """
  for folder in (Path(workdir) / 'base', Path(init_from)):
    if folder.name and (folder / CONFIG).is_file():
      return Settings.read(folder)
  return Settings()


def ends(
  base: Settings, tokenizer: Tokenizer, stop_id: int | None = None
) -> tuple[int, ...]:
  """Ids that end what a model says that was trained with a tokenizer.

  Args:
    base: of the model that it started from.
    stop_id: what ends an answer in a chat, if it was trained on some.
  """
  found = *base.of(tokenizer).ends, tokenizer.eos_id, stop_id
  return tuple(dict.fromkeys(i for i in found if i is not None))


def described(
  base: Settings,
  tokenizer: Tokenizer,
  vocab_size: int,
  stop_id: int | None = None,
) -> Settings:
  """Special ids for config.json, and the whole generation_config.json."""
  base = base.of(tokenizer)
  special = {'bos_token_id': tokenizer.bos_id, 'eos_token_id': tokenizer.eos_id}
  config = special | {
    name: base.config[name]
    for name in (*special, 'pad_token_id')
    if base.config.get(name) is not None
  }
  if (pad := _pad_id(base, tokenizer)) is not None:
    config['pad_token_id'] = pad
  stops = ends(base, tokenizer, stop_id)
  generation = config | {
    name: value
    for name, value in base.generation.items()
    if name not in _ORIGIN and value is not None
  }
  generation['eos_token_id'] = stops[0] if len(stops) == 1 else [*stops]
  generation |= suppressed(generation, tokenizer, vocab_size)
  return Settings(config, generation)


def _pad_id(base: Settings, tokenizer: Tokenizer) -> int | None:
  for stored in (base.generation, base.config):
    if stored.get('pad_token_id') is not None:
      return stored['pad_token_id']
  return tokenizer.markers.get(tokenizer.named_tokens.get('pad_token', ''))


def suppressed(
  generation: Mapping[str, Any], tokenizer: Tokenizer, vocab_size: int
) -> dict[str, list[int]]:
  """`suppress_tokens` with all rows of a model that are no tokens, if any."""
  no_text = np.flatnonzero(tokenizer.id_bytes == 0).tolist()
  gaps = [i for i in no_text if tokenizer.token(i) == f'<{i}>']
  rows = {*gaps, *range(tokenizer.vocab_size, vocab_size)}
  rows |= {*(generation.get('suppress_tokens') or ())}
  return {'suppress_tokens': sorted(rows)} if rows else {}


def tokenizer_files(
  tokenizer: Tokenizer, template: str | None
) -> dict[str, bytes]:
  """The files of a tokenizer, as AutoTokenizer of transformers 4 and 5 reads.

  Args:
    template: the chat template; None: the tokenizer's own.
  """
  found = tokenizer.files()
  config = json.loads(found[TOKENIZER])
  if (model := found.get('tokenizer.model')) and 'tokenizer.json' not in found:
    made = pieces.described(model)
    found |= {'tokenizer.json': made} if made else {}
  if 'tokenizer.json' in found:
    config['tokenizer_class'] = _CLASS
    config.pop('backend', None)
  more = config.get('extra_special_tokens')
  if isinstance(more, list):  # an object in transformers 4, with names
    config['additional_special_tokens'] = config.pop('extra_special_tokens')
  if template not in (None, tokenizer.chat_templates.get('default')):
    config.pop('chat_template', None)
    found[TEMPLATE] = template.encode()
  return found | {TOKENIZER: files.to_json(config)}
