"""What is evaluated, a run or a model directory, and one way for both.

An export says in `satjax.json` how its run read text: what it was trained on,
so that held-out documents are known, and the template and the rows. The same
documents in the same rows give the same loss.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import jax

from satjax import console, errors, files, sharding
from satjax.config import history, schema
from satjax.config.data import DataConfig
from satjax.config.groups import MeshConfig
from satjax.config.stages import Stage
from satjax.data import pipeline
from satjax.data import sources as sources_lib
from satjax.data.tokenizers import Tokenizer
from satjax.interop import huggingface, models
from satjax.train import evaluation, saved
from satjax.tree import PyTree

NAME = 'satjax.json'
_ROWS = 8  # of a batch, where a run does not say otherwise
# Of each source: documents read, all that it has, and tokens that count.
COUNTS = ('documents', 'of_documents', 'tokens')
# Of a directory that does not say: each document by itself.
_FOREIGN = {
  'train': (),
  'eval': ('stdlib:docs',),
  'columns': (),
  'reasoning': 'template',
  'unlearned': 'keep',
  'tokenizer': 'byte',
  'seq_len': 256,
  'packing': 'best_fit',
  'too_long': 'cut',
  'attend': 'document',
  'held_out': 0.05,
  'test': 0.0,
  'seed': 0,
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is evaluated, and how its text was read."""

  what: dict[str, Any]  # 'step' or 'model', for results
  stage: Stage
  params: PyTree
  tokenizer: Tokenizer
  data: DataConfig  # `train` may hold fingerprints of files
  mesh: jax.sharding.Mesh
  max_length: int  # tokens that the model reads at once
  end_ids: tuple[int, ...]  # of the tokens that end a text
  batch_size: int  # rows of a batch as the run counts them


def of_run(
  workdir: str | os.PathLike,
  step: str | int | None = None,
  tokenizer: str = '',
) -> Subject:
  """A checkpoint of a run; arguments and errors as `saved.restore`."""
  run = saved.restore(workdir, step, tokenizer)
  data = dataclasses.replace(run.config.data, seq_len=run.stage.seq_len)
  return Subject(
    {'step': run.step},
    run.stage,
    run.params,
    run.tokenizer,
    data,
    run.setup.mesh,
    huggingface.longest(run.stage.seq_len, run.base),
    run.model.end_ids,
    run.stage.batch_size,
  )


def of_model(
  directory: str | os.PathLike,
  model: models.Model,
  tokenizer: Tokenizer,
  template: str = 'plain',
) -> Subject:
  """A model directory; `template`: of one that satjax did not export.

  Raises:
    DataError: its `satjax.json` cannot be used.
  """
  found = _read(Path(directory) / NAME)
  data, problems = DataConfig(**_FOREIGN, template=template), []
  if 'data' in found:
    values = {'tokenizer': data.tokenizer} | found['data']
    data = schema.build(DataConfig, 'data', values, problems)
  if problems:
    raise errors.DataError(f'{directory}/{NAME}: {"; ".join(problems)}')
  dtype = found.get('model', {}).get('dtype', model.config.dtype)
  config = dataclasses.replace(model.config, dtype=dtype)
  mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
  rows = mesh.shape['data']
  stage = Stage(0, config, data.seq_len, -(-_ROWS // rows) * rows)
  return Subject(
    {'model': str(directory)},
    stage,
    model.params,
    tokenizer,
    data,
    mesh,
    huggingface.max_length(directory),
    model.end_ids,
    found.get('batch_size', _ROWS),
  )


def remember(directory: str | os.PathLike, run: saved.Saved) -> None:
  """Writes to an export how its run reads text.

  Raises:
    StorageError: it cannot be written.
  """
  data = dataclasses.asdict(run.config.data) | {'seq_len': run.stage.seq_len}
  del data['tokenizer']  # lies in the directory
  names = [name for name, _ in pipeline.weighted(data['train'])]
  data['train'] = [one for name in names for one in sources_lib.identify(name)]
  described = {
    'version': history.VERSION,
    'step': run.step,
    'model': {'dtype': run.stage.model.dtype},
    'batch_size': run.stage.batch_size,
    'data': data,
  }
  files.save(Path(directory) / NAME, files.to_json(described))


def _read(path: Path) -> dict[str, Any]:
  """What an export remembers; {}: it does not, or is not one of ours."""
  try:
    found = history.upgrade(json.loads(path.read_text(encoding='utf-8')))
    return {
      'batch_size': max(1, int(found.get('batch_size', _ROWS))),
      **{name: dict(found[name]) for name in ('model', 'data')},
    }
  except FileNotFoundError:
    return {}
  except (ValueError, LookupError, TypeError) as error:
    raise errors.DataError(
      f'{path} is damaged ({error}); export the run again, or delete it'
    ) from error


def evaluate(
  subject: Subject,
  *,
  sources: Sequence[str] | None = None,
  max_batches: int | None = None,
  split: str = 'held_out',
  samples: str | os.PathLike | None = None,
  **changes: Any,
) -> dict[str, Any]:
  """Evaluates a model on text.

  Args:
    sources: None: those of its `data.eval`.
    max_batches: of each source, at least 1; None: all of it.
    split: of `evaluation.NAMES`.
    samples: file for the scores of each document, one JSON object a line.
    changes: other settings of `data`. With `held_out`, that share of every
      source is read, whatever was trained on; 1: all.

  Returns:
    `{'step': N, 'eval': {source: {'loss': ...}}}`; 'model' in place of 'step';
    of the test split, 'test' in place of 'eval'.

  Raises:
    ConfigError, DataError: as `Evaluator`; or a change is out of range.
    StorageError: `samples` cannot be written.
  """
  if max_batches is not None and max_batches < 1:
    raise errors.ConfigError(f'batches {max_batches} must be at least 1')
  data = _changed(subject, split, changes)
  sources = sources or [name for name, _ in pipeline.weighted(data.eval)]
  if not sources:
    raise errors.ConfigError(
      'there is nothing to evaluate: data.eval is empty; name --data=SOURCE'
    )
  if changes.get('held_out') is not None:
    data = dataclasses.replace(data, train=tuple(sources), test=0.0)
  if samples is not None:
    files.save(Path(samples), '')
  evaluator = evaluation.Evaluator(
    data,
    vocab_size=subject.stage.model.vocab_size,
    mesh=subject.mesh,
    batch_size=subject.stage.batch_size,
    max_rows=max_batches and max_batches * subject.batch_size,
    sources=sources,
    split=split,
    tokenizer=subject.tokenizer,
  )
  stage = dataclasses.replace(subject.stage, seq_len=data.seq_len)
  with console.Progress('evaluation') as bar:
    tick = bar.start(sum(map(len, evaluator.batches.values())))
    if samples is None:
      losses = evaluator(stage, subject.params, tick)
    else:
      found = list(evaluator.by_document(stage, subject.params, tick))
      lines = ''.join(json.dumps(one) + '\n' for one in found)
      files.save(Path(samples), lines)
      losses = _means(found)
  return subject.what | {evaluation.NAMES[split]: _describe(evaluator, losses)}


def _changed(subject: Subject, split: str, changes: dict) -> DataConfig:
  """Other settings, each checked; None: it stays."""
  changes = {n: value for n, value in changes.items() if value is not None}
  share = changes.get('held_out')
  problems = []
  if share is not None and not 0 < share <= 1:
    problems.append(
      f'held_out {share}; allowed: above 0, up to 1, which is all'
    )
  if share is not None and split == 'test':
    problems.append("held_out is no share of split 'test'; name one of both")
  fields = {field.name: field for field in dataclasses.fields(DataConfig)}
  for name, value in changes.items():
    if name != 'held_out':
      schema.read(name, fields[name], value, problems)
  if problems:
    raise errors.ConfigError('; '.join(problems))
  data = dataclasses.replace(subject.data, **changes)
  if data.seq_len > subject.max_length:
    console.say(
      f'rows of {data.seq_len} tokens: the model reads {subject.max_length} at'
      ' once, and its losses beyond that are not those of its training; use'
      f' --seq_len={subject.max_length} or less'
    )
  return data


def _means(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Nats a token of each source, of scores of its documents."""
  nats, tokens = collections.Counter(), collections.Counter()
  for one in found:
    nats[one['source']] += one['loss'] * one['tokens']
    tokens[one['source']] += one['tokens']
  return {source: nats[source] / tokens[source] for source in nats}


def _describe(
  evaluator: evaluation.Evaluator, losses: Mapping[str, float]
) -> dict[str, dict[str, float]]:
  """Loss in nats a token, perplexity, bits per byte, and what was read."""
  result, sizes = {}, evaluator.bytes_per_token()
  for source, loss in losses.items():
    result[source] = {'loss': loss, 'perplexity': math.exp(loss)}
    if sizes[source]:
      result[source]['bits_per_byte'] = loss / sizes[source] / math.log(2)
    read = evaluator.batches[source]
    counts = (read.num_documents, read.num_found, read.num_tokens)
    result[source] |= dict(zip(COUNTS, counts))
  return result
