"""satjax evaluate."""

import json
from typing import Any

from satjax import errors
from satjax.commands import shared

SUMMARY = (
  'held-out loss, perplexity and bits per byte of a run or a model, or its'
  ' answers to the tasks of lm-evaluation-harness; the last line of stdout is'
  ' one JSON object'
)
_TASKS = {
  '--tasks': shared.value(
    'NAME,NAME',
    'tasks or groups of lm-evaluation-harness instead of held-out text;'
    ' gstack: the eight benchmarks of the G_stack paper',
    lambda text: [name for name in text.split(',') if name],
  ),
  '--task_dir': shared.value(
    'DIR',
    'tasks of your own, YAML files as the harness describes them, which'
    ' may name Python functions to run',
  ),
  '--limit': shared.value(
    'N', 'examples of each task, at most (default: all)', int
  ),
  '--num_fewshot': shared.value(
    'N', 'solved examples before each (default: as the task says)', int
  ),
}
OPTIONS = (
  shared.MODEL
  | shared.TEXT
  | {
    '--data': shared.value(
      'SOURCE',
      'held-out text, such as stdlib:docs or text:books/*.txt; may be'
      ' given again (default: that of the run, or stdlib:docs)',
      action='append',
    ),
    '--split': shared.choice(
      ('held_out', 'test'),
      'documents to read: held_out (default), or test, those that a run'
      ' with config.data.test keeps for final numbers',
      default='held_out',
    ),
    '--seq_len': shared.value(
      'N',
      'tokens in a row, for a --model directory (default: 256)',
      int,
      default=256,
    ),
    '--batches': shared.value(
      'N', 'batches of each source, at most (default: as the run, or 16)', int
    ),
  }
  | _TASKS
)


def run(options: Any) -> None:
  more = [flag for flag in _TASKS if getattr(options, flag[2:]) is not None]
  if more and not options.tasks:
    raise errors.ConfigError(f'{more[0]} needs --tasks=NAME,NAME')
  if options.tasks:
    result = _answer(options)
  else:
    result = _read(options)
  print(json.dumps(result))


def _answer(options):
  """Prints a table; the results of the tasks."""
  from satjax.interop import huggingface, lm_eval, lm_eval_tasks
  from satjax.train import saved

  if shared.is_run(options):
    found = saved.restore(options.workdir, options.step)
    model, tokenizer = found.model, found.tokenizer
    what = {'step': found.step}
    where = {'max_length': found.stage.seq_len, 'mesh': found.setup.mesh}
  else:
    model, tokenizer = shared.open_model(options)
    what = {'model': options.model}
    where = {'max_length': huggingface.max_length(options.model)}
  found = lm_eval_tasks.evaluate_tasks(
    lm_eval.adaptor(model.config, model.params, tokenizer, **where),
    options.tasks,
    task_dir=options.task_dir,
    limit=options.limit,
    num_fewshot=options.num_fewshot,
  )
  print(lm_eval_tasks.render(found), end='')
  return what | {'tasks': found.pop('results')} | found


def _read(options):
  """Prints a line for each source of text; the losses."""
  from satjax.config.data import DataConfig
  from satjax.data import tokenizers
  from satjax.interop import models
  from satjax.train import evaluation

  if shared.is_run(options):
    result = evaluation.evaluate_run(
      options.workdir,
      options.step,
      options.data,
      options.batches,
      split=options.split,
    )
  else:
    if options.split == 'test':
      raise errors.ConfigError(
        '--split=test needs --workdir=DIR: a --model directory does not say'
        ' which documents were kept for a test'
      )
    sources = tuple(options.data or ['stdlib:docs'])
    spec = options.tokenizer or models.tokenizer_spec(options.model)
    tokenizer = tokenizers.get_tokenizer(spec)
    data = DataConfig(
      train=sources,
      eval=sources,
      columns=options.columns,
      template=shared.template_of(options, tokenizer),
      reasoning=options.reasoning,
      unlearned='keep',
      tokenizer=spec,
      seq_len=options.seq_len,
      packing='concat_then_split',
      too_long='cut',
      attend='document',
      held_out=0.05,
      test=0.0,
      seed=0,
    )
    result = evaluation.evaluate_model(
      options.model, data, max_batches=options.batches or 16
    )
  for source, values in result[evaluation.NAMES[options.split]].items():
    text = '  '.join(f'{name} {value:.4f}' for name, value in values.items())
    print(f'{source}  {text}')
  return result
