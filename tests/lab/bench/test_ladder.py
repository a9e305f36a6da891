"""Whole runs, of the ladder and dense: what they do and report."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from satjax import cli, errors
from satjax.lab.bench import arms as bench_arms
from satjax.lab.bench import ladder as bench_ladder
from satjax.lab.plan import stretches
from tests.lab.bench.test_paired import make_config

STEPS = 6


def small(**sparsity):
  config = make_config(refresh_every=2, rungs=1, split=0.6, **sparsity)
  train = dataclasses.replace(config.train, num_steps=STEPS)
  return bench_arms.fresh(dataclasses.replace(config, train=train))


@pytest.fixture(scope='module')
def whole():
  """A run that leaves out half of the channels, and then nothing."""
  return bench_ladder.run_whole(small(head_rate=0.0), jax.devices()[:1])


def test_a_run_pays_for_everything(whole):
  assert whole['seconds'] == pytest.approx(sum(whole['spent'].values()))
  assert set(whole['spent']) == {
    *('init', 'compile', 'step'),
    *('probe', 'gather', 'write_back'),
  }
  assert all(seconds >= 0 for seconds in whole['spent'].values())
  assert np.isfinite(whole['loss'])


def test_a_run_goes_down_the_ladder(whole):
  config = small(head_rate=0.0)
  assert len(stretches.plan(config).stretches) == whole['programs'] == 2
  assert whole['flops'] == pytest.approx(stretches.plan(config).flops)


def result_of(ratio, again):
  arms = {}
  for name, value in (
    ('dense', 1.0),
    ('dense again', again),
    ('ladder', ratio),
  ):
    spread = {'median': value, 'min': value, 'max': value, 'iqr': 0.0}
    arms[name] = {
      'seconds': 100 * value,
      'ratio': spread,
      'spent': {'compile': 3.0, 'step': 97.0},
      'runs': [{'programs': 1}],
    }
  environment = {
    **{'devices': '1 x cpu', 'cpu_count': 2, 'platform': 'Linux'},
    **{'commit': 'abc', 'xla_flags': '', 'packages': {}},
  }
  return {
    'arms': arms,
    'noise': abs(again - 1),
    'limit': 1.3,
    'rounds': 1,
    'config': small().to_dict(),
    'environment': environment,
    'load_average': {'before': (0.0, 0, 0), 'after': (0.0, 0, 0)},
    'clocks': {'before': [], 'after': []},
  }


def test_a_table_claims_nothing_below_the_noise():
  table = bench_ladder.render(result_of(0.8, 1.01))
  assert '| ladder | 80.0 | 0.800 | 0.800 to 0.800 | 1.250x |' in table
  assert 'allow 1.300x; efficiency 0.962' in table
  table = bench_ladder.render(result_of(0.8, 1.3))
  assert '| no difference |' in table and '1.250x' not in table


def test_without_a_ladder_there_is_nothing_to_time():
  config = small(head_rate=0.0, channel_rate=0.0)
  with pytest.raises(errors.ConfigError, match='channel_rate'):
    bench_ladder.ladder(config)


@pytest.mark.slow
def test_a_command_times_runs_in_processes_of_their_own(tmp_path, capsys):
  out = tmp_path / 'ladder.json'
  code = cli.main(
    [
      *('bench', '--ladder', '--rounds=1', '--config=configs/tiny.py'),
      *('--config.train.num_steps=6', f'--out={out}'),
      *('--config.model.num_layers=1', '--config.growth.hops=()'),
      # A row for each of the devices of the tests.
      *('--config.optimizer.warmup_steps=1', '--config.train.batch_size=8'),
    ]
  )
  assert code == 0
  result = json.loads(out.read_text())
  assert set(result['arms']) == {'dense', 'dense again', 'ladder'}
  assert result['limit'] > 1
  dense = result['arms']['dense']['runs'][0]
  assert dense['programs'] == 1 and dense['flops'] > 0
  assert result['arms']['dense again']['runs'][0]['loss'] == dense['loss']
  assert out.with_suffix('.md').read_text() in capsys.readouterr().out
