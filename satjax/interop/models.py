"""Models as a user of the package holds them: load, apply, save."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

from satjax.config.groups import ModelConfig
from satjax.config.run import Config
from satjax.data.tokenizers import Tokenizer
from satjax.interop import huggingface, llama, weights
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Model:
  """A model and its configuration."""

  config: ModelConfig  # architecture and compute dtype
  params: PyTree  # of `tree.AXES`, in the dtype of the files

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
  """Reads a Hugging Face directory; options as `huggingface.load`.

  Warns if the model was trained with another tokenizer than the one given.

  Raises:
    DataError: one error that names everything that is wrong with it.
  """
  if tokenizer is not None:
    _check_tokenizer(directory, tokenizer)
  return Model(*huggingface.load(directory, **options))


def _check_tokenizer(
  directory: str | os.PathLike, tokenizer: Tokenizer
) -> None:
  """Warns if texts end with another token than those the model has read."""
  found = set()
  for name in ('config.json', 'generation_config.json'):
    if (Path(directory) / name).is_file():
      ids = weights.read_json(Path(directory), name).get('eos_token_id')
      found |= set(ids if isinstance(ids, list) else [ids])
  found.discard(None)
  if found and tokenizer.eos_id not in found:
    end = tokenizer.eos_id
    logging.warning(
      f'Tokenizer {tokenizer.name} ends texts with id {end}'
      f' ({tokenizer.token(end)}), and the model in {directory} was trained to'
      f' end them with {" or ".join(map(str, sorted(found)))}: is it the'
      f' tokenizer of this model? It would be named hf:{directory}'
    )


def save(model: Model, directory: str | os.PathLike, **options: Any) -> None:
  """Writes a Hugging Face directory; options as `huggingface.save`."""
  huggingface.save(directory, model.config, model.params, **options)


def resolve(config: Config) -> Config:
  """Takes the architecture from `model.init_from`, where that is set."""
  if not config.model.init_from:
    return config
  stored = huggingface.read_config(config.model.init_from)
  own = {name: getattr(config.model, name) for name in llama.TRAINING}
  model = dataclasses.replace(stored, **own)
  values = config.to_dict() | {'model': dataclasses.asdict(model)}
  return Config.from_dict(values)
