"""The scripts of `experiments/` that a test can afford."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from rich import console as rich_console

from configs import quickstart as quickstart_config
from experiments import quickstart, quickstart_llm
from satjax.data import tokenizers
from satjax.interop import models as interop
from satjax.lab.plan import growth
from satjax.model import decoder
from satjax.train import metrics, phases
from tests import models
from tests.data import subword_samples

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / 'experiments/lors_anywhere.py'


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


@pytest.mark.parametrize('advice', json.loads(growth.PUBLISHED.read_text()))
def test_verdicts_on_published_advice_are_those_of_results(advice):
  """Of every result; where they differ, a verdict names the result."""
  files = sorted((ROOT / 'experiments').glob(f'{advice["tested_by"]}*.py'))
  results = [ROOT / f'experiments/results/{file.stem}.json' for file in files]
  assert files
  found = {
    file.stem: claim['verdict']
    for file in results
    if file.exists()
    for claim in json.loads(file.read_text())['claims']
    if claim['claim'] == advice['claim']
  }
  said = set(found.values()) or {'not tested yet'}
  if len(said) > 1:
    said = {f'{verdict} in {name}' for name, verdict in found.items()}
  assert said == set(advice['verdict'].split(', '))


def test_figures_of_results_are_those_of_the_runs_that_are_kept():
  """Of scale llm all, whose runs take hours; of cpu those that are there."""
  checked = {'llm': set(), 'cpu': set()}
  for file in sorted((ROOT / 'experiments/results').glob('*.json')):
    result = json.loads(file.read_text())
    scale = result['scale']
    for run in (run for arm in result['arms'].values() for run in arm['runs']):
      path = ROOT / 'experiments/runs' / scale / 'runs' / run['folder']
      if scale == 'cpu' and not path.exists():
        continue
      *_, last = (x for x in metrics.read(path) if any('test/' in n for n in x))
      [own, *_] = [x for name, x in last.items() if name.startswith('test/')]
      assert run['test'] == pytest.approx(own, rel=1e-6)
      checked[scale].add(path)
  assert len(checked['llm']) > 30 and len(checked['cpu']) > 150


def test_quickstart_compares_growth_at_equal_flops():
  scratch, stacked, shallow = (
    phases.flops_until(config, config.train.num_steps)
    for config in quickstart.growth_configs().values()
  )
  assert stacked == pytest.approx(scratch, rel=0.002)
  assert shallow == pytest.approx(scratch, rel=0.002)


def test_the_verdict_names_the_lowest_loss_first():
  runs = {
    name: [{'step': 9, 'loss': loss}, {'step': 10}]
    for name, loss in (('a', 1.5), ('b', 1.25), ('c', 2.0))
  }
  assert quickstart.verdict('Equal time', runs, 'loss') == (
    'Equal time: b wins, 0.250 below a, 0.750 below c.'
  )


def test_chats_of_modules_kept_out_are_not_trained():
  found = quickstart_llm.chats()
  asked = {
    split: [chat['messages'][0]['content'] for chat in chats]
    for split, chats in found.items()
  }
  assert len(asked['train']) > 1000 < 10 * len(asked['validation'])
  assert not set(asked['train']) & set(asked['validation'])
  for question in quickstart_llm.QUESTIONS[:2]:
    assert question in asked['validation']


@pytest.mark.slow
def test_quickstart_runs_twice(tmp_path, monkeypatch):
  def get_config():
    config = toy()
    config.train.num_steps = 6
    config.train.eval_batches = 1
    return config

  toy = quickstart_config.get_config
  monkeypatch.setattr(quickstart_config, 'get_config', get_config)
  monkeypatch.setattr(quickstart, 'HOP', 2)
  monkeypatch.setitem(quickstart.CONTINUE, 'train.num_steps', 4)
  shown = []
  for _ in range(2):
    console = rich_console.Console(width=88, record=True, quiet=True)
    quickstart.run_all(tmp_path, console)
    shown.append(console.export_text())
  assert shown[0] == shown[1]
  assert interop.load(tmp_path / 'model').config.num_layers == 4


@pytest.mark.slow
def test_quickstart_with_a_model_runs_twice(tmp_path):
  tokenizer = tokenizers.get_tokenizer(subword_samples.write(tmp_path)['llama'])
  model = models.make(embed_dim=32, head_dim=8, mlp_dim=64, vocab_size=1024)
  params = decoder.init_params(model, jax.random.key(0))
  base = interop.Model(model, params)
  interop.save(base, tmp_path / 'base', tokenizer=tokenizer)
  command = [
    sys.executable,
    ROOT / 'experiments/quickstart_llm.py',
    f'--workdir={tmp_path}/work',
    f'--model={tmp_path}/base',
  ]
  # One device: there are four rows in a batch.
  env = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}
  first, second = (
    subprocess.run(
      command, check=True, capture_output=True, text=True, env=env, cwd=ROOT
    ).stdout
    for _ in range(2)
  )
  assert first == second
  assert 'before' in first and 'How to go on' in first
  assert (tmp_path / 'work/quickstart.md').read_text().startswith('```\n')
  assert (tmp_path / 'work/model/config.json').is_file()


def test_quickstart_without_its_model_says_what_to_do(tmp_path):
  run = subprocess.run(
    [
      sys.executable,
      ROOT / 'experiments/quickstart_llm.py',
      f'--workdir={tmp_path}',
      f'--model={tmp_path}/none',
    ],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert run.returncode == 78
  assert 'make real-model' in run.stderr and 'Traceback' not in run.stderr
