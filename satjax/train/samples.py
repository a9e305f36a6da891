"""What the model says along a run: prompts continued at every evaluation.

`samples.jsonl` has a line for each, {"step", "prompt", "text"}. The most likely
tokens are taken, so that nothing is drawn, and the run stays what it is.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

import jax
import numpy as np

from satjax import distributed, files
from satjax.config.stages import Stage
from satjax.data import tokenizers
from satjax.data.documents import Message
from satjax.data.encode import Encoder
from satjax.data.pipeline import Batches
from satjax.generation import generate
from satjax.interop import small_files
from satjax.train import metrics
from satjax.train.setup import Setup
from satjax.tree import PyTree

NAME = 'samples.jsonl'


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Continues the prompts of a run; without any, does nothing."""

  path: pathlib.Path  # of `samples.jsonl`
  setup: Setup
  ids: Sequence[np.ndarray]  # of each prompt
  options: generate.Options

  def __call__(self, step: int, stage: Stage, params: PyTree) -> dict[str, str]:
    """Texts of the model after `step` steps by prompt, and writes them down.

    `params` are of the stage's model. Raises StorageError.
    """
    if not self.ids:
      return {}
    with jax.sharding.set_mesh(self.setup.mesh):
      found = generate.run(
        stage.model, params, self.setup.tokenizer, self.ids, self.options
      )
    texts = dict(zip(self.setup.config.train.sample_prompts, found.texts))
    if distributed.is_first():
      lines = self.path.read_text() if self.path.exists() else ''
      for prompt, text in texts.items():
        line = {'step': step, 'prompt': prompt, 'text': text}
        lines += json.dumps(line) + '\n'
      files.save(self.path, lines)
    return texts


def opened(
  workdir: pathlib.Path, setup: Setup, batches: Batches, step: int | None
) -> Sampler:
  """That of a run which goes on from `step`; None: it begins.

  Where it learns from chats or pairs, a prompt is what a user says.

  Raises:
    DataError: the template cannot write a prompt.
  """
  path, tokenizer = workdir / NAME, setup.tokenizer
  if distributed.is_first() and path.exists():
    metrics.rewind(path, step)
  data, train = setup.config.data, setup.config.train
  encoder = Encoder(tokenizer, data.template, data.reasoning)
  is_chat = any(rows.table.is_trained is not None for rows in batches.sources)
  ids = [
    encoder.prompt([Message('user', prompt)])
    if is_chat
    else tokenizers.begun(tokenizer, prompt)
    for prompt in train.sample_prompts
  ]
  base = small_files.base_of(workdir, setup.config.model.init_from)
  ends = small_files.ends(base, tokenizer, encoder.stop_id)
  options = generate.Options(
    train.sample_tokens, end_ids=ends, is_answer=is_chat
  )
  return Sampler(path, setup, ids, options)
