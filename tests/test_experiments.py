"""The scripts of `experiments/` that a test can afford."""

import ast
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[1] / 'experiments/lors_anywhere.py'


def test_lors_trains_somebody_elses_model():
  run = subprocess.run(
    [sys.executable, SCRIPT], check=True, capture_output=True, text=True
  )
  *kept, last = run.stdout.splitlines()
  assert [line.split()[2] for line in kept] == ['32'] * 4 + ['40', '56']
  assert last.endswith('100% of the points are right')


def test_it_takes_less_than_forty_lines():
  source = SCRIPT.read_text()
  docstring = ast.parse(source).body[0].end_lineno
  lines = [line.strip() for line in source.splitlines()[docstring:]]
  code = [line for line in lines if line and not line.startswith('#')]
  assert 20 < len(code) < 40
