"""Two real processes train as one: they stop together, and go on together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from satjax import distributed
from satjax.train import metrics
from satjax.train import workdir as workdir_lib
from tests.options import changed

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = (
  '--config=configs/tiny.py',
  '--config.model.scan=False',
  '--config.growth.hops=()',
  '--config.train.num_steps=30',
  '--config.train.eval_every=0',
  '--config.mesh.fsdp=2',
)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Compiled programs, shared by the runs of this file."""
  return tmp_path_factory.mktemp('cache')


def free_port():
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def spawn(command, cache, devices, **more):
  flags = (
    f'--xla_force_host_platform_device_count={devices}'
    ' --xla_backend_optimization_level=0'
    ' --xla_llvm_disable_expensive_passes=true'
  )
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': flags,
    'XDG_CACHE_HOME': str(cache),
    **more,
  }
  return subprocess.Popen(
    [sys.executable, '-m', 'satjax', 'train', *command],
    cwd=ROOT,
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


def start(workdir, cache, *overrides, each=()):
  """Both processes of a run, with one device each; `each` names its number."""
  port = free_port()
  return [
    spawn(
      [
        *changed(OPTIONS, *overrides),
        f'--workdir={workdir}',
        f'--coordinator=127.0.0.1:{port}',
        '--num_processes=2',
        f'--process_id={number}',
        *(flag.format(number) for flag in each),
      ],
      cache,
      devices=1,
    )
    for number in range(2)
  ]


def finish(processes):
  logs = [process.communicate(timeout=240)[1] for process in processes]
  return [process.returncode for process in processes], logs


def wait_for_step(workdir, step, processes):
  while all(process.poll() is None for process in processes):
    records = metrics.read(workdir)
    if records and records[-1]['step'] >= step:
      return
    time.sleep(0.002)
  raise AssertionError(finish(processes))


def losses(workdir):
  return [
    (r['step'], r['train/loss'])
    for r in metrics.read(workdir)
    if 'train/loss' in r
  ]


def newest(workdir):
  steps = (workdir / 'checkpoints').iterdir()
  return max(int(p.name) for p in steps if p.name.isdigit())


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, cache):
  workdir = tmp_path_factory.mktemp('whole')
  codes, logs = finish(start(workdir, cache))
  assert codes == [0, 0], logs
  return workdir


@pytest.mark.slow
def test_samples_are_written_once_and_change_nothing(
  tmp_path, cache, uninterrupted
):
  prompts = "--config.train.sample_prompts=('def ',)"
  codes, logs = finish(start(tmp_path, cache, prompts))
  assert codes == [0, 0], logs
  assert losses(tmp_path) == losses(uninterrupted)
  (line,) = (tmp_path / 'samples.jsonl').read_text().splitlines()
  assert json.loads(line)['step'] == 30
  assert [log.count("'def '") for log in logs] == [1, 0]


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_they_go_on_bitwise(
  tmp_path, cache, uninterrupted
):
  processes = start(tmp_path, cache)
  wait_for_step(tmp_path, 7, processes)
  processes[1].send_signal(signal.SIGTERM)
  codes, logs = finish(processes)
  assert codes == [75, 75], logs
  stopped = newest(tmp_path)
  assert 7 <= stopped < 30
  for log in logs:
    assert f'stopped after step {stopped} of 30' in log
  codes, logs = finish(start(tmp_path, cache))
  assert codes == [0, 0], logs
  assert losses(tmp_path) == losses(uninterrupted)
  assert len(losses(tmp_path)) == 30


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_when_one_is_killed_the_other_ends_and_says_so(tmp_path, cache, victim):
  # Without checkpoints: a wait for one ends by --heartbeat, not by the network.
  more = '--config.train.num_steps=2000', '--config.train.checkpoint_every=0'
  processes = start(tmp_path, cache, *more)
  wait_for_step(tmp_path, 7, processes)
  processes[victim].kill()
  killed = time.monotonic()
  survivor = processes[1 - victim]
  log = survivor.communicate(timeout=60)[1]
  assert time.monotonic() - killed < 5
  assert survivor.returncode == 75
  assert 'satjax: another process of this run has ended' in log
  assert 'Traceback' not in log
  processes[victim].communicate()


@pytest.mark.slow
def test_after_a_kill_both_go_on_bitwise(tmp_path, cache, uninterrupted):
  processes = start(tmp_path, cache)
  wait_for_step(tmp_path, 12, processes)
  processes[1].kill()
  finish(processes)
  assert newest(tmp_path) < 30
  codes, logs = finish(start(tmp_path, cache))
  assert codes == [0, 0], logs
  assert losses(tmp_path) == losses(uninterrupted)


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path, cache):
  # Growth after 15 steps of 4 rows of 64 tokens, evaluated before and after.
  more = "--config.growth.hops=((3840, 'stack', 2),)", '--config.data.eval=()'
  alone = [*changed(OPTIONS, *more), f'--workdir={tmp_path}/one']
  codes, logs = finish([spawn(alone, cache, devices=2)])
  assert codes == [0], logs
  codes, logs = finish(start(f'{tmp_path}/two', cache, *more))
  assert codes == [0, 0], logs
  one, two = losses(f'{tmp_path}/one'), losses(f'{tmp_path}/two')
  assert [step for step, _ in one] == [step for step, _ in two]
  for (_, a), (_, b) in zip(one, two):
    assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.slow
def test_slurm_needs_no_option(tmp_path, cache):
  slurm = {
    'SLURM_JOB_ID': str(free_port()),  # JAX makes the port of it
    'SLURM_STEP_NODELIST': '127.0.0.1',
    'SLURM_NTASKS': '2',
    'SLURM_LOCALID': '0',
  }
  command = changed(OPTIONS, '--config.train.num_steps=2')
  command += [f'--workdir={tmp_path}']
  command += ['--config.optimizer.warmup_steps=1']
  command += [
    '--config.sparsity.head_rate=0',
    '--config.sparsity.channel_rate=0',
  ]
  processes = [
    spawn(command, cache, devices=1, SLURM_PROCID=str(number), **slurm)
    for number in range(2)
  ]
  codes, logs = finish(processes)
  assert codes == [0, 0], logs
  assert len(losses(tmp_path)) == 2


@pytest.mark.slow
def test_both_refuse_what_one_is_told_otherwise(tmp_path, cache):
  processes = start(tmp_path, cache, each=['--config.train.seed={}'])
  codes, logs = finish(processes)
  assert codes == [78, 78], logs
  for log in logs:
    assert 'have different configurations' in log


@pytest.mark.slow
def test_a_claimed_workdir_stops_both(tmp_path, cache):
  from configs import tiny
  from satjax.config.run import Config

  config = Config.from_dict(tiny.get_config())
  with workdir_lib.claim(tmp_path, config):
    codes, logs = finish(start(tmp_path, cache))
  assert codes == [74, 74], logs
  assert 'another process is training' in logs[0]
  assert 'the first process could not claim' in logs[1]


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--num_processes=2'], 'say nothing without --coordinator'),
    (['--coordinator=here'], 'give HOST:PORT of process 0'),
    (
      ['--coordinator=a:1', '--num_processes=2', '--process_id=2'],
      'counted from 0',
    ),
    *(
      (
        [f'--coordinator={address}', '--num_processes=1', '--process_id=0'],
        'the port a number from 1',
      )
      for address in ('a:port', 'a:', ':1', 'a:0', 'a:65536', 'a:-1', '::1:1')
    ),
  ],
)
def test_processes_that_can_not_be_told_are_refused(
  tmp_path, capsys, arguments, said
):
  from satjax import cli

  command = ['train', *OPTIONS, f'--workdir={tmp_path}', *arguments]
  assert cli.main(command) == 78
  assert said in capsys.readouterr().err


@pytest.mark.parametrize(
  ('environment', 'several'),
  [
    ({}, False),
    ({'SLURM_NTASKS': '2', 'SLURM_STEP_NODELIST': 'a[1-2]'}, True),
    ({'SLURM_NTASKS': '1', 'SLURM_STEP_NODELIST': 'a1'}, False),
    ({'SLURM_NTASKS': '2'}, False),  # a shell in an allocation
    ({'OMPI_COMM_WORLD_SIZE': '4'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'MEGASCALE_COORDINATOR_ADDRESS': 'a'}, True),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, True),
  ],
)
def test_launchers_are_known_by_what_they_say(environment, several):
  assert distributed.has_cluster(environment) is several


SLURM = {
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '0',
  'SLURM_LOCALID': '0',
  'SLURM_JOB_ID': '1',
  'SLURM_STEP_NODELIST': 'a[1-2]',
}


@pytest.mark.parametrize(
  ('environment', 'said'),
  [
    ({'SLURM_NTASKS': 'abc'}, 'SLURM_NTASKS=abc'),  # in a shell too
    ({'JAX_PROCESS_ID': 'x'}, 'JAX_PROCESS_ID=x'),
    (
      {
        'JAX_COORDINATOR_PORT': 'abc',
        'SLURM_NTASKS': '2',
        'SLURM_STEP_NODELIST': 'node',
      },
      'JAX_COORDINATOR_PORT=abc',
    ),
    ({'SLURM_NTASKS': '-2'}, 'SLURM_NTASKS=-2'),
    ({'OMPI_COMM_WORLD_SIZE': '2.5'}, 'OMPI_COMM_WORLD_SIZE=2.5'),
    ({'JAX_NUM_PROCESSES': 'x'}, 'JAX_NUM_PROCESSES=x'),
    (SLURM | {'SLURM_PROCID': 'x'}, 'SLURM_PROCID=x'),
    (SLURM | {'SLURM_PROCID': '2'}, 'SLURM_PROCID=2 of SLURM_NTASKS=2'),
    (SLURM | {'SLURM_JOB_ID': 'job'}, 'SLURM_JOB_ID=job'),
    ({'JAX_COORDINATOR_ADDRESS': 'a:port'}, 'JAX_COORDINATOR_ADDRESS=a:port'),
    ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': 'x'}, 'auto'),
  ],
)
def test_what_a_launcher_sets_wrongly_is_named(
  tmp_path, capsys, monkeypatch, environment, said
):
  from satjax import cli

  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert cli.main(['train', *OPTIONS, f'--workdir={tmp_path}']) == 78
  assert said in capsys.readouterr().err


def test_a_heartbeat_of_no_seconds_is_refused(tmp_path, capsys):
  from satjax import cli

  command = ['train', *OPTIONS, f'--workdir={tmp_path}', '--heartbeat=0']
  assert cli.main(command) == 78
  assert '--heartbeat=0' in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused(tmp_path, capsys):
  from satjax import cli

  with socket.create_server(('', 0)) as listener:
    port = listener.getsockname()[1]
    where = [f'--coordinator=localhost:{port}', '--num_processes=1']
    command = ['train', *OPTIONS, f'--workdir={tmp_path}', *where]
    assert cli.main([*command, '--process_id=0']) == 78
  assert 'choose another port' in capsys.readouterr().err


def test_start_scripts_are_sound():
  scripts = sorted((ROOT / 'scripts').glob('*.sh'))
  page = (ROOT / 'docs/scale.md').read_text()
  assert [path.stem for path in scripts] == ['slurm', 'tpu_pod', 'xpk']
  for path in scripts:
    subprocess.run(['bash', '-n', path], check=True)
    assert f'scripts/{path.name}' in page
    assert os.access(path, os.X_OK)
