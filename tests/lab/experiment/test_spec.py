"""Experiment files: those of the repository, and those of users."""

import dataclasses
import functools
import pathlib
import tempfile

import pytest

from satjax import errors
from satjax.interop import models as interop
from satjax.lab.experiment import run as run_lib
from satjax.lab.experiment import spec
from satjax.lab.report import results
from tests import models

FOLDER = pathlib.Path(spec.__file__).parents[3] / 'experiments'
FILES = sorted([*FOLDER.glob('sat_*.py'), *FOLDER.glob('growth_*.py')])
NO_TRAINING = 'sat_efficiency'  # seconds, not losses


@functools.cache
def real_model():
  """Stands in for that of scale llm, which is no file of the repository."""
  folder = tempfile.mkdtemp()
  model = models.make(
    num_layers=30, num_heads=9, num_kv_heads=3, mlp_dim=512, vocab_size=260
  )
  interop.save(interop.Model(model, models.make_params(model)), folder)
  return folder


@functools.cache
def load(name, scale):
  changes = []
  if scale == 'llm':
    changes = [f'--config.model.init_from={real_model()}']
  return spec.load(str(FOLDER / f'{name}.py'), scale, changes)


def paths(name, scale):
  """Folders of an experiment's arms, each at one learning rate."""
  experiment = load(name, scale)
  scenario = experiment.scenario
  one = dataclasses.replace(
    scenario, learning_rates=scenario.learning_rates[:1]
  )
  search = run_lib.plan(experiment._replace(scenario=one), pathlib.Path())
  return {arm: next(iter(of.values())).path for arm, of in search.items()}


def test_the_repository_has_experiments_of_both_families():
  families = [load(f.stem, 'cpu').scenario.family for f in FILES]
  assert families.count('sat') >= 13 and families.count('growth') >= 11


@pytest.mark.parametrize('name', [file.stem for file in FILES])
def test_an_experiment_says_what_it_claims_and_what_would_refute_it(name):
  experiment = load(name, 'cpu')
  for term in ('Claim', 'Source', 'Runs', 'Cost', 'Command', 'Result'):
    assert f'\n{term}' in experiment.doc, term
  assert f'experiments/{name}.py' in experiment.doc
  known = {*experiment.arms, *results.EQUAL}
  for claim in experiment.claims:
    assert claim.expects, claim.text
    for expect in claim.expects:
      assert expect.arm in experiment.arms and expect.other in known, expect
  if experiment.paper:
    assert experiment.paper['rows'].keys() <= experiment.arms.keys()
  if name == NO_TRAINING:
    return
  scenario = experiment.scenario
  assert len(scenario.seeds) >= 3 and len(scenario.learning_rates) >= 3
  # Growth is compared at the FLOPs of one of the lengths, SAT between them.
  assert 1.0 in scenario.lengths
  if scenario.family == 'sat':
    assert len(experiment.frontier) >= 4
    others = {'static pruned twin', 'LoRA'} if scenario.base else set()
    assert {'uniform'} | others <= experiment.arms.keys()
  else:
    assert len(experiment.frontier) >= 3
    assert 'shallow, never grown' in experiment.arms


@pytest.mark.parametrize('name', [file.stem for file in FILES])
def test_every_arm_trains_something_of_its_own_at_every_scale(name):
  for scale in spec.SCALES:
    if scale == 'paper' and 'not at paper' in load(name, 'cpu').doc:
      with pytest.raises(errors.ConfigError, match='--scale=gpu'):
        load(name, scale)
      continue
    if scale == 'llm' and 'llm: ' not in load(name, 'cpu').doc:
      continue  # its rates may not divide the heads of that model
    experiment = load(name, scale)
    scenario, found = experiment.scenario, paths(name, scale)
    others = {*experiment.frontier, *(a.name for a in scenario.baselines)}
    swept = [path for arm, path in found.items() if arm not in others]
    assert found.keys() == experiment.arms.keys()
    assert len({*swept}) == len(swept)
    if scenario.base:
      assert scenario.base.model == scenario.config.model
    else:
      is_new = scenario.family == 'growth' or 'scratch' in name
      assert is_new or scale in ('llm', 'paper')
    if 'setting' in name:
      assert found['dense'] != paths('sat_search', scale)['dense']


@pytest.mark.parametrize(
  'text, message',
  [
    ('TITLE = 1 / 0', 'line 1 with ZeroDivisionError'),
    ('TITLE = "x"', "no attribute 'scenario'"),
    (
      'from experiments import scenarios\n'
      'TITLE, CLAIMS, PAPER = "x", (), None\n'
      'scenario = scenarios.cpt\n'
      'def sweep(add, scenario):\n'
      '  add("a", {})\n'
      '  add("a", {})\n',
      "two arms are called 'a'",
    ),
  ],
)
def test_a_broken_file_says_what_is_wrong(text, message, tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(text)
  with pytest.raises(errors.ConfigError, match=message):
    spec.load(str(file), 'smoke')


def test_a_missing_file_names_an_example():
  with pytest.raises(errors.ConfigError, match=r'experiments/sat_rate\.py'):
    spec.load('nowhere.py', 'smoke')


@pytest.mark.parametrize('name', ['growth_factor', 'sat_small_data'])
def test_what_begins_untrained_is_no_experiment_on_a_real_model(name):
  with pytest.raises(errors.ConfigError, match='scale llm .* --scale=cpu'):
    load(name, 'llm')


def test_an_unknown_scale_lists_the_known_ones():
  with pytest.raises(errors.ConfigError, match=r'smoke \| cpu \| llm'):
    spec.load(str(FILES[0]), 'huge')


def test_a_wrong_setting_names_the_arm(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from experiments import scenarios\n'
    'TITLE, CLAIMS, PAPER = "x", (), None\n'
    'scenario = scenarios.cpt\n'
    'def sweep(add, scenario):\n'
    '  add("typo", {"sparsity.head_rat": 0.5})\n'
  )
  with pytest.raises(errors.ConfigError, match=r"arm 'typo'.*head_rat"):
    spec.load(str(file), 'smoke')


@pytest.mark.parametrize(
  'given, message',
  [
    ('optimizer.peak_lr=auto', 'learning rates and seeds of its own'),
    ('train.seed=3', 'learning rates and seeds of its own'),
    ('data.eval=()', 'judged by its first source'),
  ],
)
def test_settings_that_an_experiment_has_its_own_of_are_refused(given, message):
  with pytest.raises(errors.ConfigError, match=message):
    spec.load(str(FILES[0]), 'smoke', [f'--config.{given}'])


@pytest.mark.parametrize(
  'data', ['foo:bar', 'jsonl:/nowhere/*.jsonl', 'tokens:/nowhere']
)
def test_text_that_is_not_there_is_refused_before_anything_runs(data):
  with pytest.raises(errors.SatjaxError, match=data.partition('*')[0]):
    spec.load(str(FILES[0]), 'smoke', data=data)


def test_sources_with_shares_are_judged_one_by_one():
  both = "(('stdlib:docs', 0.5), ('stdlib:code', 0.5))"
  given = [f'--config.data.train={both}', f'--config.data.eval={both}']
  found = spec.load(str(FILES[0]), 'smoke', given).scenario
  assert found.config.data.eval == ('stdlib:docs', 'stdlib:code')
  assert found.source == 'stdlib:docs'


def test_runs_of_a_workdir_read_the_same_files(tmp_path):
  """Text, and the weights that they begin with."""
  text, noted = tmp_path / 'a.txt', tmp_path / 'work' / 'files.json'
  weights = tmp_path / 'model.safetensors'
  text.write_text('one')
  weights.write_text('one')
  named = {(f'text:{text}', False), (str(tmp_path), True)}
  found = run_lib._files(named)
  assert [*found[str(tmp_path)]] == [weights.name] and 'a.txt' in str(found)
  run_lib._note(found, noted)
  trained = noted.parent / 'runs' / 'one'
  trained.mkdir(parents=True)
  (trained / 'metrics.jsonl').touch()
  for file in (text, weights):
    file.write_text('two')
    with pytest.raises(errors.DataError, match='other content'):
      run_lib._note(run_lib._files(named), noted)
    file.write_text('one')
  run_lib._note(run_lib._files(named), noted)
