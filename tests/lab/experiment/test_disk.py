"""The disk of an experiment: counted, refused, given back."""

import collections
import json
import pathlib

import pytest

from experiments import arms, scenarios
from satjax import cli, errors, flops
from satjax.lab.experiment import disk, spec, tasks, trials
from satjax.lab.experiment import run as run_lib
from satjax.train import checkpoint

FILE = pathlib.Path(spec.__file__).parents[3] / 'experiments/sat_rate.py'
STATE = 12  # bytes a parameter: itself and two moments


def make_trial(workdir, scenario, overrides=None, **how):
  arm = spec.Arm('', overrides or {}, **how)
  return trials.make_trial(workdir, scenario, arm, 1e-3, 0)


def leave_checkpoints(path):
  for kind in checkpoint.KINDS:
    (path / kind / '2' / 'state').mkdir(parents=True)
    (path / kind / '2' / 'state' / 'leaf').write_bytes(b'0')


def finish(trial):
  """As a run does: figures, and checkpoints that nobody has removed."""
  leave_checkpoints(trial.path)
  source = trial.config.data.eval[0]
  losses = {f'{name}/{source}/loss': 2.0 for name in ('eval', 'test')}
  line = {'step': trial.config.train.num_steps} | losses
  (trial.path / 'metrics.jsonl').write_text(json.dumps(line) + '\n')


@pytest.fixture
def grown(tmp_path):
  scenario = scenarios.growth('smoke')
  return make_trial(tmp_path, scenario, arms.deepen(scenario), equal='flops')


def test_of_a_trial_that_is_done_only_figures_stay(grown, monkeypatch):
  monkeypatch.setattr(tasks.loop, 'train', lambda *_: finish(grown))
  tasks.train(grown)
  assert [p.name for p in grown.path.iterdir()] == ['metrics.jsonl']
  assert grown.is_done


@pytest.mark.parametrize(
  'error, stay', [(errors.NonFiniteError, False), (errors.Preempted, True)]
)
def test_checkpoints_stay_where_a_trial_will_go_on(
  grown, monkeypatch, error, stay
):
  def train(*_):
    leave_checkpoints(grown.path)
    raise error('no')

  monkeypatch.setattr(tasks.loop, 'train', train)
  if stay:
    with pytest.raises(error):
      tasks.train(grown)
  else:
    tasks.train(grown)
  assert grown.is_done == (not stay)
  kinds = {p.name for p in grown.path.iterdir() if p.is_dir()}
  assert kinds == ({*checkpoint.KINDS} if stay else set())


def test_what_an_older_experiment_left_goes_and_it_still_counts(grown):
  Pool = collections.namedtuple('Pool', 'run')
  left = []
  finish(grown)
  run_lib._train(Pool(lambda _, some: left.extend(some)), 'seeds', [grown])
  assert not left
  assert [p.name for p in grown.path.iterdir()] == ['metrics.jsonl']
  assert disk.needed([grown], 1) == disk.needed([], 1)


def state(trial):
  return STATE * flops.num_params(trial.config.model)


def test_checkpoints_are_those_kept_one_more_and_both_sides_of_a_hop(tmp_path):
  scenario = scenarios.growth('gpu')
  plain = make_trial(tmp_path, scenario)
  grown = make_trial(tmp_path, scenario, arms.deepen(scenario), equal='flops')
  keep = plain.config.train.keep_checkpoints
  for trial, many in ((plain, keep + 1), (grown, keep + 3)):
    need = disk.needed([trial], 1)
    assert 1 <= need / (many * state(plain)) < 1.2
  # Of two at a time the larger ones count, and of one the largest.
  both = disk.needed([plain, grown, plain], 2)
  assert disk.needed([plain, grown], 1) < both
  assert both < 2 * disk.needed([grown], 1)


def test_bases_are_counted_until_their_directories_are_there(tmp_path):
  scenario = scenarios.cpt('gpu')
  whole = make_trial(tmp_path, scenario)
  pruned = make_trial(tmp_path, scenario, prune=0.5)
  before = disk.needed([whole, pruned], 1)
  whole.base.model.mkdir(parents=True)
  between = disk.needed([whole, pruned], 1)
  pruned.base.model.mkdir(parents=True)
  after = disk.needed([whole, pruned], 1)
  for saved, trial in ((before - between, whole), (between - after, pruned)):
    size = 4 * flops.num_params(trial.config.model)
    assert saved == pytest.approx(size, rel=0.11)


def test_too_little_disk_is_refused_before_anything_runs(
  tmp_path, capsys, monkeypatch
):
  Usage = collections.namedtuple('Usage', 'free')
  monkeypatch.setattr(disk.shutil, 'disk_usage', lambda _: Usage(3_000_000))
  options = [str(FILE), f'--workdir={tmp_path}', '--scale=cpu']
  assert cli.main(['experiment', *options]) == 74
  message = capsys.readouterr().err
  assert '0.003 GB free' in message and '--workdir' in message
  assert not [*tmp_path.iterdir()]
  assert cli.main(['experiment', *options, '--plan']) == 0
  assert ' GB of disk at most' in capsys.readouterr().out
