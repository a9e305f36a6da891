"""Results of runs that have no loss at some steps."""

import json

import pytest

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


def test_a_step_without_a_loss_is_no_part_of_a_mean(experiment, tmp_path):
  found = made(experiment, tmp_path, empty=(1, 2, 5))
  text = json.dumps(found, allow_nan=False)
  for arm in found['arms'].values():
    assert arm['failed'] is None
    losses = arm['curves']['train']
    assert losses[0] is None and set(losses) == {None, 2.0}
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
  assert arm['curves']['validation'] == [None, 2.0]
  assert arm['runs'][0]['best']['step'] == last
  found = made(experiment, tmp_path, diverged=(last,))
  assert 'not a number' in found['arms']['dense']['failed']
  json.dumps(found, allow_nan=False)
