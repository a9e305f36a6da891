"""Workers end with their pool, whatever they were at."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from satjax import errors

SCRIPT = """
import pathlib, sys
from satjax.lab.experiment import work
from tests.lab.experiment import test_work

log = pathlib.Path(sys.argv[1])
tasks = [
  work.Task('fails', 1.0, log, test_work.fail, ()),
  work.Task('busy', 1.0, log, test_work.save_when_asked, ()),
]
if __name__ == '__main__':
  with work.Pool(2) as pool:
    pool.run('tasks', tasks)
"""


def fail():
  time.sleep(2)  # until the other one has begun
  raise errors.DataError('this one fails')


def save_when_asked():
  """As a run that saves when it is told to stop, and takes its time."""
  asked = []
  signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
  while not asked:
    time.sleep(0.1)
  time.sleep(1)


def test_a_busy_worker_ends_though_an_idle_one_was_killed(tmp_path):
  file = tmp_path / 'x.py'
  file.write_text(SCRIPT)
  command = [sys.executable, str(file), str(tmp_path / 'log.txt')]
  root = pathlib.Path(__file__).parents[3]
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    timeout=60,
    cwd=root,
    env=os.environ | {'PYTHONPATH': str(root)},
    check=False,
  )
  assert done.returncode == 1 and 'this one fails' in done.stderr
