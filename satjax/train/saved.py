"""A trained run as a model: its configuration, tokenizer and parameters."""

import dataclasses
import os
import pathlib

from satjax import config as config_lib
from satjax import errors
from satjax.data import tokenizers
from satjax.interop import models
from satjax.train import checkpoint
from satjax.train import setup as setup_lib
from satjax.train import workdir as workdir_lib
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Saved:
  """A checkpoint of a run; `step` is how many steps it has completed."""

  config: config_lib.Config
  step: int
  params: PyTree
  setup: setup_lib.Setup

  @property
  def tokenizer(self) -> tokenizers.Tokenizer:
    return self.setup.tokenizer

  @property
  def model(self) -> models.Model:
    num_layers = self.params['blocks']['attention_norm'].shape[0]
    return models.Model(
      dataclasses.replace(self.config.model, num_layers=num_layers),
      self.params,
    )


def restore(workdir: str | os.PathLike, step: int | None = None) -> Saved:
  """The parameters of a run, whole, as of `step` or of the newest checkpoint.

  Raises:
    ConfigError: `workdir` is not one.
    DataError: there is no such checkpoint, or it is damaged.
  """
  config = workdir_lib.read_config(workdir)
  setup = setup_lib.make_setup(config)
  path = pathlib.Path(workdir) / 'checkpoints'
  if not path.is_dir():
    raise errors.DataError(
      f'{workdir} has no checkpoint yet; train it further first'
    )
  checkpoints = checkpoint.Checkpoints(path)
  found = checkpoints.restore(setup_lib.abstract_checkpoint(setup), step)
  checkpoints.close()
  if found is None:
    raise errors.DataError(
      f'{workdir} has no checkpoint yet; train it further first'
    )
  return Saved(config, found.step, found.state['state'].params, setup)
