"""What the model says along a run: prompts continued at every evaluation.

`samples.jsonl` has a line for each, {"step", "prompt", "text"}. The most likely
tokens are taken, so that nothing is drawn, and the run stays what it is.
"""

import json
import pathlib

import jax

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


class Sampler:
  """Continues the prompts of a run; without any, does nothing."""

  def __init__(
    self,
    workdir: pathlib.Path,
    setup: Setup,
    batches: Batches,
    step: int | None,
  ):
    """That of a run which goes on from `step`; None: it begins.

    Where it learns from chats or pairs, a prompt is what a user says.

    Raises:
      DataError: the template cannot write a prompt.
    """
    self._path, self._setup = workdir / NAME, setup
    if distributed.is_first() and self._path.exists():
      metrics.rewind(self._path, step)
    data, train = setup.config.data, setup.config.train
    tokenizer = setup.tokenizer
    encoder = Encoder(tokenizer, data.template, data.reasoning)
    is_chat = any(rows.table.is_trained is not None for rows in batches.sources)
    self._ids = [
      encoder.prompt([Message('user', prompt)])
      if is_chat
      else tokenizers.begun(tokenizer, prompt)
      for prompt in train.sample_prompts
    ]
    base = small_files.base_of(workdir, setup.config.model.init_from)
    ends = small_files.ends(base, tokenizer, encoder.stop_id)
    self._options = generate.Options(
      train.sample_tokens, end_ids=ends, is_answer=is_chat
    )

  def __call__(self, step: int, stage: Stage, params: PyTree) -> dict[str, str]:
    """Texts of the model after `step` steps by prompt, and writes them down.

    `params` are of the stage's model. Raises StorageError.
    """
    if not self._ids:
      return {}
    with jax.sharding.set_mesh(self._setup.mesh):
      found = generate.run(
        stage.model, params, self._setup.tokenizer, self._ids, self._options
      )
    texts = dict(zip(self._setup.config.train.sample_prompts, found.texts))
    if distributed.is_first():
      lines = self._path.read_text() if self._path.exists() else ''
      for prompt, text in texts.items():
        line = {'step': step, 'prompt': prompt, 'text': text}
        lines += json.dumps(line) + '\n'
      files.save(self._path, lines)
    return texts
