"""The tables of a profile, of a small model on this machine."""

import jax
import pytest

from satjax import cli, errors
from satjax.lab.bench import profiler, profiler_ops
from tests.lab.bench.test_paired import make_config


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp('profile') / 'new'
  result = profiler.profile(
    make_config(), path, steps=2, devices=jax.devices()[:1]
  )
  return result, path


@pytest.mark.slow
def test_everything_adds_up(written):
  sections = written[0]['sections']
  assert set(sections) == {'dense, step', 'skip 0.5, step', 'skip 0.5, refresh'}
  for section in sections.values():
    groups = section['groups']
    assert set(groups) == {*profiler_ops.GROUPS, profiler_ops.GAPS}
    assert sum(row['share'] for row in groups.values()) == pytest.approx(1)
    total = sum(row['milliseconds'] for row in groups.values())
    assert total == pytest.approx(section['milliseconds'])
    assert 0 < len(section['longest']) <= 10
    shares = [row['share'] for row in section['longest']]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.slow
def test_a_step_has_matmuls_and_an_optimizer(written):
  for label in ('dense, step', 'skip 0.5, step'):
    groups = written[0]['sections'][label]['groups']
    # Forward: 4 + 3 in the layer, 1 for the logits; twice that backward. The
    # compiler may make one more of a sum, or fuse some.
    assert 20 <= groups['matmul']['count'] <= 26
    # Scores and values; backward both twice.
    assert groups['attention']['count'] >= 6
    assert groups['optimizer']['share'] > 0
    assert groups['collective']['count'] == 0


@pytest.mark.slow
def test_a_refresh_gathers_rows(written):
  groups = written[0]['sections']['skip 0.5, refresh']['groups']
  assert groups['gather/scatter']['count'] > 0
  assert groups['optimizer']['count'] == 0


@pytest.mark.slow
def test_the_tables_are_beside_the_traces(written):
  result, path = written
  text = (path / 'profile.md').read_text()
  assert text == profiler.render(result)
  assert '## dense, step' in text and '| matmul |' in text
  assert list((path / 'skip_0.5_refresh').rglob('*.xplane.pb'))


def test_a_folder_that_can_not_be_written_costs_no_time(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.StorageError, match=r'profile\.md'):
    profiler.profile(make_config(), tmp_path / 'file' / 'new')


def test_one_thing_at_a_time(capsys):
  options = ['--config=configs/tiny.py', '--ladder', '--profile=somewhere']
  assert cli.main(['bench', *options]) == 78
  assert '--ladder and --profile' in capsys.readouterr().err
