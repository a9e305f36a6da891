"""Pages on a real model run word by word, and hold what they promise.

Each page is what a newcomer types into a shell, in a folder of its own: its
blocks run as they stand, in order, but for SETUP, which made the model.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests import test_docs

ROOT = test_docs.ROOT
MODEL = ROOT / 'models/smollm2'
OTHER = 1.05  # how far the loss of other text may rise, as a ratio

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not (MODEL / 'config.json').exists(),
    reason='models/smollm2 is missing; `make real-model` makes it',
  ),
]


def shell(block, folder):
  """Runs a block as a shell does, not as the tests do: on one device."""
  kept = ('XLA_', 'JAX_')
  env = {k: v for k, v in os.environ.items() if not k.startswith(kept)}
  bin_dir = pathlib.Path(sys.executable).parent
  env |= {
    'PATH': f'{bin_dir}:{env["PATH"]}',
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
  }
  done = subprocess.run(
    ['bash', '-euo', 'pipefail', '-c', block],
    cwd=folder,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, f'{block}\n{done.stdout}\n{done.stderr}'
  print(done.stdout)


@pytest.fixture
def folder(tmp_path):
  """An empty folder with the model, removed afterwards: it fills gigabytes."""
  (tmp_path / 'models').mkdir()
  (tmp_path / 'models/smollm2').symlink_to(MODEL.resolve())
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  yield tmp_path
  shutil.rmtree(tmp_path)


def losses(workdir):
  """Held-out losses of a run by source: before its first step, and last."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').open())
  found = [
    {key: value for key, value in line.items() if key.startswith('eval/')}
    for line in lines
    if any(key.startswith('eval/') for key in line)
  ]
  return {key: (found[0][key], found[-1][key]) for key in found[0]}


@pytest.mark.parametrize('name', test_docs.REAL)
def test_a_page_on_the_real_model(name, folder):
  page = ROOT / f'docs/{name}.md'
  for block in test_docs.blocks(page)[1:]:
    shell(block, folder)
  for words in test_docs.commands(page):
    given = dict(word.split('=', 1) for word in words if '=' in word)
    for option in ('--out', '--workdir'):
      assert option not in given or (folder / given[option]).exists()
    if words[1] == 'train' and 'smollm2_' in given['--config']:
      keeps_what_it_knew(losses(folder / given['--workdir']))


def keeps_what_it_knew(found):
  """The task, which is evaluated first, gets better; other text stays."""
  task, other = found.values()
  print(found)
  assert task[1] < task[0]
  assert other[1] < other[0] * OTHER
