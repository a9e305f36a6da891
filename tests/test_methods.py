"""Every method of `configs/methods.py`: valid, trained, and on its page."""

import pathlib
import re

import numpy as np
import pytest

from configs import methods
from satjax import errors
from satjax.config import file, groups, stages
from satjax.lab.report import page, result_tables, results
from satjax.sparsity import importance
from satjax.train import phases
from tests.train import helpers

PAGE = pathlib.Path(__file__).parents[1] / 'docs/methods.md'
# Of `configs/tiny.py`: as many layers as every method has room in, no growth.
SMALL = {
  'model.num_layers': 4,
  'model.num_kv_heads': 2,
  'model.embed_dim': 16,
  'model.head_dim': 4,
  'model.mlp_dim': 32,
  'data.seq_len': 16,
  'train.num_steps': 40,
  'growth.hops': (),
}
# 22 layers, 32 query heads that share 4 of keys and values.
LARGE = 'configs/tinyllama_1b_cpt.py'
# What an omitted unit saves begins with, by what it does meanwhile.
SAVES = {'skip': 'forward', 'exact': 'dX', 'through': 'dW'}
WORDS = {'heads': 'heads', 'mlp': 'channels', 'layers': 'layers'}


def options(**changes):
  return [f'--config.{key}={value}' for key, value in changes.items()]


def read(name, path='configs/tiny.py', **changes):
  return file.load(f'configs/methods.py:{name}:{path}', options(**changes))


def axes(config):
  sparsity = config.sparsity
  return [axis for axis in groups.AXES if sparsity.rates[axis]]


# One of each kind of program; the others are slow.
FAST = ('sat', 'lisa', 'badam', 'lora_sat')


@pytest.mark.parametrize(
  'name',
  [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in methods.METHODS
  ],
)
def test_a_method_trains(name):
  config = read(name, **SMALL)
  _, losses, _ = helpers.run(config, steps=3)
  assert np.isfinite(losses).all()
  assert phases.phase_at(config, 2).is_sparse == bool(axes(config))


@pytest.mark.parametrize('path', ['configs/cpt.py', LARGE])
@pytest.mark.parametrize('name', methods.METHODS)
def test_a_method_leaves_out_what_it_says(name, path):
  config = read(name, path)
  forwards = {config.sparsity.forward(axis) for axis in axes(config)}
  said = methods.METHODS[name].saves
  if forwards:
    assert said.startswith(SAVES[forwards.pop()])
  assert not forwards
  assert config.lora.is_on == ('every matrix' in said)


@pytest.mark.parametrize('name', methods.METHODS)
def test_a_method_takes_nothing_of_another_but_of_the_machine(name):
  found = read(name, 'configs/methods.py:lora_sat:configs/tiny.py', **SMALL)
  assert found == read(name, **SMALL)
  assert found.sparsity.channel_multiple == 16


@pytest.mark.parametrize('name', methods.METHODS)
def test_a_method_suits_any_depth_from_4_layers_on(name):
  for count in (*range(4, 13), 22, 30, 40, 80):
    config = read(name, 'configs/cpt.py', **{'model.num_layers': count})
    layers = phases.phase_of(config, 0, stages.stages(config)[0])
    if name != 'progressive':  # which begins dense
      assert (sum(layers.omitted) > 0) == ('layers' in axes(config))


@pytest.mark.parametrize('name', methods.METHODS)
def test_the_record_of_a_run_reads_back_and_takes_a_method(name, tmp_path):
  record = tmp_path / 'config.json'
  config = read(name, **SMALL)
  file.write_json(record, config)
  assert file.read_json(record) == config == file.load(str(record))
  assert read('lisa', record).sparsity == read('lisa', **SMALL).sparsity


def test_an_unknown_method_is_refused_with_all_of_them():
  with pytest.raises(errors.ConfigError) as caught:
    file.read('configs/methods.py:lsia')
  assert all(name in str(caught.value) for name in ('lsia', *methods.METHODS))
  with pytest.raises(errors.ConfigError, match=r'none\.py'):
    file.read('configs/methods.py:lisa:none.py')


def point(name):
  """What a method is: units, what they do meanwhile, choice, schedule."""
  config = read(name, LARGE)
  sparsity, on = config.sparsity, axes(config)
  units = [
    f'{sparsity.rates[axis]:g} of {WORDS[axis]}'
    + ' by depth' * (sparsity.scale(axis, 2) == (0.5, 1.0))
    for axis in on
  ]
  metrics = list(dict.fromkeys(sparsity.metric(axis) for axis in on))
  how = (
    '' if metrics in (['uniform'], ['cyclic']) else f', {sparsity.selection}'
  )
  when = {'ladder': 'down to dense', 'reversed': 'up from dense'}
  when = 'constant' if sparsity.split == 1 else when[sparsity.shape]
  every = f'{sparsity.refresh_every} steps'
  if sparsity.refresh_every >= config.train.num_steps:
    every = 'once'
  cells = [
    ', '.join(units),
    ', '.join({sparsity.forward(axis): None for axis in on}),
    ', '.join(metrics) + how if on else '',
    f'{when}, {every}' if on else '',
  ]
  return [cell or '-' for cell in cells]


def share(name):
  """FLOPs of a run, over those of dense training."""
  config, dense = read(name, LARGE), read('dense', LARGE)
  steps = dense.train.num_steps
  return phases.flops_until(config, steps) / phases.flops_until(dense, steps)


def row(*cells):
  return f'| {" | ".join(cells)} |'


def tables():
  """The two tables of the page, row by row."""
  for name in methods.METHODS:
    yield row(f'`{name}`', *point(name), f'{share(name):.2f}')
  for name, method in methods.METHODS.items():
    yield row(f'`{name}`', method.source, method.saves, method.claim or '-')


def test_the_page_says_what_the_methods_are():
  lines = PAGE.read_text().splitlines()
  assert [line for line in lines if line.startswith('| `')] == list(tables())


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
  [code] = re.findall(r'^```python\n(.*?)^```', PAGE.read_text(), re.M | re.S)
  assert len(code.splitlines()) < 30
  # What it adds is taken back afterwards.
  layers = groups.METRICS['layers']
  monkeypatch.setitem(groups.METRICS, 'layers', layers)
  monkeypatch.setitem(importance.OF_LAYERS, 'stretch', None)
  monkeypatch.setitem(methods.METHODS, 'stretch', None)
  (tmp_path / 'stretch.py').write_text(code)
  path = f'{tmp_path}/stretch.py:stretch:configs/tiny.py'
  config = file.load(path, options(**SMALL))
  assert config.sparsity.metric('layers') == 'stretch'
  _, losses, _ = helpers.run(config, steps=1)
  assert np.isfinite(losses).all()


@pytest.mark.parametrize('task', ['cpt', 'sft'])
def test_what_wins_on_the_page_is_what_the_result_says(task):
  path = f'experiments/results/sat_methods_{task}'
  [result] = page.read([PAGE.parents[1] / f'{path}.json']).results
  dense, rows = result['arms']['dense'], []
  for name in result_tables.ranked(result):
    arm = result['arms'][name]
    loss = _at_equal_time(arm)
    again = f'{arm["against"]["time"]["validation"]:+.3f}'
    costs = ('seconds', 'bytes', 'state_bytes')
    over = [f'{arm[key] / dense[key]:.2f}' for key in costs]
    rate = f'{arm["learning_rate"] / dense["learning_rate"]:g}'
    rows.append(row(name, str(len(arm['runs'])), loss, again, *over, rate))
  section = PAGE.read_text().partition('### Which wins')[2].partition('##')[0]
  table = section.partition(f'[table](../{path}.md)')[2].partition('**')[0]
  lines = [line for line in table.splitlines() if line.startswith('| ')]
  assert lines[2:] == rows
  assert f' steps, {dense["learning_rate"]:g} for' in ' '.join(section.split())
  lora = result['arms']['LoRA']['speedup']['time']
  assert f'{lora:.2f}' in section


def test_what_the_page_says_of_longer_runs_is_what_the_result_says():
  path = 'experiments/results/sat_methods_longer'
  [result] = page.read([PAGE.parents[1] / f'{path}.json']).results
  arms = result['arms']
  rows = [
    f'| {name} | {" | ".join(_at_equal_time(arms[n]) for n in names)} |'
    for name, names in results.by_length(arms).items()
  ]
  below = PAGE.read_text().partition(f'[table](../{path}.md)')[2]
  lines = [line for line in below.splitlines() if line.startswith('| ')]
  assert lines[2:5] == rows
  for name in ('lora, 2 x', 'lora, 4 x'):
    assert arms[name]['learning_rate'] == arms['LoRA']['learning_rate']
  for name in ('dense, 200% of the steps', 'dense, 400% of the steps'):
    assert arms[name]['learning_rate'] == arms['dense']['learning_rate']


def _at_equal_time(arm):
  found = arm['against']['time']
  return f'{found["difference"]["mean"]:+.3f}, {found["verdict"]}'
