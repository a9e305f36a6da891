"""A trained run as a model: its configuration, tokenizer and parameters."""

import dataclasses
import os
import pathlib

from satjax import errors, tree
from satjax.config.run import Config
from satjax.config.stages import Stage
from satjax.data import tokenizers
from satjax.data.encode import Encoder
from satjax.interop import models, small_files
from satjax.train import checkpoint, kept, views
from satjax.train import setup as setup_lib
from satjax.train import workdir as workdir_lib
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Saved:
  """A checkpoint of a run."""

  config: Config
  step: int  # completed ones
  stage: Stage  # that they ended in
  params: PyTree  # of the model, adapters added to them
  setup: setup_lib.Setup
  base: small_files.Settings  # of the model that the run started from
  adapters: PyTree = None  # by themselves (`lora`), if there are any

  @property
  def tokenizer(self) -> tokenizers.Tokenizer:
    return self.setup.tokenizer

  @property
  def model(self) -> models.Model:
    ends = small_files.ends(self.base, self.tokenizer, self.encoder.stop_id)
    return models.Model(self.stage.model, self.params, ends)

  @property
  def encoder(self) -> Encoder:
    """How the run wrote its documents and chats."""
    data = self.config.data
    return Encoder(self.tokenizer, data.template, data.reasoning)


def restore(
  workdir: str | os.PathLike,
  step: str | int | None = None,
  tokenizer: str = '',
) -> Saved:
  """The model of a run as of `step`, or of the newest checkpoint.

  Args:
    workdir: of the run, wherever it is now.
    step: completed ones, such as 30; 'best', of the lowest held-out loss; or
      'before_growth:30', 'after_growth:30' for the model on either side of a
      hop; or 'decayed:30', for one that was finished before the run was made
      longer.
    tokenizer: instead of the run's own.

  Raises:
    ConfigError: `workdir` is not one, or `step` is none.
    DataError: there is no such checkpoint, or it is damaged.
  """
  config = kept.opened(workdir, workdir_lib.read_config(workdir), tokenizer)
  # The kernel that it was trained with may not exist here.
  model = dataclasses.replace(config.model, attention='auto')
  # Nothing rests any more: a saved model is whole, on the device.
  sparsity = dataclasses.replace(config.sparsity, rest='device')
  config = dataclasses.replace(config, model=model, sparsity=sparsity)
  is_best = step == 'best'
  number, kind = _parse(None if is_best else step)
  setup = setup_lib.make_setup(config)
  path = pathlib.Path(workdir)
  if not (path / 'checkpoints').is_dir():
    raise errors.DataError(
      f'{workdir} has no checkpoint yet; train it further first'
    )
  checkpoints = checkpoint.Checkpoints(path)
  abstract = setup_lib.abstract_checkpoint(setup)
  if is_best and (number := checkpoints.best()) is None:
    raise errors.DataError(
      f'no checkpoint of {workdir} was evaluated at its step, so that none is'
      ' the best; name one by its step (the next run: config.train.keep_best)'
    )
  found = checkpoints.restore(abstract, number, kind)
  checkpoints.close()
  if found is None:
    raise errors.DataError(
      f'{workdir} has no checkpoint yet; train it further first'
    )
  stage = setup_lib.stage_of(config, found.record)
  state, params = found.state['state'], found.state['state'].params
  if stage.mode != 'frozen':  # which checkpoints hold whole
    base = tree.unflatten(found.state['extra']).get('held')
    params = views.seen(stage, params, base, state.step)
  adapters = state.params if stage.mode == 'lora' else None
  base = small_files.base_of(workdir, config.model.init_from)
  return Saved(config, found.step, stage, params, setup, base, adapters)


def _parse(step: str | int | None) -> tuple[int | None, str]:
  """Step and folder of what a user asks for."""
  if step is None:
    return None, checkpoint.KINDS[0]
  kind, _, number = str(step).rpartition(':')
  kind = kind or checkpoint.KINDS[0]
  kinds = (*checkpoint.KINDS, checkpoint.DECAYED)
  if kind not in kinds or not number.isdecimal():
    raise errors.ConfigError(
      f"step {step!r}: name completed steps, such as 30, or 'best', or a model"
      " beside a hop, such as 'before_growth:30' or 'after_growth:30'"
    )
  return int(number), kind
