"""Models as a user of the package holds them: load, apply, save."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp

from satjax import config as config_lib
from satjax.interop import huggingface
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Model:
  """A model and its configuration.

  Attributes:
    config: architecture and compute dtype.
    params: the tree of `tree.AXES`, in the dtype of the files.
  """

  config: config_lib.ModelConfig
  params: PyTree

  @property
  def apply(self) -> Callable[[PyTree, Any], jax.Array]:
    """`apply(params, tokens)`: int [B, T] -> float32 logits [B, T, V]."""
    from satjax.model import decoder

    def run(params, tokens):
      batch = {'tokens': jnp.asarray(tokens, jnp.int32)}
      return decoder.apply(self.config, params, batch)

    return run


def load(directory: str | os.PathLike) -> Model:
  """Reads a Hugging Face Llama directory (config.json and safetensors).

  Raises:
    DataError: one error that names everything that is wrong with it.
  """
  return Model(*huggingface.load(directory))


def save(model: Model, directory: str | os.PathLike, **options: Any) -> None:
  """Writes a Hugging Face directory; options as `huggingface.save`."""
  huggingface.save(directory, model.config, model.params, **options)


def resolve(config: config_lib.Config) -> config_lib.Config:
  """Takes the architecture from `model.init_from`, where that is set."""
  if not config.model.init_from:
    return config
  stored = huggingface.read_config(config.model.init_from)
  own = {
    name: getattr(config.model, name)
    for name in ('dtype', 'scan', 'remat', 'init_from')
  }
  model = dataclasses.replace(stored, **own)
  values = config.to_dict() | {'model': dataclasses.asdict(model)}
  return config_lib.Config.from_dict(values)
