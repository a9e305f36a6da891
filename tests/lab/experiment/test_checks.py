"""What an experiment file may not say is refused before anything runs."""

import json

import pytest

from satjax import errors
from satjax.data import pipeline
from satjax.lab.experiment import compare, spec
from satjax.lab.experiment import results as results_lib
from satjax.lab.experiment import run as run_lib

_FILE = """
import dataclasses
from experiments import scenarios
from satjax.lab.experiment import spec

TITLE, CLAIMS, PAPER = 'x', (), None
CHANGES, OF = {}, scenarios.cpt
ARM, HOW = {}, {}

def of_text(scale):
  found = scenarios.cpt(scale)
  found.config.data.train = found.config.data.eval = ('text:pyproject.toml',)
  return found

def scenario(scale):
  return dataclasses.replace(OF(scale), **CHANGES)

def sweep(add, scenario):
  add('mine', {'sparsity.head_rate': 0.5, **ARM}, **HOW)
"""


def load(tmp_path, text, overrides=()):
  """An experiment whose file ends in `text`."""
  file = tmp_path / 'mine.py'
  file.write_text(f'{_FILE}{text}\n')
  return spec.load(str(file), 'smoke', overrides)


@pytest.mark.parametrize(
  'text, message',
  [
    ("HOW = {'equal': 'time'}", r"equal is 'time', not 'steps' \| 'flops'"),
    ("HOW = {'length': 0}", 'length is 0: a number above 0'),
    ("HOW = {'length': 'half'}", "length is 'half', not a number"),
    ("HOW = {'prune': 1.0}", 'prune is 1.0: a share of the base'),
    ("HOW, OF = {'prune': 0.5}, scenarios.growth", 'there is no base to cut'),
    ("HOW = {'label': {'a': 1, 'b': 2, 'c': 3}}", 'a plot has two'),
    ("HOW = {'label': {'length': 1}}", 'joins the arms of a group'),
    ("HOW = {'early_stop': 1}", 'early_stop is 1, not true or false'),
    ("ARM = {'optimizer.peak_lr': 1e-3}", 'learning_rates of the scenario'),
    ("ARM = {'train.seed': 1}", 'seeds of the scenario'),
    ("ARM = {'train.num_steps': 9}", 'length of an arm'),
    ("ARM = {'data.eval': ('stdlib:code',)}", 'judged alike'),
    ("ARM = {'train.eval_batches': 1}", 'judged alike'),
    ("ARM = {'model.num_layers': 3}", 'the model that all arms begin with'),
    ("ARM = {'model.init_from': 'x'}", 'the model that all arms begin with'),
    ("ARM = {'train.microbatch_size': 1}", 'judged alike'),
    ("ARM = {'data.packing': 'best_fit'}", 'judged alike'),
    ("ARM = {'train': {'num_steps': 9}}", 'group of keys'),
    ("ARM = {'sparsity.head_rat': 0.5}", 'did you mean'),
    ("ARM = {'sparsityy.head_rate': 0.5}", 'did you mean'),
    ("ARM = {'optimizer.warmup_steps': 0.2}", 'how many steps of the'),
    ("ARM = {'optimizer.end_lr': 'auto'}", 'how many steps of the'),
    (
      'OF = of_text; ARM = {"data.train": ("stdlib:docs",)}',
      'put that first',
    ),
    ("HOW = {'early_stop': True}", 'set train.eval_every'),
    ("HOW, ARM = {'prune': 0.5}, {'sparsity.channel_multiple': 4}", 'cut by'),
    ("HOW = {'label': {'x': (0.5, 1)}}", 'a text or a finite number'),
    ("HOW = {'label': {'x': float('inf')}}", 'a text or a finite number'),
    (
      "PAPER = {'columns': ['a'], 'rows': {'mine': [[]]}}",
      'a text or a finite',
    ),
    ("PAPER = {'columns': ['a'], 'rows': {'mine': [1, 2]}}", '2 figures for'),
    (
      'def scenario(scale):\n  found = OF(scale)\n'
      '  found.config.model.mlp_dim = 128\n  return found',
      'mlp_dim=128 of the scenario, and 64 of',
    ),
    (
      "E = spec.Expect('mine', 'faster', 'dense', 0.5)\n"
      "CLAIMS = (spec.Claim('a', 'b', '', (E,)),)",
      'by is 1 or more',
    ),
    (
      "E = spec.Expect('mine', 'not above', 'mine')\n"
      "CLAIMS = (spec.Claim('a', 'b', '', (E,)),)",
      'compared with another',
    ),
    (
      "def sweep(add, scenario):\n  add('time', {})",
      'is none of steps, time, flops',
    ),
    ("CHANGES = {'seeds': ()}", 'name at least one'),
    ("CHANGES = {'seeds': (0, 0)}", 'none twice'),
    ("CHANGES = {'learning_rates': 1e-3}", 'learning_rates is 0.001, not a'),
    ("CHANGES = {'learning_rates': (0.0,)}", 'each is a number above 0'),
    ("CHANGES = {'lengths': (0.5,)}", '1 must be among them'),
    ("CHANGES = {'finalists': -1}", 'finalists is -1: 0 or more'),
    ("CHANGES = {'name': '../x'}", 'letters, digits and -'),
    ("CHANGES = {'base': {}}", 'scenario.base is {}, not ConfigDict'),
    ('scenario = lambda scale: None', 'gives None, not a spec.Scenario'),
    ('TITLE = 3', 'TITLE is 3, not a text'),
    ("PAPER = {'columns': 'a', 'rows': {}}", "PAPER.columns is 'a', not a"),
    ("CLAIMS = ('text',)", "CLAIMS.0 is 'text', not an object"),
    (
      "CLAIMS = (spec.Claim('a', 'b', '', spec.Expect('mine', 'above', 'x')),)",
      "expects is .*'arm': 'mine'.*, not a list",
    ),
    (
      'E = spec.Expect("mine", "above", "x")\n'
      'CLAIMS = (spec.Claim("a", "b", "", (E,)),)',
      "relation is 'above', not 'below'",
    ),
    (
      'CLAIMS = (spec.Claim("a", "b", "", (spec.Expect("mine", "faster", "time"'
      '),)),)',
      'name one',
    ),
    ('notes = "text"', 'notes must be a function'),
  ],
)
def test_what_cannot_be_is_refused_with_the_value(text, message, tmp_path):
  with pytest.raises(errors.ConfigError, match=message):
    load(tmp_path, text)


@pytest.mark.parametrize(
  'given, message',
  [
    ('sparsity.head_rate=0.5', "'dense', which all arms are compared with"),
    ('data.test=0', 'both must be above 0'),
    ('data.held_out=0', 'both must be above 0'),
    ('lora.rank=4', "'dense', which all arms are compared with"),
    ("data.eval=('text:pyproject.toml',)", 'put that first'),
  ],
)
def test_what_would_leave_nothing_to_compare_is_refused(
  given, message, tmp_path
):
  with pytest.raises(errors.ConfigError, match=message):
    load(tmp_path, '', [f'--config.{given}'])


def test_another_shape_is_that_of_the_base_too(tmp_path):
  found = load(tmp_path, '', ['--config.model.num_layers=3']).scenario
  assert found.base.model == found.config.model
  assert found.base.model.num_layers == 3


def test_what_arms_set_themselves_is_said_to_be_theirs(tmp_path, capsys):
  text = "ARM = {'sparsity.temperature': 2.0}"
  load(tmp_path, text, ['--config.sparsity.temperature=3.0'])
  assert 'is not for mine' in capsys.readouterr().err


def test_a_claim_about_an_unknown_arm_is_said_to_be_untested(tmp_path, capsys):
  expect = "spec.Expect('mien', 'below', 'dense')"
  load(tmp_path, f"CLAIMS = (spec.Claim('a', 'b', '', ({expect},)),)")
  assert "claims name 'mien'" in capsys.readouterr().err


def test_equal_arms_are_not_faster_by_the_noise_of_their_timing():
  plain = {'failed': None, 'early_stop': False, 'runs': []}
  arms = {'a': plain | {'seconds': 1.0}, 'b': plain | {'seconds': 1.05}}
  claim = spec.Claim('', '', '', (spec.Expect('a', 'faster', 'b'),))
  for noise, verdict in ((0.04, 'holds'), (0.06, 'does not hold')):
    assert compare.judge(claim, arms, 'b', noise)['verdict'] == verdict


def test_files_that_nothing_was_trained_on_may_change(tmp_path):
  noted, before = tmp_path / 'files.json', {'text:a.txt': {'a.txt': '1'}}
  now = {'text:a.txt': {'a.txt': '2'}}
  run_lib._note(before, noted)
  run_lib._note(now, noted)
  run = tmp_path / 'runs' / 'one'
  run.mkdir(parents=True)
  (run / 'metrics.jsonl').write_text('{}\n')
  with pytest.raises(errors.DataError, match='other content'):
    run_lib._note(before, noted)


def test_a_prepared_table_is_known_by_its_own_digests(tmp_path):
  assert pipeline.files(f'tokens:{tmp_path}') == [str(tmp_path / 'table.json')]
  assert not pipeline.files('stdlib:docs')


@pytest.mark.parametrize(
  'arm, how, message',
  [
    ({'sparsity.head_rate': 2.0}, {'equal': 'flops'}, 'head_rate'),
    ({'sparsity.head_rate': 0.0}, {'prune': 0.001}, 'cuts off nothing'),
  ],
)
def test_an_arm_that_cannot_be_is_refused_by_the_plan(
  arm, how, message, tmp_path
):
  experiment = load(tmp_path, f'ARM, HOW = {arm}, {how}')
  with pytest.raises(errors.ConfigError, match=message):
    run_lib.plan(experiment, tmp_path)


def test_files_of_arms_and_bases_are_noted(tmp_path):
  text = tmp_path / 'a.txt'
  text.write_text('some text ' * 400)
  both = f"('stdlib:code', 'text:{text}')"
  experiment = load(tmp_path, f"ARM = {{'data.train': {both}}}")
  named = run_lib._names(run_lib.plan(experiment, tmp_path))
  assert {name for name, _ in named} >= {f'text:{text}', 'stdlib:docs'}
  assert [*run_lib._files(named)] == [f'text:{text}']


def test_the_result_of_another_experiment_is_not_overwritten(tmp_path):
  experiment = load(tmp_path, '')
  file = tmp_path / 'mine.json'
  run_lib._check_place(experiment, file)
  own = {'title': 'x', 'scale': 'smoke', 'scenario': experiment.scenario.name}
  file.write_text(json.dumps(own))
  run_lib._check_place(experiment, file)
  file.write_text(json.dumps(own | {'title': 'y'}))
  with pytest.raises(errors.ConfigError, match='has the result of'):
    run_lib._check_place(experiment, file)


def test_a_mistake_in_notes_costs_no_result(tmp_path):
  text = "def notes(arms):\n  yield 1.5\n  yield arms['gone']"
  found = results_lib._notes(load(tmp_path, text), {})
  assert len(found) == 1 and "KeyError('gone')" in found[0]


def test_what_is_judged_by_other_rows_is_compared_with_nothing():
  runs = [{'seed': 0, 'test': 1.0, 'validation': 1.0}]
  plain = {'failed': None, 'early_stop': False, 'runs': runs, 'against': {}}
  arms = {'a': plain | {'judged': [8, 64]}, 'b': plain | {'judged': [4, 64]}}
  claim = spec.Claim('', '', '', (spec.Expect('a', 'not above', 'b'),))
  assert compare.judge(claim, arms, 'dense')['verdict'] == 'not tested'


def test_a_difference_has_its_sign_on_other_documents_too():
  def arm(*tests, validation):
    runs = [
      {'seed': seed, 'test': test, 'validation': validation}
      for seed, test in enumerate(tests)
    ]
    return {'early_stop': False, 'runs': runs}

  low = arm(1.0, 1.1, validation=1.5)
  for other, verdict in ((1.6, 'better'), (1.4, 'no difference')):
    high = arm(2.0, 2.1, validation=other)
    losses = {s: compare.losses_of(high, s) for s in ('test', 'validation')}
    found = compare.compared(low, losses.get, None)
    assert found['verdict'] == verdict
    assert found['validation'] == pytest.approx(1.5 - other)
