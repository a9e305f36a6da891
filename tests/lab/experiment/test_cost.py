"""What an experiment would run, before anything runs."""

import pathlib

import pytest

from satjax import cli
from satjax.lab.experiment import cost, spec

FOLDER = pathlib.Path(spec.__file__).parents[3] / 'experiments'
FILE = str(FOLDER / 'sat_rate.py')


def plan(capsys, *arguments):
  code = cli.main(['experiment', FILE, '--workdir=unused', *arguments])
  return code, capsys.readouterr()


def test_the_plan_has_every_arm_and_runs_nothing(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, shown = plan(capsys, '--plan')
  assert code == 0
  for name in spec.load(FILE, 'smoke').arms:
    assert f'| {name} |' in shown.out
  assert not [*tmp_path.iterdir()]


def test_overrides_reach_every_run(capsys):
  _, shown = plan(capsys, '--plan', '--config.train.num_steps=32')
  rows = [r.split(' | ') for r in shown.out.splitlines() if 'rate 0.' in r]
  assert rows and {row[1] for row in rows} == {'32'}


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--config.train.num_step=32', 'did you mean config.train.num_steps?'),
    ('--config.train.num_steps=0', 'num_steps'),
    ('--jobs=0', '--jobs=0'),
  ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(
  capsys, argument, message, tmp_path
):
  code = cli.main(['experiment', FILE, f'--workdir={tmp_path}', argument])
  assert code == 78
  assert message in capsys.readouterr().err
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('file', ['sat_cpt', 'sat_sft', 'growth_factor'])
def test_the_papers_sizes_have_a_cost(file):
  text = cost.render(spec.load(str(FOLDER / f'{file}.py'), 'paper'))
  assert 'hours of one NVIDIA H200' in text
  if file.startswith('sat'):
    assert '| SAT, 7B |' in text and '| SAT, 13B |' in text


def test_at_scale_paper_the_base_is_given(capsys):
  file = str(FOLDER / 'sat_setting_wide.py')
  code = cli.main(['experiment', file, '--scale=paper', '--workdir=x'])
  assert code == 78
  assert 'width' in capsys.readouterr().err
