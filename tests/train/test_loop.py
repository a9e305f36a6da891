"""Whole runs through the command line: resume, stop, refuse, compile counts."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from satjax import errors
from satjax.config.run import Config
from satjax.train import checkpoint, loop, metrics, programs, window
from satjax.train import setup as setup_lib
from satjax.train import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parents[2]
DENSE = (
  '--config.train.num_steps=25',
  '--config.sparsity.head_rate=0.0',
  '--config.sparsity.channel_rate=0.0',
  '--config.growth.hops=()',
)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Compiled programs, shared by the runs of this file."""
  return tmp_path_factory.mktemp('cache')


def start(workdir, cache, *overrides, config='configs/tiny.py'):
  """Starts `satjax train` on one device."""
  environment = os.environ | {
    'XLA_FLAGS': '--xla_backend_optimization_level=0'
    ' --xla_llvm_disable_expensive_passes=true',
    'XDG_CACHE_HOME': str(cache),
  }
  command = [
    sys.executable,
    '-m',
    'satjax',
    'train',
    f'--config={config}',
    f'--workdir={workdir}',
    '--config.model.scan=False',
    *overrides,
  ]
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
  )


def finish(process):
  _, log = process.communicate(timeout=240)
  return process.returncode, log


def wait_for_step(workdir, step, process):
  """Returns once the log of the run has reached a step."""
  while process.poll() is None:
    records = metrics.read(workdir)
    if records and records[-1]['step'] >= step:
      return
    time.sleep(0.002)


def losses(workdir):
  return {
    r['step']: r['train/loss']
    for r in metrics.read(workdir)
    if 'train/loss' in r
  }


def final_state(workdir):
  """The arrays of the last checkpoint, by path."""
  config = workdir_lib.read_config(workdir)
  setup = setup_lib.make_setup(config, jax.devices()[:1])
  checkpoints = checkpoint.Checkpoints(pathlib.Path(workdir))
  found = checkpoints.restore(setup_lib.abstract_checkpoint(setup))
  checkpoints.close()
  assert found.step == config.train.num_steps
  return jax.device_get(found.state['state'])


def assert_same_run(workdir, reference):
  assert losses(workdir) == losses(reference)
  jax.tree.map(
    np.testing.assert_array_equal, final_state(workdir), final_state(reference)
  )


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, cache):
  """The tiny run: a ladder of three rates, and growth at step 30."""
  workdir = tmp_path_factory.mktemp('reference') / 'run'
  code, log = finish(start(workdir, cache))
  assert code == 0, log
  return workdir


# Checkpoints are every 5 steps, windows start every 4, rungs at 30 and 45,
# growth is at 30: a run killed at K goes on from the checkpoint before.
@pytest.mark.slow
@pytest.mark.parametrize(
  'kills',
  [
    pytest.param((12, 32, 47), id='inside a window, after growth, on a rung'),
    pytest.param((3, 29, 31, 56), id='others'),
    pytest.param(tuple(range(2, 60, 6)), id='ten'),
  ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
  kills, uninterrupted, tmp_path, cache
):
  for step in kills:
    process = start(tmp_path, cache)
    wait_for_step(tmp_path, step, process)
    process.kill()
    code, log = finish(process)
    assert code == -signal.SIGKILL, log
  code, log = finish(start(tmp_path, cache))
  assert code == 0, log
  assert_same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_killed_dense_run_ends_as_if_it_had_not_been(tmp_path, cache):
  code, log = finish(start(tmp_path / 'a', cache, *DENSE))
  assert code == 0, log
  process = start(tmp_path / 'b', cache, *DENSE)
  wait_for_step(tmp_path / 'b', 13, process)
  process.kill()
  finish(process)
  code, log = finish(start(tmp_path / 'b', cache, *DENSE))
  assert code == 0, log
  assert_same_run(tmp_path / 'b', tmp_path / 'a')


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_bitwise(
  uninterrupted, tmp_path, cache
):
  process = start(tmp_path, cache)
  wait_for_step(tmp_path, 13, process)
  process.send_signal(signal.SIGTERM)
  code, log = finish(process)
  assert code == 75
  assert 'run the same command again' in log.splitlines()[-1]
  stopped = max(losses(tmp_path))
  assert (tmp_path / 'checkpoints' / str(stopped)).is_dir()
  code, log = finish(start(tmp_path, cache))
  assert code == 0, log
  assert_same_run(tmp_path, uninterrupted)


def test_the_workdir_holds_what_the_design_says(uninterrupted):
  names = {path.name for path in uninterrupted.iterdir()}
  assert {
    'config.json',
    'environment.json',
    'metrics.jsonl',
    'checkpoints',
    'tensorboard',
  } <= names
  environment = json.loads((uninterrupted / 'environment.json').read_text())
  assert environment['packages']['jax'] == jax.__version__
  steps = sorted(losses(uninterrupted))
  assert steps == list(range(1, 61))
  records = [r for r in metrics.read(uninterrupted) if 'train/loss' in r]
  assert [r['tokens'] for r in records] == [256 * s for s in steps]
  assert all(np.diff([r['flops'] for r in records]) > 0)
  rates = [r['sparsity/omission_rate'] for r in records]
  assert rates == [0.5] * 30 + [0.25] * 15 + [0.0] * 15
  layers = [r['model/num_layers'] for r in records]
  assert layers == [2] * 30 + [4] * 30
  held_out = [
    r['eval/stdlib:code/loss']
    for r in metrics.read(uninterrupted)
    if 'eval/stdlib:code/loss' in r
  ]
  assert len(held_out) == 3 and held_out == sorted(held_out, reverse=True)


def small(rate=0.0, **train):
  """The tiny configuration in this process, on its eight devices."""
  from configs import tiny

  values = tiny.get_config().to_dict()
  values['data'] |= {'seq_len': 16, 'eval': ()}
  values['growth'] |= {'hops': ()}
  values['model'] |= {'scan': False}
  values['sparsity'] |= {'head_rate': rate, 'channel_rate': rate}
  values['train'] |= {'batch_size': 8, 'num_steps': 12, 'checkpoint_every': 0}
  values['train'] |= train
  values['optimizer'] |= {'warmup_steps': 2}
  return Config.from_dict(values)


def test_each_shape_compiles_once_and_refreshes_find_their_programs(
  tmp_path, monkeypatch
):
  compiled, traced = [], {}
  compile_step, turn_over = programs.compile_step, window.turn_over
  compile_exchange = window.compile_exchange

  def late(*args):
    # The steps before a rung are done long before its programs are.
    if compiled:
      time.sleep(1)
    return compile_exchange(*args)

  def counted(setup, batch, phase, opened):
    compiled.append(opened.state.params['blocks']['mlp']['up'].shape)
    return compile_step(setup, batch, phase, opened)

  def listen(event, duration, **_):
    # What the compile thread does ahead is not on the critical path.
    is_main = threading.current_thread() is threading.main_thread()
    if '/compile/' in event and is_main:
      events.append(event)

  def watched(setup, now, step, *rest):
    events.clear()
    now = turn_over(setup, now, step, *rest)
    traced[step] = list(events)
    return now

  events = []
  monkeypatch.setattr(programs, 'compile_step', counted)
  monkeypatch.setattr(window, 'turn_over', watched)
  monkeypatch.setattr(window, 'compile_exchange', late)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    records = loop.train(small(rate=0.5), tmp_path)
  finally:
    jax.monitoring.clear_event_listeners()
  assert compiled == [(2, 64, 64), (2, 96, 64), (2, 128, 64)]
  assert [r['step'] for r in records] == list(range(1, 13))
  # A rung begins at steps 6 and 9, and windows every fourth step.
  assert traced[0]
  assert not any(traced[step] for step in range(1, 12)), traced


def test_a_loss_that_is_not_finite_stops_and_is_never_saved(tmp_path):
  config = small(checkpoint_every=1, keep_checkpoints=20)
  values = config.to_dict()
  values['optimizer'] |= {'peak_lr': 1e30, 'clip_norm': 0.0, 'warmup_steps': 0}
  broken = Config.from_dict(values)
  with pytest.raises(errors.NonFiniteError, match='peak_lr') as caught:
    loop.train(broken, tmp_path)
  assert caught.value.exit_code == 70
  saved = [
    int(p.name)
    for p in (tmp_path / 'checkpoints').iterdir()
    if p.name.isdigit()
  ]
  finite = [
    step for step, loss in losses(tmp_path).items() if np.isfinite(loss)
  ]
  assert set(saved) <= set(finite)
  setup = setup_lib.make_setup(broken)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  for step in saved:
    state = checkpoints.restore(
      setup_lib.abstract_checkpoint(setup), step
    ).state['state']
    assert all(
      np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state))
    )


def test_all_that_a_window_holds_survives_an_interruption(tmp_path):
  """Constants, scores, step counts and visits, from inside a window."""
  options = {'checkpoint_every': 5, 'keep_checkpoints': 9, 'num_steps': 10}
  values = small(rate=0.5, **options).to_dict()
  values['sparsity'] |= {
    'omitted': 'decayed',
    'omitted_forward': 'mean',
    'stale_scores': True,
    'bias_correction': 'per_neuron',
    'split': 1.0,
  }
  config = Config.from_dict(values)
  first = loop.train(config, tmp_path)
  visits = dict(np.load(tmp_path / 'visits.npz'))
  end = tmp_path / 'checkpoints' / '10'
  fingerprints = [read_record(end)['fingerprint']]
  shutil.rmtree(end)
  second = loop.train(config, tmp_path)
  fingerprints.append(read_record(end)['fingerprint'])
  assert fingerprints[0] == fingerprints[1]
  for one, two in zip(first, second, strict=True):
    for name in one:
      if name.startswith(('train/', 'sparsity/')):
        assert one[name] == two[name], name
  for name, counts in np.load(tmp_path / 'visits.npz').items():
    np.testing.assert_array_equal(counts, visits[name])
  assert visits['selections'] == 3


def read_record(checkpoint_dir):
  return json.loads((checkpoint_dir / 'record' / 'metadata').read_text())


def test_a_finished_run_is_left_alone(tmp_path):
  first = loop.train(small(), tmp_path)
  again = loop.train(small(), tmp_path)
  assert again == first


def test_other_settings_are_refused_and_logging_may_change(tmp_path):
  loop.train(small(), tmp_path)
  with pytest.raises(errors.ConfigError, match='train.batch_size: 8 -> 16'):
    loop.train(small(batch_size=16), tmp_path)
  loop.train(small(log_every=5), tmp_path)


def test_changed_data_is_refused(tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('to be or not to be\n\n' * 20_000)
  values = small(num_steps=4).to_dict()
  values['data'] |= {'train': (f'text:{text}',)}
  config = Config.from_dict(values)
  loop.train(config, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'tensorboard')
  text.write_text('that is the question\n\n' * 20_000)
  with pytest.raises(errors.DataError, match='data has changed'):
    loop.train(config, tmp_path / 'run')
