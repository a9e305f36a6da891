"""A run that is made longer is what it would have been, where that can be."""

import json
import pathlib
import shutil

import jax
import pytest

from satjax import errors
from satjax.config.run import Config
from satjax.train import loop, saved, workdir
from satjax.train import setup as setup_lib
from tests.train.test_loop import losses, read_record, small


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """One, so that programs compile quickly."""
  one = jax.devices()[:1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda: one)
    yield


def make(num_steps, *, rate=0.0, split=1.0, **optimizer):
  values = small(rate=rate, num_steps=num_steps).to_dict()
  values['optimizer'] |= optimizer
  values['sparsity'] |= {'split': split}
  return Config.from_dict(values)


def rates(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  return [r['train/learning_rate'] for r in records]


def assert_same(one, two, num_steps):
  assert losses(one) == losses(two)
  assert sorted(losses(one)) == list(range(1, num_steps + 1))
  assert rates(one) == rates(two)
  ends = [path / 'checkpoints' / str(num_steps) for path in (one, two)]
  first, second = (read_record(end)['fingerprint'] for end in ends)
  assert first == second


WSD = {'schedule': 'wsd', 'decay_steps': 3}


@pytest.fixture(scope='module')
def decayed(tmp_path_factory):
  """A run of 7 steps that has decayed over the last 3."""
  folder = tmp_path_factory.mktemp('decayed')
  loop.train(make(7, **WSD), folder)
  return folder


@pytest.fixture(scope='module')
def long(tmp_path_factory):
  """The same as one of 11 steps from the start."""
  folder = tmp_path_factory.mktemp('long')
  loop.train(make(11, **WSD), folder)
  return folder


def test_a_longer_wsd_run_goes_on_from_before_its_decay_bit_for_bit(
  decayed, long, tmp_path, capsys
):
  folder = pathlib.Path(shutil.copytree(decayed, tmp_path / 'run'))
  loop.train(make(11, **WSD), folder)
  assert 'going on from step 4 to 11, instead of 7' in capsys.readouterr().err
  assert_same(folder, long, 11)
  # The model of 7 steps is still there.
  assert saved.restore(folder, 'decayed:7').step == 7
  # Nor is it what the longer run goes on from once that has been killed.
  shutil.rmtree(folder / 'checkpoints' / '11')
  loop.train(make(11, **WSD), folder)
  assert_same(folder, long, 11)


def test_the_decay_of_a_longer_run_may_be_longer_too(decayed, tmp_path):
  folder = pathlib.Path(shutil.copytree(decayed, tmp_path / 'run'))
  loop.train(make(11, **WSD | {'decay_steps': 6}), folder)
  assert rates(folder)[:4] == rates(decayed)[:4]
  assert rates(folder)[-1] < rates(folder)[6] < rates(folder)[5]


def test_without_a_checkpoint_from_before_it_goes_on_and_says_the_rate(
  decayed, tmp_path, capsys
):
  folder = pathlib.Path(shutil.copytree(decayed, tmp_path / 'run'))
  shutil.rmtree(folder / 'checkpoints' / '4')
  loop.train(make(8, **WSD), folder)
  said = capsys.readouterr().err
  assert 'going on from step 7 to 8, instead of 7' in said
  assert f'the learning rate was {rates(decayed)[-1]:.3g} at step 7' in said
  assert losses(folder).items() >= losses(decayed).items()


@pytest.mark.parametrize(
  'rate', [pytest.param(0.0, marks=pytest.mark.slow), 0.5]
)
def test_under_a_constant_rate_a_longer_run_is_exact(rate, tmp_path):
  """With SAT too, if none of its rungs is a share of the run."""
  options = {'schedule': 'constant', 'rate': rate}
  loop.train(make(4, **options), tmp_path / 'a')
  loop.train(make(7, **options), tmp_path / 'a')
  loop.train(make(7, **options), tmp_path / 'b')
  assert_same(tmp_path / 'a', tmp_path / 'b', 7)


def test_under_cosine_a_longer_run_says_what_the_rate_does(tmp_path, capsys):
  config = make(6, schedule='cosine')
  loop.train(config, tmp_path)
  before = losses(tmp_path)
  loop.train(config, tmp_path)
  assert 'this run is finished: all of its 6 steps' in capsys.readouterr().err
  longer = make(8, schedule='cosine')
  loop.train(longer, tmp_path)
  new, old = map(setup_lib.make_schedule, (longer, config))
  said = capsys.readouterr().err
  assert f'was {float(old(5)):.3g} at step 6' in said
  assert f'is {float(new(6)):.3g} at the next' in said
  assert losses(tmp_path).items() >= before.items()
  assert len(losses(tmp_path)) == 8


def test_a_ladder_that_would_have_been_another_is_refused(tmp_path):
  ladder = {'rate': 0.5, 'split': 0.5, 'schedule': 'constant'}
  loop.train(make(8, **ladder), tmp_path)
  with pytest.raises(errors.ConfigError, match=r'from step 4 on.*8 steps'):
    loop.train(make(16, **ladder), tmp_path)
  assert workdir.read_config(tmp_path).train.num_steps == 8
  # Stopped before its first rung, it may be of any length.
  for folder in ('checkpoints', 'kept'):
    shutil.rmtree(tmp_path / folder, ignore_errors=True)
  (tmp_path / 'checkpoints' / '4').mkdir(parents=True)
  with workdir.claim(tmp_path, make(16, **ladder)):
    pass


def test_a_run_is_never_made_shorter(tmp_path):
  with workdir.claim(tmp_path, make(8)) as path:
    (path / 'metrics.jsonl').write_text('{"step": 1}\n')
  with (
    pytest.raises(errors.ConfigError, match='num_steps: 8 -> 7'),
    workdir.claim(tmp_path, make(7)),
  ):
    pass
