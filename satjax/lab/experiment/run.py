"""An experiment from its file to its results: bases, timing, runs, tables."""

from collections.abc import Callable, Sequence
import dataclasses
import importlib.util
import json
import os
import pathlib
from typing import Any

from satjax import errors, files
from satjax.lab.experiment import results, runs, spec, tasks, timing, work
from satjax.lab.experiment.runs import Run
from satjax.lab.report import markdown, plots


def run(
  path: str,
  workdir: str | os.PathLike,
  *,
  scale: str,
  jobs: int = 1,
  out: str | os.PathLike | None = None,
  overrides: Sequence[str] = (),
) -> dict[str, Any]:
  """Runs what of an experiment has not run yet, and writes its results.

  Args:
    path: of the experiment file.
    workdir: of bases, runs and timings, which experiments share.
    scale: one of `spec.SCALES`.
    jobs: runs at a time.
    out: folder of NAME.json, NAME.md and plots; None: `workdir`/results.
    overrides: `--config.group.key=value`, of every run but the base's.

  Returns:
    The result, as in the JSON file.

  Raises:
    ConfigError: the file, or an arm of it, cannot be.
    Preempted: asked to stop; the same command goes on.
  """
  experiment = spec.load(path, scale, overrides)
  folder = pathlib.Path(workdir).resolve() / scale
  search = plan(experiment, folder)
  with work.Pool(jobs) as pool:
    _make_bases(pool, search)
    timed = _measure(pool, experiment, folder, search)
    _train(pool, 'learning rates', _flat(search))
    found = _seeds(experiment, folder, search)
    _train(pool, 'seeds', [r for f in found.values() for r in f.runs.values()])
  value = results.result(experiment, found, timed)
  write(value, pathlib.Path(out) if out else folder.parent / 'results' / scale)
  return value


def write(value: dict[str, Any], folder: pathlib.Path) -> None:
  """NAME.json, NAME.md and the plots of a result."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / f'{value["name"]}.json', value)
    pictures = []
    if importlib.util.find_spec('matplotlib'):
      pictures = [path.name for path in plots.write_plots(value, folder)]
    shown = [name for name in pictures if name.endswith('.png')]
    text = markdown.markdown(value, shown)
    (folder / f'{value["name"]}.md').write_text(text)
  except OSError as error:
    raise errors.StorageError(
      f'cannot write to {folder}: {error.strerror}; choose another --out'
    ) from error


def plan(
  experiment: spec.Experiment, folder: pathlib.Path
) -> dict[str, dict[float, Run]]:
  """The runs of the search, by arm and learning rate; checks all of them."""
  scenario = experiment.scenario
  return {
    name: {
      rate * arm.rate_factor: runs.make_run(
        folder, scenario, arm, rate, scenario.seeds[0]
      )
      for rate in scenario.learning_rates
    }
    for name, arm in experiment.arms.items()
  }


def _flat(search) -> list[Run]:
  return [run for of_arm in search.values() for run in of_arm.values()]


def _make_bases(pool: work.Pool, search) -> None:
  bases = [run.base for run in _flat(search) if run.base]
  whole = [dataclasses.replace(base, prune=0.0) for base in bases]
  pruned = [base for base in bases if base.prune]
  for label, make, wanted in (
    ('base', tasks.make_base, whole),
    ('pruned base', tasks.make_pruned, pruned),
  ):
    missing = [b for b in dict.fromkeys(wanted) if not b.model.exists()]
    pool.run(label, [_task(base, make) for base in missing])


def _task(what: Any, function: Callable[..., None]) -> work.Task:
  cost = runs.total_flops(what.config)
  name = what.path.name
  return work.Task(name, cost, what.path / 'log.txt', function, (what,))


def _train(pool: work.Pool, label: str, wanted: Sequence[Run]) -> None:
  open_runs = {run.path: run for run in wanted if not run.is_done}
  # The longest first: no worker waits long for the last one.
  ordered = sorted(open_runs.values(), key=lambda run: -run.flops)
  pool.run(label, [_task(run, tasks.train_run) for run in ordered])


def _measure(
  pool: work.Pool, experiment: spec.Experiment, folder: pathlib.Path, search
) -> dict[str, Any] | None:
  """Step times of everything that runs; alone on the machine, and once."""
  scenario = experiment.scenario
  if scenario.family != 'sat':
    return None
  dense = next(iter(search[scenario.reference].values())).config
  path = folder / 'timing' / f'{timing.dense_cell(dense).key}.json'
  old = json.loads(path.read_text()) if path.exists() else None
  wanted = {}
  for run in _flat(search):
    for cell in timing.cells(run.config) or ():
      if not old or cell.key not in old['cells']:
        wanted[cell.key] = cell
  if wanted:
    task = work.Task(
      f'{len(wanted)} steps and refreshes',
      1.0,
      folder / 'timing' / 'log.txt',
      timing.measure,
      (dense, list(wanted.values()), timing.ROUNDS[experiment.scale]),
    )
    (new,) = pool.run('timing', [task])
    old = timing.merge(old, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, old)
  return old


def _seeds(
  experiment: spec.Experiment, folder: pathlib.Path, search
) -> dict[str, results.Found]:
  """The runs of every seed with the best learning rate of each arm."""
  scenario = experiment.scenario
  found = {}
  for name, arm in experiment.arms.items():
    best = results.best_rate(arm, search[name])
    of_arm = {}
    if best is not None:
      rate = best / arm.rate_factor
      of_arm = {
        seed: runs.make_run(folder, scenario, arm, rate, seed)
        for seed in scenario.seeds
      }
    found[name] = results.Found(search[name], of_arm)
  return found
