"""Tasks of lm-evaluation-harness: finds, runs and shows them.

A task is a YAML file: of the user, of the harness ('stock'), or of satjax (the
group `gstack`). Local ones need neither a network nor the harness's index of
many thousand names, which is read only where a name is not found without it.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import difflib
import json
import math
import os
from pathlib import Path
import sys
from typing import Any

from satjax import console, errors, files

_OWN = Path(__file__).parent / 'tasks'
_FEWSHOT_SEED = 1234  # the harness's own: the same examples for every model
_RESAMPLED = 1000  # times, for standard errors that have no formula


def evaluate_tasks(
  lm: Any,
  tasks: Sequence[str],
  *,
  task_dir: str | os.PathLike | None = None,
  limit: int | None = None,
  num_fewshot: int | None = None,
  samples: str | os.PathLike | None = None,
) -> dict[str, dict[str, Any]]:
  """Evaluates a model on tasks.

  Args:
    lm: what `lm_eval.adaptor` gives.
    tasks: names of tasks, groups or tags.
    task_dir: folder of YAML files, which go before stock ones of that name.
    limit: examples of each task, the first ones; None: all.
    num_fewshot: solved examples before each; None: as the task says. A task
      that says 0 keeps it.
    samples: file for what each example scores, one JSON object a line, as the
      harness logs it.

  Returns:
    By name of a task or group: 'results', `{metric: value}`, with METRIC_stderr
    where there is one; 'num_examples', 'num_fewshot' and 'version'.

  Raises:
    ConfigError: a task is unknown, cannot be loaded, or asks for what the model
      cannot do.
    StorageError: `samples` cannot be written.
  """
  if samples is not None:
    files.save(Path(samples), '')
  if limit is not None and limit < 1:
    raise errors.ConfigError(f'limit {limit} must be at least 1')
  # The harness resamples without forking: JAX's threads would not survive.
  os.environ['DISABLE_MULTIPROC'] = '1'
  # Its output is no result; standard output is for those.
  with contextlib.redirect_stdout(sys.stderr):
    from lm_eval import evaluator

    loaded = _load(tasks, task_dir)
    for task in loaded['tasks'].values():
      _set_shots(task, num_fewshot)
    found = evaluator.evaluate(
      lm,
      loaded,
      limit=limit,
      bootstrap_iters=_RESAMPLED,
      log_samples=samples is not None,
    )
  if samples is not None:
    files.save(Path(samples), _lines(found['samples']))
  counts = found['n-samples']
  return {
    'results': {n: m for n, v in found['results'].items() if (m := _plain(v))},
    'num_examples': {name: n['effective'] for name, n in counts.items()},
    'num_fewshot': {name: found['n-shot'][name] for name in counts},
    'version': {name: found['versions'][name] for name in counts},
  }


def _set_shots(task: Any, num_fewshot: int | None) -> None:
  """As `lm_eval.simple_evaluate`, which also looks at the machine for long."""
  own = task.get_config('num_fewshot')
  if own != 0:
    shots = own or 0 if num_fewshot is None else num_fewshot
    task.set_config('num_fewshot', shots)
  task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _lines(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """A JSON object for each example, its task first."""
  rows = [{'task': task} | row for task in samples for row in samples[task]]
  return ''.join(json.dumps(row, default=str) + '\n' for row in rows)


def _load(names: Sequence[str], task_dir: str | os.PathLike | None) -> Any:
  """The task objects of the harness, with their data."""
  from lm_eval import tasks as library

  places = [_OWN]
  if task_dir is not None:
    places.append(Path(task_dir).expanduser().resolve())
    if not places[-1].is_dir():
      raise errors.ConfigError(
        f'task_dir {task_dir} is no folder; name one that has YAML files'
      )
  names = list(dict.fromkeys(names))
  manager = library.TaskManager(include_path=places, include_defaults=False)
  local = set(manager.all_tasks)
  if not local.issuperset(_needed(names, manager.task_index)):
    # Takes seconds: the harness reads all of its YAML files.
    manager = library.TaskManager(include_path=places)
  for name in names:
    if name not in manager.all_tasks:
      near = difflib.get_close_matches(name, manager.all_tasks, n=3)
      means = f'; did you mean {" or ".join(near)}?' if near else ''
      raise errors.ConfigError(
        f'task {name!r} is unknown{means} Known are those of satjax and of'
        f' task_dir ({", ".join(sorted(local))}), leaving out YAML files that'
        " cannot be read, and stock ones, which 'lm-eval ls tasks' lists"
      )
  _find_beside(manager)
  try:
    return manager.load(names)
  except Exception as error:  # Of YAML, templates, files, the network...
    raise errors.ConfigError(
      f'tasks {", ".join(names)} cannot be loaded:'
      f' {type(error).__name__}: {error}; the data of a stock task come from'
      ' the Hugging Face Hub, so connect, or set HF_HOME to a cache that has'
      ' them; of a task of your own, check dataset_path, data_files and splits'
    ) from error


def _find_beside(manager: Any) -> None:
  """Lets tasks name data relative to the folder of their YAML.

  The harness looks from the current folder, and still does for what is not
  beside the YAML. It has no public place to say so.
  """
  factory = manager._factory
  build = factory._build_task

  def built(entry, overrides):
    if entry.yaml_path:
      with (
        contextlib.suppress(FileNotFoundError),
        contextlib.chdir(entry.yaml_path.parent),
      ):
        return build(entry, overrides)
    return build(entry, overrides)

  factory._build_task = built


def _needed(item: Any, index: Mapping[str, Any]) -> Iterator[str]:
  """The names that an entry of a list of tasks leads to, through groups."""
  if isinstance(item, list):
    for child in item:
      yield from _needed(child, index)
  elif isinstance(item, dict):
    yield from _needed(item.get('task', item.get('group')), index)
  else:
    yield item
    config = index[item].cfg if item in index else None
    if config and 'group' in config:
      yield from _needed(config.get('task', []), index)


def _plain(values: Mapping[str, Any]) -> dict[str, float | None]:
  """Metrics alone; 'acc,none' becomes 'acc', what is not finite None."""
  found = {}
  for key, value in values.items():
    name, comma, rule = key.partition(',')
    if comma and not isinstance(value, str):  # 'N/A'
      name = name if rule == 'none' else key
      found[name] = float(value) if math.isfinite(value) else None
  return found


def render(found: Mapping[str, Mapping[str, Any]]) -> str:
  """What `evaluate_tasks` returns, as a table of Markdown."""
  rows = []
  for task, values in found['results'].items():
    counts = [
      str(found[key].get(task, '')) for key in ('num_examples', 'num_fewshot')
    ]
    for metric, value in values.items():
      if '_stderr' in metric:
        continue
      name, comma, rule = metric.partition(',')
      error = values.get(f'{name}_stderr{comma}{rule}')
      shown = 'not finite' if value is None else f'{value:.6g}'
      spread = '' if error is None else f'{error:.3g}'
      rows.append((task, metric, shown, spread, *counts))
  columns = ('task', 'metric', 'value', 'stderr', 'examples', 'shots')
  return console.markdown(columns, rows)
