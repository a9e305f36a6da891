"""Whole experiments at scale smoke: run, stopped, run again; all files."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from satjax import errors
from satjax.lab.experiment import run as run_lib
from satjax.lab.experiment import spec
from satjax.train import checkpoint

pytestmark = pytest.mark.slow
FOLDER = pathlib.Path(spec.__file__).parents[3] / 'experiments'
FILES = sorted([*FOLDER.glob('sat_*.py'), *FOLDER.glob('growth_*.py')])
MINE = """
from experiments import scenarios
from satjax.lab.experiment import spec

TITLE, PAPER = 'Mine', None
CLAIMS = (spec.Claim('a', 'b', '', (spec.Expect('SAT', 'below', 'time'),)),)
scenario = scenarios.cpt


def sweep(add, scenario):
  add('SAT', scenarios.SAT)
  add('too fast', {'optimizer.clip_norm': 0.0}, rate_factor=1e30)
"""


@pytest.fixture(autouse=True, scope='module')
def one_device():
  """Small scales are of one device; workers read this when they begin."""
  with pytest.MonkeyPatch.context() as patch:
    count = '--xla_force_host_platform_device_count=8'
    patch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'].replace(count, ''))
    yield


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
  file = tmp_path_factory.mktemp('file') / 'mine.py'
  file.write_text(MINE)
  return str(file)


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """Files of a user's own, as a source."""
  folder = tmp_path_factory.mktemp('text')
  library = sorted(pathlib.Path(os.__file__).parent.glob('*.py'))
  for path in library[:80]:
    (folder / f'{path.stem}.txt').write_text(path.read_text()[:4000])
  return f'text:{folder}/*.txt'


@pytest.fixture(scope='module')
def finished(mine, text, tmp_path_factory):
  """A workdir, and what an uninterrupted experiment gave."""
  workdir = tmp_path_factory.mktemp('workdir')
  return workdir, run_lib.run(spec.load(mine, 'smoke', data=text), workdir)


def final_losses(result):
  return {
    name: [(run['folder'], run['test']) for run in arm['runs']]
    for name, arm in result['arms'].items()
  }


def test_results_are_written_and_have_every_arm(finished, text):
  workdir, result = finished
  folder = workdir / 'results' / 'smoke'
  assert json.loads((folder / 'mine.json').read_text()) == result
  table = (folder / 'mine.md').read_text()
  assert '| SAT |' in table
  assert (folder / 'mine_loss_and_cost.png').exists()
  sat = result['arms']['SAT']
  assert sat['seconds'] > 0 and sat['flops'] < result['arms']['dense']['flops']
  assert sat['loss']['mean'] == sat['runs'][0]['test'] > 0
  dense = result['arms']['dense']  # which SAT's ladder ends with
  assert sat['state_bytes'] == dense['state_bytes'] < dense['bytes']
  # Which text it was, whatever becomes of it.
  files = pathlib.Path(text.partition(':')[2]).parent.iterdir()
  expected = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
  assert result['source'] == text and result['files'] == expected
  assert f'SHA-256 of abc.txt: {expected["abc.txt"]}' in table
  # Nothing that a finished experiment could go on from.
  assert not [p for kind in checkpoint.KINDS for p in workdir.rglob(kind)]


def test_an_arm_that_diverges_stays_in_the_table(finished):
  _, result = finished
  arm = result['arms']['too fast']
  assert 'lower' in arm['failed'].lower() and arm['loss'] is None
  assert arm['runs'] == []


def test_a_second_run_trains_nothing(finished, mine, text):
  workdir, result = finished
  before = {
    path: path.stat().st_mtime_ns for path in workdir.rglob('metrics.jsonl')
  }
  again = run_lib.run(spec.load(mine, 'smoke', data=text), workdir)
  assert len(before) > 3
  assert {path: path.stat().st_mtime_ns for path in before} == before
  assert again['arms'] == result['arms']
  # What they read is known, whatever is there by now.
  path = pathlib.Path(text.partition(':')[2]).parent / 'abc.txt'
  whole = path.read_text()
  path.write_text(whole + whole)
  changed = run_lib.run(spec.load(mine, 'smoke', data=text), workdir)
  path.write_text(whole)
  assert changed['files'] == result['files']


def test_what_is_missing_is_not_trained_on_other_text(finished, mine, text):
  """Nothing begins: not the bases, nor the step times."""
  workdir, _ = finished
  path = pathlib.Path(text.partition(':')[2]).parent / 'abc.txt'
  whole, before = path.read_text(), {*workdir.rglob('*')}
  path.write_text(whole + whole)
  new = spec.load(mine, 'smoke', ['--config.optimizer.b2=0.9'], data=text)
  with pytest.raises(errors.DataError, match='other content'):
    run_lib.run(new, workdir)
  path.write_text(whole)
  assert {*workdir.rglob('*')} == before


def test_stopped_it_goes_on_and_ends_alike(finished, mine, text, tmp_path):
  command = [sys.executable, '-m', 'satjax', 'experiment', mine]
  command += [f'--workdir={tmp_path}', '--scale=smoke', '--jobs=2']
  command.append(f'--data={text}')
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 240
  while not [*tmp_path.rglob('smoke/runs/*/metrics.jsonl')]:
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  _, message = process.communicate(timeout=120)
  assert process.returncode == 75, message
  assert re.search(r'^satjax: .*run the same command again', message, re.M)
  result = run_lib.run(spec.load(mine, 'smoke', data=text), tmp_path)
  assert final_losses(result) == final_losses(finished[1])


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
  return tmp_path_factory.mktemp('shared')


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_every_experiment_runs_at_scale_smoke(file, shared):
  result = run_lib.run(spec.load(str(file), 'smoke'), shared)
  failed = {n: a['failed'] for n, a in result['arms'].items() if a['failed']}
  assert not failed
  assert len(result['claims']) == len(spec.load(str(file), 'smoke').claims)
