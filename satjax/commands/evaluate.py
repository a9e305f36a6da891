"""satjax evaluate."""

import json
from typing import Any

from satjax import errors
from satjax.commands import shared

SUMMARY = (
  'loss, perplexity and bits per byte of a run or a model on text, or its'
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
# As the run reads text, or the run that an export comes from: `subjects`.
_READING = {
  **{flag: option | {'default': None} for flag, option in shared.TEXT.items()},
  '--seq_len': shared.value(
    'N', 'tokens in a row (default: as trained, or 256)', int
  ),
  '--packing': shared.choice(
    ('best_fit', 'concat_then_split'),
    'whole documents, of which long ones go on in another row; or end to end,'
    ' cut where rows end (default: as trained, or best_fit)',
  ),
  '--held_out': shared.value(
    'SHARE',
    'of the documents of each source to read, the same that a run with this'
    ' config.data.held_out keeps from training; 1: all (default: all, but of'
    ' sources that were trained on what was held out)',
    float,
  ),
}
OPTIONS = (
  shared.MODEL
  | {
    '--data': shared.value(
      'SOURCE',
      'text to read, such as text:test.txt or tokens:DIR; may be given again'
      ' (default: config.data.eval of the run, or stdlib:docs)',
      action='append',
    ),
    '--split': shared.choice(
      ('held_out', 'test'),
      'of sources that were trained on: held_out (default), or test, the'
      ' documents that config.data.test keeps for final numbers',
      default='held_out',
    ),
  }
  | _READING
  | {
    '--batches': shared.value(
      'N', 'batches of each source, spread over it (default: all)', int
    ),
    '--log_samples': shared.value(
      'FILE',
      'where to write what each document or example scores, one JSON object'
      ' a line',
    ),
  }
  | _TASKS
)


def run(options: Any) -> None:
  more = [flag for flag in _TASKS if getattr(options, flag[2:]) is not None]
  if more and not options.tasks:
    raise errors.ConfigError(f'{more[0]} needs --tasks=NAME,NAME')
  texts = ('--data', '--batches', *_READING)
  more = [flag for flag in texts if getattr(options, flag[2:]) is not None]
  if more and options.tasks:
    raise errors.ConfigError(f'{more[0]} is of text, and --tasks of tasks')
  answer = _answer if options.tasks else _read
  print(json.dumps(answer(options, shared.open_subject(options))))


def _answer(options, subject):
  """Prints a table; the results of the tasks."""
  from satjax.interop import lm_eval, lm_eval_tasks

  found = lm_eval_tasks.evaluate_tasks(
    lm_eval.adaptor(
      subject.stage.model,
      subject.params,
      subject.tokenizer,
      max_length=subject.max_length,
      end_ids=subject.end_ids,
      mesh=subject.mesh,
    ),
    options.tasks,
    task_dir=options.task_dir,
    limit=options.limit,
    num_fewshot=options.num_fewshot,
    samples=options.log_samples,
  )
  print(lm_eval_tasks.render(found), end='')
  return subject.what | {'tasks': found.pop('results')} | found


def _read(options, subject):
  """Prints a line for each source of text; the losses."""
  from satjax.train import evaluation, subjects

  result = subjects.evaluate(
    subject,
    sources=options.data,
    max_batches=options.batches,
    split=options.split,
    samples=options.log_samples,
    **{flag[2:]: getattr(options, flag[2:]) for flag in _READING},
  )
  for source, values in result[evaluation.NAMES[options.split]].items():
    scores = (n for n in values if n not in subjects.COUNTS)
    text = '  '.join(f'{name} {values[name]:.4f}' for name in scores)
    read, whole, tokens = (f'{values[n]:,}' for n in subjects.COUNTS)
    print(f'{source}  {text}  {read} of {whole} documents, {tokens} tokens')
  return result
