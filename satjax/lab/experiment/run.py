"""An experiment from its file to its results: bases, timing, trials, tables."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import importlib.util
import json
import math
import os
import pathlib
import sys
from typing import Any

from satjax import errors, files, hub
from satjax.data import pipeline
from satjax.interop import writer
from satjax.lab.experiment import disk, results, spec, tasks, timing, work
from satjax.lab.experiment.trials import Trial, make_trial, total_flops
from satjax.lab.report import markdown, plots

Search = dict[str, dict[float, Trial]]  # by arm and learning rate


def run(
  experiment: spec.Experiment,
  workdir: str | os.PathLike,
  *,
  jobs: int = 1,
  out: str | os.PathLike | None = None,
) -> dict[str, Any]:
  """Runs what of an experiment has not run yet; its result, as in the file.

  Args:
    experiment: of `spec.load`.
    workdir: of bases, runs and timings, which experiments share.
    jobs: runs at a time.
    out: folder of NAME.json, NAME.md and plots; None: `workdir`/results.

  Raises:
    ConfigError: an arm cannot be.
    DataError: no file is where text should be.
    StorageError: there is too little disk, or it cannot be written.
    Preempted: asked to stop; the same command goes on.
  """
  folder = pathlib.Path(workdir).resolve() / experiment.scale
  usual = folder.parent / 'results' / experiment.scale
  out = pathlib.Path(out) if out else usual
  search = plan(experiment, folder)
  _check_place(experiment, out / f'{experiment.name}.json')
  need = disk.needed(every_trial(experiment, folder, search), jobs)
  disk.check(need, folder)
  with work.Pool(jobs) as pool:
    noted, named = folder / 'files.json', _names(search)
    note = functools.cache(lambda: _note(_files(named), noted))
    if not all(trial.is_done for trial in _flat(search)):
      note()  # before a base is trained, or steps are timed
    out.mkdir(parents=True, exist_ok=True)
    print(f'{experiment.name}: {disk.in_words(need)}', file=sys.stderr)
    _make_bases(pool, search)
    timed = _measure(pool, experiment, folder, search)
    each = every_trial(experiment, folder, search)
    times = (timing.seconds(trial.config, timed) for trial in each)
    hours = sum(x for x in times if x is not None) / 3600
    print(
      f'{experiment.name}: {hours:.1f} hours of steps that were timed;'
      ' compiling and evaluating come on top',
      file=sys.stderr,
    )
    _train(pool, 'learning rates', _flat(search), note)
    for _ in range(experiment.scenario.widen):
      more = widened(experiment, folder, search)
      _train(pool, 'more learning rates', more, note)
    last = finalists(experiment, search)
    arms = {
      name: _with_seeds(experiment, folder, name, of_arm, all=name in last)
      for name, of_arm in search.items()
    }
    _train(pool, 'seeds', [t for arm in arms.values() for t in arm.all], note)
  value = results.result(experiment, arms, timed)
  value['files'] = _digests(named, _read(noted))
  write(value, out)
  return value


def _check_place(experiment: spec.Experiment, file: pathlib.Path) -> None:
  """Raises ConfigError: a file has the result of another experiment."""
  own = experiment.title, experiment.scale, experiment.scenario.name
  if file.exists():
    old = files.read_json(file)
    there = tuple(old.get(key) for key in ('title', 'scale', 'scenario'))
    if there != own:
      raise errors.ConfigError(
        f'{file} has the result of {there}, and this is {own}; name another'
        ' --out or another --workdir'
      )


def _names(search: Search) -> set[tuple[str, bool]]:
  """What runs and bases read: sources, and (True) models they begin with."""
  trials = _flat(search)
  configs = [
    *(t.config for t in trials),
    *(t.base.config for t in trials if t.base),
  ]
  found = set()
  for config in configs:
    every = pipeline.weighted((*config.data.train, *config.data.eval))
    found |= {(name, False) for name, _ in every}
    found |= {(config.model.init_from, True)} - {('', True)}
  return found


def _files(named: set[tuple[str, bool]]) -> dict[str, dict[str, str]]:
  """SHA-256 of each file by `_names`; DataError: a source has none."""
  found = {}
  for name, is_model in sorted(named):
    if is_model:
      paths = sorted(hub.local(name).glob('*.safetensors'))
    else:
      paths = [pathlib.Path(path) for path in pipeline.files(name)]
    if paths:
      found[name] = {path.name: writer.checksum(path) for path in paths}
  return found


def _note(found: dict[str, dict[str, str]], path: pathlib.Path) -> None:
  """Writes down what runs read; DataError: those that are there read others.

  Of a workdir where nothing has trained yet, nothing did.
  """
  before, folder = _read(path), path.parent
  if not any(folder.glob('*/*/metrics.jsonl')):
    before = {}
  for source, digests in found.items():
    if before.get(source, digests) != digests:
      raise errors.DataError(
        f'{source!r} has other files, or other content, than runs in'
        f' {folder} read; name another --workdir'
      )
  if found:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, before | found)


def _digests(named, noted: dict[str, dict[str, str]]) -> dict[str, str]:
  """Of the files that runs read, by name; by source too, where two have one."""
  found = {}
  for source in sorted({name for name, _ in named} & noted.keys()):
    for name, digest in noted[source].items():
      same = found.get(name, digest) == digest
      found[name if same else f'{source}: {name}'] = digest
  return found


def _read(path: pathlib.Path) -> Any:
  return files.read_json(path) if path.exists() else {}


def write(value: dict[str, Any], folder: pathlib.Path) -> None:
  """NAME.json, NAME.md and the plots of a result."""
  name, pictures = value['name'], []
  files.save(folder / f'{name}.json', json.dumps(value, indent=2) + '\n')
  if importlib.util.find_spec('matplotlib'):
    pictures = plots.write_plots(value, folder)
  shown = [markdown.image(path) for path in pictures if path.suffix == '.png']
  files.save(folder / f'{name}.md', markdown.markdown(value, shown))


def plan(experiment: spec.Experiment, folder: pathlib.Path) -> Search:
  """The trials of the search; checks all of them."""
  scenario = experiment.scenario
  search = {}
  for name, arm in experiment.arms.items():
    rates = (rate * arm.rate_factor for rate in scenario.learning_rates)
    search[name] = {
      rate: make_trial(folder, scenario, arm, rate, scenario.seeds[0])
      for rate in rates
    }
  return search


def every_trial(
  experiment: spec.Experiment, folder: pathlib.Path, search: Search
) -> Iterator[Trial]:
  """The search, and the other seeds: before it is done, in size alone."""
  last = finalists(experiment, search)
  for name, of_arm in search.items():
    is_last = name in last
    if all(trial.is_done for trial in of_arm.values()):
      yield from _with_seeds(experiment, folder, name, of_arm, all=is_last).all
      continue
    yield from of_arm.values()
    some = next(iter(of_arm.values()))
    for seed in experiment.scenario.seeds[1:] if is_last else ():
      yield dataclasses.replace(some, path=some.path / str(seed))


def _flat(search: Search) -> list[Trial]:
  return [trial for of_arm in search.values() for trial in of_arm.values()]


def _make_bases(pool: work.Pool, search: Search) -> None:
  bases = [trial.base for trial in _flat(search) if trial.base]
  for label, make, wanted in (
    ('base', tasks.make_base, [base.whole for base in bases]),
    ('pruned base', tasks.make_pruned, [base for base in bases if base.prune]),
  ):
    missing = [b for b in dict.fromkeys(wanted) if not b.model.exists()]
    pool.run(label, [_task(base, make) for base in missing])
  for path in {base.path for base in bases}:
    disk.give_back(path)


def _task(what: Any, function: Callable[..., None]) -> work.Task:
  cost, log = total_flops(what.config), what.path / 'log.txt'
  return work.Task(what.path.name, cost, log, function, (what,))


def _train(pool, label: str, wanted: Sequence[Trial], note=None) -> None:
  """What is not done; `note` is called first, if that is anything."""
  trials = {}
  for trial in wanted:
    if trial.is_done:  # perhaps of an experiment that was killed, or is old
      disk.give_back(trial.path)
    else:
      trials[trial.path] = trial
  if trials and note:
    note()
  # The longest first: no worker waits long for the last one.
  ordered = sorted(trials.values(), key=lambda trial: -trial.flops)
  pool.run(label, [_task(trial, tasks.train) for trial in ordered])


def _measure(
  pool: work.Pool,
  experiment: spec.Experiment,
  folder: pathlib.Path,
  search: Search,
) -> dict[str, Any]:
  """Step times of everything that runs; alone on the machine, and once."""
  dense = next(iter(search[experiment.scenario.reference].values())).config
  reference = timing.dense_cell(dense).key
  path = folder / 'timing' / f'{reference}.json'
  old = _read(path) or None
  wanted = {
    cell.key: cell
    for trial in _flat(search)
    for cell in timing.cells(trial.config) or ()
    if cell.key not in (old['cells'] if old else (reference,))
  }
  if not wanted:
    return old
  before = (old or {}).get('cores')
  if before and before not in pool.cores:
    raise errors.ConfigError(
      f'{path} has step times on {before} cores, and a job here has'
      f' {min(pool.cores)}: give --jobs as before, name another --workdir, or'
      ' remove that file, and all are measured again'
    )
  turns = timing.TURNS.get(experiment.scale, timing.USUAL)
  path.parent.mkdir(parents=True, exist_ok=True)
  for cells in timing.groups(dense, list(wanted.values())):
    task = work.Task(
      f'{len(cells)} steps and refreshes',
      1.0,
      folder / 'timing' / 'log.txt',
      timing.measure,
      (dense, cells, *turns),
    )
    found = pool.run('timing', [task])
    for _ in range(timing.AGAIN if turns[0] > 2 else 0):
      if found[-1]['noise'] > timing.QUIET:  # others were at work
        found += pool.run('timing, again', [task])
    old = timing.merge(old, min(found, key=lambda each: each['noise']))
    files.write_json(path, old)
  return old


def widened(
  experiment: spec.Experiment, folder: pathlib.Path, search: Search
) -> list[Trial]:
  """Adds a learning rate to each search whose best is at an edge."""
  scenario, added = experiment.scenario, []
  for name, of_arm in search.items():
    arm = experiment.arms[name]
    _, best = results.best(arm, of_arm)
    if best in (min(of_arm), max(of_arm)):
      rate = best / 2 if best == min(of_arm) else 2 * best
      trial = make_trial(folder, scenario, arm, rate, scenario.seeds[0])
      of_arm[rate] = trial
      added.append(trial)
  return added


def finalists(experiment: spec.Experiment, search: Search) -> list[str]:
  """The arms that all seeds are run of: see `spec.Scenario`.

  Of a search that is not done, as many as there will be.
  """
  scenario = experiment.scenario
  always = [*experiment.frontier, *(arm.name for arm in scenario.baselines)]
  others = {
    name: results.best(experiment.arms[name], of_arm)[0]
    for name, of_arm in search.items()
    if name not in always
  }
  ordered = sorted(others, key=lambda name: others[name] or math.inf)
  return always + ordered[: scenario.finalists]


def _with_seeds(
  experiment: spec.Experiment,
  folder: pathlib.Path,
  name: str,
  of_arm: dict[float, Trial],
  all: bool,
) -> results.Trials:
  """The trials of an arm whose search is done: the best rate, its seeds."""
  arm, scenario = experiment.arms[name], experiment.scenario
  _, rate = results.best(arm, of_arm)
  seeds = scenario.seeds[: None if all else 1] if rate else ()
  by_seed = {
    seed: make_trial(folder, scenario, arm, rate, seed) for seed in seeds
  }
  return results.Trials(of_arm, by_seed)
