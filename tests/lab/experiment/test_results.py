"""Results of runs that have no loss at some steps."""

import dataclasses
import json
import math

import pytest

from satjax import errors
from satjax.lab.experiment import results as results_lib
from satjax.lab.experiment import run as run_lib
from satjax.lab.experiment import spec
from satjax.lab.experiment.trials import Trial
from satjax.lab.report import results as forms
from tests.lab.experiment.test_run import MINE


def lines(trial: Trial, empty=(), diverged=()):
  """What the loop writes; null at steps of which nothing is learned."""
  last, source = trial.config.train.num_steps, trial.config.data.eval[0]
  for step in range(1, last + 1):
    loss = None if step in empty else 2.0
    counts = {'tokens': 8 * step, 'flops': 1e9 * step}
    sparsity = {'sparsity/omission_rate': 0.0, 'time/step': 0.1 * step}
    yield {'step': step, 'train/loss': loss, **counts, **sparsity}
    if step in (last // 2, last):
      held_out = None if step in diverged else 3.0 - step / last
      names = f'eval/{source}/loss', f'test/{source}/loss'
      yield {'step': step, **dict.fromkeys(names, held_out)}


@pytest.fixture
def experiment(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(MINE)
  return spec.load(str(file), 'smoke')


def made(experiment, folder, **nothing):
  trials = {}
  for name, of_arm in run_lib.plan(experiment, folder).items():
    for trial in of_arm.values():
      trial.path.mkdir(parents=True, exist_ok=True)
      text = ''.join(json.dumps(x) + '\n' for x in lines(trial, **nothing))
      (trial.path / 'metrics.jsonl').write_text(text)
      (trial.path / 'environment.json').write_text('{"packages": {}}')
    first = next(iter(of_arm.values()))
    trials[name] = results_lib.Trials(of_arm, {0: first})
  return results_lib.result(experiment, trials, None)


def test_a_step_without_a_loss_is_no_failure(experiment, tmp_path):
  found = made(experiment, tmp_path, empty=(1, 2, 5))
  text = json.dumps(found, allow_nan=False)
  for arm in found['arms'].values():
    assert arm['failed'] is None and arm['loss']['mean'] == 2.0
  environment = dict.fromkeys(('devices', 'platform', 'python', 'commit'))
  found['environment'] |= environment
  forms.check(json.loads(text) | {'environment': found['environment']})


def test_a_held_out_loss_that_is_no_number(experiment, tmp_path):
  config = next(
    iter(run_lib.plan(experiment, tmp_path)['dense'].values())
  ).config
  last = config.train.num_steps
  found = made(experiment, tmp_path, diverged=(last // 2,))
  arm = found['arms']['dense']
  assert arm['runs'][0]['best']['step'] == last
  found = made(experiment, tmp_path, diverged=(last,))
  assert 'not a number' in found['arms']['dense']['failed']
  json.dumps(found, allow_nan=False)


def searched(experiment, folder, best, level):
  """A search whose losses are least at a rate, `best`, at `level`; by arm."""
  search = run_lib.plan(experiment, folder)
  for name, of_arm in search.items():
    for rate, trial in of_arm.items():
      write(trial, level[name] + abs(math.log2(rate / best[name])))
  return search


def write(trial, loss):
  source, last = trial.config.data.eval[0], trial.config.train.num_steps
  names = f'eval/{source}/loss', f'test/{source}/loss'
  trial.path.mkdir(parents=True, exist_ok=True)
  line = json.dumps({'step': last, **dict.fromkeys(names, loss)})
  (trial.path / 'metrics.jsonl').write_text(line + '\n')


def test_a_search_goes_on_where_its_best_is_at_an_edge(experiment, tmp_path):
  rates = 1e-3, 2e-3, 4e-3
  scenario = dataclasses.replace(
    experiment.scenario, learning_rates=rates, baselines=(), widen=2
  )
  arms = {name: experiment.arms[name] for name in ('dense', 'SAT')}
  own = experiment._replace(scenario=scenario, arms=arms)
  best = {'dense': 2e-3, 'SAT': 8e-3}
  search = searched(own, tmp_path, best, dict.fromkeys(arms, 1.0))
  (more,) = run_lib.widened(own, tmp_path, search)
  assert more.config.optimizer.peak_lr == 8e-3
  assert [*search['dense']] == [*rates] and [*search['SAT']] == [*rates, 8e-3]
  write(more, 1.0)
  (more,) = run_lib.widened(own, tmp_path, search)  # still at the edge
  assert more.config.optimizer.peak_lr == 16e-3
  write(more, 2.0)
  assert run_lib.widened(own, tmp_path, search) == []


def test_other_seeds_are_of_the_best_arms(experiment, tmp_path):
  some, arms = experiment.arms['SAT'], {}
  for name, b1 in (('a', 0.5), ('b', 0.6), ('c', 0.7)):
    changes = {**some.overrides, 'optimizer.b1': b1}
    arms[name] = dataclasses.replace(some, name=name, overrides=changes)
  own = experiment._replace(arms=experiment.arms | arms)
  level = dict.fromkeys(own.arms, 9.0) | {'a': 3.0, 'b': 1.0, 'c': 2.0}
  search = searched(own, tmp_path / '0', dict.fromkeys(own.arms, 1.0), level)
  assert {*run_lib.finalists(own, search)} == {*own.arms}
  always = {*own.frontier, *(arm.name for arm in own.scenario.baselines)}
  for count, expected in ((0, set()), (2, {'b', 'c'})):
    scenario = dataclasses.replace(own.scenario, finalists=count)
    own = own._replace(scenario=scenario)
    assert {*run_lib.finalists(own, search)} == always | expected
    # Before anything has run: as many.
    nothing = run_lib.plan(own, tmp_path / '1')
    assert len(run_lib.finalists(own, nothing)) == len(always) + count


class Clock:
  """A pool whose every measurement has the next noise."""

  def __init__(self, *noises, cores=1):
    self.noises, self.cores = list(noises), {cores}

  def run(self, label, tasks):
    del label
    dense, cells, *_ = tasks[0].arguments
    noise = self.noises.pop(0)
    cells = [*cells, run_lib.timing.dense_cell(dense)]
    named = {cell.key: {'median': noise} for cell in cells}
    found = {'noise': noise, 'dense_seconds': 1.0, 'cells': named}
    return [found | {'cores': min(self.cores)}]


@pytest.mark.parametrize(
  'scale, noises, left, kept',
  [
    ('cpu', (0.05, 9), 1, 0.05),
    ('cpu', (0.4, 0.04, 9), 1, 0.04),
    ('cpu', (0.3, 0.5, 0.4, 9), 1, 0.3),
    ('smoke', (0.4, 9), 1, 0.4),
  ],
)
def test_what_is_noisy_is_measured_again(
  experiment, tmp_path, monkeypatch, scale, noises, left, kept
):
  monkeypatch.setattr(run_lib.timing, 'groups', lambda dense, cells: [cells])
  own, clock = experiment._replace(scale=scale), Clock(*noises)
  search = run_lib.plan(own, tmp_path)
  found = run_lib._measure(clock, own, tmp_path, search)
  assert len(clock.noises) == left
  assert {cell['median'] for cell in found['cells'].values()} == {kept}
  # What is there is not measured again.
  assert run_lib._measure(Clock(), own, tmp_path, search) == found


def test_step_times_of_other_cores_are_not_mixed(experiment, tmp_path):
  search = run_lib.plan(experiment, tmp_path)
  run_lib._measure(Clock(0.0), experiment, tmp_path, search)
  (path,) = tmp_path.glob('timing/*.json')
  found = json.loads(path.read_text())
  found['cells'].popitem()
  path.write_text(json.dumps(found))
  with pytest.raises(
    errors.ConfigError, match='on 1 cores, and a job here has 2'
  ):
    run_lib._measure(Clock(cores=2), experiment, tmp_path, search)


def test_hours_are_of_all_starts_and_places_of_all_runs(experiment, tmp_path):
  whole = made(experiment, tmp_path)
  trial = next(iter(run_lib.plan(experiment, tmp_path)['dense'].values()))
  assert whole['process_seconds'] > 0.8
  *before, last = trial.records
  again = {**last, 'time/step': 0.2}  # its clock began anew
  text = ''.join(json.dumps(record) + '\n' for record in (*before, again))
  (trial.path / 'metrics.jsonl').write_text(text)
  for path in tmp_path.glob('runs/*/environment.json'):
    commit = 'new' if path.parent == trial.path else 'old'
    path.write_text(json.dumps({'packages': {}, 'commit': commit}))
  arms = run_lib.plan(experiment, tmp_path)
  trials = {
    n: results_lib.Trials(x, {0: next(iter(x.values()))})
    for n, x in arms.items()
  }
  found = results_lib.result(experiment, trials, None)
  gained = found['process_seconds'] - whole['process_seconds']
  assert gained == pytest.approx(0.2)
  assert {*found['environment']['commit'].split(' | ')} == {'old', 'new'}


def test_a_length_that_failed_takes_nothing_from_the_others(
  experiment, tmp_path
):
  found = made(experiment, tmp_path)
  arms = found['arms'] | {
    experiment.frontier[0]: {**found['arms']['dense'], 'failed': 'diverged'}
  }
  arms['SAT']['against'] = {}
  results_lib._compare(experiment, arms)
  assert arms['SAT']['against']['steps']['difference']['mean'] == 0.0
