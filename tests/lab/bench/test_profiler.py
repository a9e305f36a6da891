"""Traces of a small model on this machine."""

import gzip
import json

import jax
import pytest

from satjax import cli, errors
from satjax.lab.bench import profiler
from tests.lab.bench.test_paired import make_config


@pytest.mark.slow
def test_each_part_has_a_trace_with_its_operations(tmp_path):
  found = profiler.profile(
    make_config(), tmp_path, steps=2, devices=jax.devices()[:1]
  )
  names = [path.relative_to(tmp_path).parts[0] for path in found]
  assert names == ['dense_step', 'skip_0.5_step', 'skip_0.5_refresh']
  for path in found:
    events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
    names = {event.get('name', '') for event in events}
    assert any('fusion' in name or 'dot' in name for name in names), names
    assert list(path.parent.glob('*.xplane.pb'))


def test_a_folder_that_can_not_be_written_costs_no_time(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.StorageError, match='file'):
    profiler.profile(make_config(), tmp_path / 'file' / 'new')


def test_one_thing_at_a_time(capsys):
  options = ['--config=configs/tiny.py', '--ladder', '--profile=somewhere']
  assert cli.main(['bench', *options]) == 78
  assert '--ladder and --profile' in capsys.readouterr().err
