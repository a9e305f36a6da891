"""Kills and memory as the operating system sees them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from satjax.data import prepared

pytestmark = pytest.mark.slow


def command(source, out, *more, duplicates='near'):
  run = [sys.executable, '-m', 'satjax', 'prepare', f'--source={source}']
  run += [f'--out={out}', '--workers=2', f'--duplicates={duplicates}']
  return [*run, *more]


def files_of(out):
  paths = sorted(path for path in out.rglob('*') if path.is_file())
  return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def children(pid):
  """Processes whose parent is `pid`."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = path.read_text().rpartition(')')[2].split()
    except OSError:
      continue
    if int(fields[1]) == pid:
      found.append(int(path.parent.name))
  return found


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """About 30 MB of lines that are all different."""
  path = tmp_path_factory.mktemp('kills') / 'a.jsonl'
  with path.open('w') as file:
    for i in range(6000):
      words = ' '.join(f'{(i * 7919 + j * j) % 99991}' for j in range(900))
      file.write(json.dumps({'text': words}) + '\n')
  return path


def test_killed_at_any_moment(text, tmp_path):
  whole = tmp_path / 'whole'
  options = ('--shard_tokens=2000000',)
  begin = time.monotonic()
  subprocess.run(command(f'jsonl:{text}', whole, *options), check=True)
  seconds = time.monotonic() - begin
  out = tmp_path / 'out'
  kills = 0
  for part in (0.02, 0.2, 0.35, 0.5, 0.65, 0.8):
    process = subprocess.Popen(command(f'jsonl:{text}', out, *options))
    try:
      process.wait(part * seconds)
    except subprocess.TimeoutExpired:
      workers = children(process.pid)
      process.send_signal(signal.SIGKILL)
      process.wait()
      kills += 1
      deadline = time.monotonic() + 20
      while any(os.path.exists(f'/proc/{pid}') for pid in workers):
        assert time.monotonic() < deadline, 'workers outlive their parent'
        time.sleep(0.1)
  assert kills > 2
  subprocess.run(command(f'jsonl:{text}', out, *options), check=True)
  assert files_of(out) == files_of(whole)
  assert prepared.read(out).parts[0].counts['documents'] == 6000


def test_interrupted_from_the_keyboard(text, tmp_path):
  out = tmp_path / 'out'
  process = subprocess.Popen(
    command(f'jsonl:{text}', out, '--shard_tokens=1'),
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    # Where the tests run in the background, they ignore it, and so would this.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )
  while not list(out.rglob('*.array_record')):
    assert process.poll() is None
    time.sleep(0.05)
  os.killpg(process.pid, signal.SIGINT)
  error = process.communicate(timeout=60)[1]
  assert process.returncode == 75
  assert 'interrupted; what was saved is whole' in error
  assert 'Traceback' not in error


def test_memory_does_not_grow_with_the_input(text, tmp_path):
  """Peak of all processes together, for a file and for four times that."""
  peaks = []
  for times in (1, 4):
    path = tmp_path / f'{times}.txt'
    with path.open('wb') as file:
      for _ in range(times):
        file.write(text.read_bytes())
    out = tmp_path / f'out{times}'
    process = subprocess.Popen(command(f'text:{path}', out, duplicates='keep'))
    peak = 0
    while process.poll() is None:
      peak = max(
        peak, sum(map(resident, [process.pid, *children(process.pid)]))
      )
      time.sleep(0.05)
    assert process.returncode == 0
    peaks.append(peak)
  assert peaks[1] < peaks[0] + 100
  assert peaks[1] < 1024


def resident(pid):
  """MiB of memory of a process that no other one shares, and its part."""
  try:
    with open(f'/proc/{pid}/smaps_rollup') as file:
      lines = dict(line.split(':') for line in file if ':' in line[:20])
    return int(lines['Pss'].split()[0]) / 1024
  except (OSError, KeyError):
    return 0
