"""Experiment files: those of the repository, and those of users."""

import pathlib

import pytest

from satjax import errors
from satjax.lab.experiment import run as run_lib
from satjax.lab.experiment import spec

FOLDER = pathlib.Path(spec.__file__).parents[3] / 'experiments'
FILES = sorted([*FOLDER.glob('sat_*.py'), *FOLDER.glob('growth_*.py')])
names = pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)


def test_the_repository_has_experiments_of_both_families():
  families = [spec.load(str(f), 'cpu').scenario.family for f in FILES]
  assert families.count('sat') >= 13 and families.count('growth') >= 11


@names
def test_claims_name_arms_that_run(file):
  experiment = spec.load(str(file), 'cpu')
  known = {*experiment.arms, *spec.EQUAL}
  for claim in experiment.claims:
    assert claim.expects, claim.text
    for expect in claim.expects:
      assert expect.arm in experiment.arms, expect
      assert expect.other in known, expect
  if experiment.paper:
    assert experiment.paper['rows'].keys() <= experiment.arms.keys()


@names
def test_a_docstring_says_what_it_claims_and_how_to_run_it(file):
  doc = spec.load(str(file), 'cpu').doc
  for term in ('Claim', 'Source', 'Runs', 'Cost', 'Command', 'Result'):
    assert f'\n{term}' in doc, term
  assert f'experiments/{file.name}' in doc


@names
@pytest.mark.parametrize('scale', ['smoke', 'cpu', 'gpu'])
def test_every_arm_is_a_valid_run(file, scale, tmp_path):
  experiment = spec.load(str(file), scale)
  scenario = experiment.scenario
  search = run_lib.plan(experiment, tmp_path)
  assert search.keys() == experiment.arms.keys()
  others = {*experiment.frontier, *(a.name for a in scenario.baselines)}
  swept = [name for name in search if name not in others]
  paths = {run.path for name in swept for run in search[name].values()}
  # Each trains something of its own.
  rates = len(scenario.learning_rates)
  assert len(paths) == rates * len(swept)


@names
@pytest.mark.parametrize('scale', ['smoke', 'cpu', 'gpu'])
def test_a_base_is_of_the_size_of_its_runs(file, scale):
  scenario = spec.load(str(file), scale).scenario
  if scenario.family == 'sat':
    assert scenario.base.model == scenario.config.model


@pytest.mark.parametrize('scale', ['smoke', 'cpu', 'gpu'])
@pytest.mark.parametrize(
  'file', [f for f in FILES if 'setting' in f.stem], ids=lambda file: file.stem
)
def test_a_setting_differs_from_the_usual_one(file, scale, tmp_path):
  usual = spec.load(str(FOLDER / 'sat_search.py'), scale)
  paths = [
    {run.path for run in run_lib.plan(each, tmp_path)['dense'].values()}
    for each in (usual, spec.load(str(file), scale))
  ]
  assert paths[0].isdisjoint(paths[1])


@names
def test_every_table_has_the_arms_of_a_sceptic(file):
  experiment = spec.load(str(file), 'cpu')
  # Growth is compared at the FLOPs of one of the lengths, SAT between them.
  lengths = {'sat': 4, 'growth': 3}[experiment.scenario.family]
  assert len(experiment.frontier) >= lengths or file.stem == 'sat_efficiency'
  if experiment.scenario.family == 'sat' and file.stem != 'sat_efficiency':
    assert {'uniform', 'static pruned twin', 'LoRA'} <= experiment.arms.keys()
  if experiment.scenario.family == 'growth':
    assert 'shallow, never grown' in experiment.arms


@names
def test_three_seeds_and_three_learning_rates_at_cpu(file):
  if file.stem == 'sat_efficiency':
    pytest.skip('seconds, not losses')
  scenario = spec.load(str(file), 'cpu').scenario
  assert len(scenario.seeds) >= 3
  assert len(scenario.learning_rates) >= 3
  assert 1.0 in scenario.lengths


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


def test_an_unknown_scale_lists_the_known_ones():
  with pytest.raises(errors.ConfigError, match=r'smoke \| cpu \| gpu'):
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
  experiment = spec.load(str(file), 'smoke')
  with pytest.raises(errors.ConfigError, match=r"arm 'typo'.*head_rat"):
    run_lib.plan(experiment, tmp_path)
