"""What an experiment file may not say is refused before anything runs."""

import pytest

from satjax import errors
from satjax.data import pipeline
from satjax.lab.experiment import compare, spec
from satjax.lab.experiment import run as run_lib

_FILE = """
import dataclasses
from experiments import scenarios
from satjax.lab.experiment import spec

TITLE, CLAIMS, PAPER = 'x', (), None
CHANGES, OF = {}, scenarios.cpt
ARM, HOW = {}, {}

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
    ("ARM = {'data.eval': ('stdlib:code',)}", 'judged by the same tokens'),
    ("ARM = {'train.eval_batches': 1}", 'judged alike'),
    ("ARM = {'model.num_layers': 3}", 'the model that all arms begin with'),
    ("ARM = {'model.init_from': 'x'}", 'the model that all arms begin with'),
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
