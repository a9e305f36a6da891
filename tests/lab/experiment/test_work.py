"""Workers end with their pool, whatever they were at."""

import contextlib
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
    pool.run('tasks', tasks[int(sys.argv[2]):])
"""
ROOT = pathlib.Path(__file__).parents[3]


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


@contextlib.contextmanager
def started(tmp_path, first):
  file = tmp_path / 'x.py'
  file.write_text(SCRIPT)
  with subprocess.Popen(
    [sys.executable, str(file), str(tmp_path / 'log.txt'), str(first)],
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    # Who runs in the background may have been told to ignore it.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  ) as process:
    try:
      yield process
    finally:
      process.kill()


def test_a_busy_worker_ends_though_an_idle_one_was_killed(tmp_path):
  with started(tmp_path, 0) as process:
    _, message = process.communicate(timeout=60)
  assert process.returncode == 1 and 'this one fails' in message


def test_an_interrupt_of_the_parent_alone_reaches_the_workers(tmp_path):
  with started(tmp_path, 1) as process:
    deadline = time.monotonic() + 60
    while not (tmp_path / 'log.txt').exists():
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.1)
    time.sleep(1)  # until its work has begun
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=30)
  assert 'KeyboardInterrupt' in message
