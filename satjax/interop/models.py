"""Models as a user of the package holds them: load, apply, save."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from satjax import errors, hub
from satjax.config.groups import ModelConfig
from satjax.config.run import Config
from satjax.data import chat, tokenizers
from satjax.data.tokenizers import Tokenizer
from satjax.interop import (
  huggingface,
  llama,
  small_files,
  vocabulary,
  weights,
)
from satjax.interop.small_files import Settings
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Model:
  """A model and its configuration."""

  config: ModelConfig  # architecture and compute dtype
  params: PyTree  # of `tree.AXES`, in the dtype of the files
  end_ids: tuple[int, ...] = ()  # that end a text; (): the tokenizer's alone

  def apply(self, params: PyTree, tokens: Any) -> jax.Array:
    """Tokens, int [B, T], to float32 logits [B, T, V]."""
    from satjax.model import decoder

    batch = {'tokens': jnp.asarray(tokens, jnp.int32)}
    return decoder.apply(self.config, params, batch)


def load(
  directory: str | os.PathLike,
  tokenizer: Tokenizer | None = None,
  **options: Any,
) -> Model:
  """Reads a directory, or a model of the hub; options as `huggingface.load`.

  Warns if the model was trained with another tokenizer than the one given.

  Raises:
    DataError: one error that names everything that is wrong with it.
  """
  directory = hub.local(directory)
  end_ids = ()
  if tokenizer is not None:
    found = Settings.read(directory)
    end_ids = small_files.ends(found, tokenizer)
    _check_tokenizer(directory, found, tokenizer)
  return Model(*huggingface.load(directory, **options), end_ids)


def _check_tokenizer(
  directory: str | os.PathLike, found: Settings, tokenizer: Tokenizer
) -> None:
  """Warns if texts end with another token than those the model has read."""
  if not found.fit(tokenizer):
    end = tokenizer.eos_id
    logging.warning(
      f'Tokenizer {tokenizer.name} ends texts with id {end}'
      f' ({tokenizer.token(end)}), and the model in {directory} was trained to'
      f' end them with {" or ".join(map(str, sorted(found.ends)))}: is it the'
      f' tokenizer of this model? It would be named hf:{directory}'
    )


# Files of a tokenizer, and what a configuration calls a directory with one.
TOKENIZERS = {
  'tokenizer.json': 'hf:{}',
  'tokenizer.model': 'sentencepiece:{}/tokenizer.model',
}
_OTHERS = ('vocab.json', 'tekken.json', 'tokenizer_config.json')


def tokenizer_spec(directory: str | os.PathLike) -> str:
  """What a configuration calls the tokenizer of a model directory.

  'byte' where there is none, or the one that an export of bytes holds.

  Raises:
    ConfigError: there is one, in files that satjax does not read.
  """
  folder = Path(directory)
  file = next((n for n in TOKENIZERS if (folder / n).is_file()), None)
  if file is None:
    if other := next((n for n in _OTHERS if (folder / n).is_file()), None):
      raise errors.ConfigError(
        f'{folder} has {other}, but no {" and no ".join(TOKENIZERS)}; save the'
        ' tokenizer as tokenizer.json (transformers: save_pretrained), or name'
        ' one with --tokenizer'
      )
    return 'byte'
  if file == 'tokenizer.json':
    ours = json.loads(tokenizers.ByteTokenizer().files()[file])
    found = weights.read_json(folder, file)
    # Earlier versions wrote none of these.
    if found == ours | {'post_processor': found.get('post_processor')}:
      return 'byte'
  return TOKENIZERS[file].format(directory)


def tokenizer_of(directory: str | os.PathLike) -> Tokenizer:
  """The tokenizer of a model directory; raises as `tokenizer_spec`."""
  return tokenizers.get_tokenizer(tokenizer_spec(directory))


def template_of(directory: str | os.PathLike, tokenizer: Tokenizer) -> str:
  """What a configuration calls the chat template of a model directory.

  A built-in one that an export wrote goes by its name again.
  """
  path = Path(directory) / small_files.TEMPLATE
  text = path.read_text('utf-8', 'replace') if path.is_file() else ''
  names = (n for n in chat.BUILT_IN if chat.built_in(tokenizer, n) == text)
  return next(names, 'auto')


def save(model: Model, directory: str | os.PathLike, **options: Any) -> None:
  """Writes a Hugging Face directory; options as `huggingface.save`."""
  huggingface.save(directory, model.config, model.params, **options)


def resolve(config: Config) -> Config:
  """Takes architecture and tokenizer from `model.init_from`, if that is set.

  The tokenizer, where none is named; and as many words as it needs, where more
  may be added.
  """
  model, data, asked = config.model, config.data, config.model.vocab_size
  if model.init_from:
    directory = hub.local(model.init_from)
    own = {name: getattr(model, name) for name in llama.TRAINING}
    model = dataclasses.replace(huggingface.read_config(directory), **own)
    if data.tokenizer == 'auto':
      spec = tokenizer_spec(directory)
      spec = f'hf:{model.init_from}' if spec.startswith('hf:') else spec
      data = dataclasses.replace(data, tokenizer=spec)
  words = vocabulary.num_rows(
    model.vocab_size, asked, model.vocab_multiple, data.tokenizer
  )
  model = dataclasses.replace(model, vocab_size=words)
  changed = dataclasses.replace(config, model=model, data=data)
  return config if changed == config else Config.from_dict(changed.to_dict())
