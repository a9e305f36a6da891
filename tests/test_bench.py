"""What the benchmark reports and what it refuses; never how fast."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import bench_cpu, bench_cpu_plus, tiny
from satjax import bench, bench_arms, bench_table, bench_torch, errors
from satjax import config as config_lib

JAX_ARMS = {'dense', 'dense again', 'skip 0.5', 'exact 0.5'}
JAX_ARMS |= {'skip 0.5, twin', 'exact 0.5, twin'}


def make_config(**sparsity) -> config_lib.Config:
  config = tiny.get_config()
  config.model.num_layers = 1
  config.model.embed_dim = 16
  config.model.head_dim = 4
  config.model.mlp_dim = 32
  config.data.seq_len = 16
  config.growth.hops = ((30 * 4 * 16, 'stack', 2),)
  config.sparsity.channel_multiple = 8
  config.sparsity.rungs = 1
  config.sparsity.update(sparsity)
  return config_lib.Config.from_dict(config)


def run(config, **options):
  options = {'rates': (0.5,), **options}
  return bench.bench(
    config, rounds=2, steps=1, devices=jax.devices()[:1], **options
  )


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A result, and the JSON file that it was written to."""
  path = tmp_path_factory.mktemp('bench') / 'new' / 'result.json'
  return run(make_config(), torch=False, out=path), path


def test_every_arm_is_timed(written):
  result, _ = written
  assert set(result['arms']) == JAX_ARMS
  for arm in result['arms'].values():
    assert len(arm['step_seconds']) == 2
    assert all(0 < value < np.inf for value in arm['step_seconds'])
    assert 0 < arm['ratio']['min'] <= arm['ratio']['median']
    assert arm['ratio']['median'] <= arm['ratio']['max']
    assert arm['tokens_per_second'] > 0 and arm['compile_seconds'] > 0


def test_dense_is_the_unit(written):
  dense = written[0]['arms']['dense']
  assert dense['ratio'] == {'median': 1, 'min': 1, 'max': 1, 'iqr': 0}
  assert dense['limit'] == dense['efficiency'] == 1


def test_sat_bears_its_refreshes(written):
  sat = written[0]['arms']['skip 0.5']
  refresh = np.median(sat['refresh_seconds'])
  assert len(sat['refresh_seconds']) == 2 and refresh > 0
  # config.sparsity.refresh_every is 4 here.
  expected = np.median(sat['step_seconds']) + refresh / 4
  np.testing.assert_allclose(sat['seconds'], expected)
  np.testing.assert_allclose(sat['refresh_share'], refresh / 4 / expected)


def test_twin_computes_what_sat_does(written):
  arms = written[0]['arms']
  assert arms['skip 0.5']['flops'] == arms['skip 0.5, twin']['flops']
  assert arms['skip 0.5']['limit'] > arms['exact 0.5']['limit'] > 1
  assert arms['skip 0.5']['twin']['median'] > 0
  assert arms['exact 0.5']['twin']['median'] > 0


def test_a_sub_network_takes_less_memory_though_the_rest_is_counted(written):
  memory = {n: arm['memory'] for n, arm in written[0]['arms'].items()}
  assert memory['skip 0.5, twin'] < memory['skip 0.5'] < memory['dense']


def test_whole_selection_is_the_dense_model(written):
  losses = written[0]['losses']
  assert losses['whole skip'] == losses['dense'] == losses['dense again']
  assert losses['skip 0.5'] != losses['dense']


def test_the_exact_forward_pass_is_dense(written):
  losses = written[0]['losses']
  np.testing.assert_allclose(losses['exact 0.5'], losses['dense'], rtol=1e-5)


def test_files_hold_the_result_and_its_table(written):
  result, path = written
  assert json.loads(path.read_text()) == result
  assert path.with_suffix('.md').read_text() == bench_table.render(result)


def test_without_rates_only_dense_is_timed():
  result = run(make_config(), rates=(), torch=False)
  assert set(result['arms']) == {'dense', 'dense again'}
  bench_table.render(result)


@pytest.mark.slow
def test_masked_execution_is_timed():
  result = run(make_config(execution='masked'), torch=False)
  assert set(result['arms']) == JAX_ARMS


def test_file_that_can_not_be_written_costs_no_time(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.StorageError, match='result.json'):
    run(make_config(), torch=False, out=tmp_path / 'file' / 'result.json')


def test_import_leaves_torch_alone():
  code = "import sys, satjax.bench; assert 'torch' not in sys.modules"
  subprocess.run([sys.executable, '-c', code], check=True)


def test_spread_by_hand():
  assert bench_table.spread(np.array([4.0, 1.0, 2.0, 3.0, 5.0])) == {
    'median': 3.0,
    'min': 1.0,
    'max': 5.0,
    'iqr': 2.0,
  }


@pytest.mark.parametrize(
  'median, iqr, floor', [(1.03, 0.01, 0.03), (0.99, 0.05, 0.05)]
)
def test_noise_floor_is_the_larger_stray(median, iqr, floor):
  found = bench_table.noise_floor({'median': median, 'iqr': iqr})
  np.testing.assert_allclose(found, floor)


@pytest.mark.parametrize(
  'value, words',
  [
    (1.0, 'no difference'),
    (1.04, 'no difference'),
    (0.96, 'no difference'),
    (1.06, '1.060x'),
    (0.9, '0.900x'),
  ],
)
def test_claims_nothing_below_the_noise(value, words):
  assert bench_table.claim(value, floor=0.05) == words


def test_table_claims_nothing_below_the_noise(written):
  result = written[0]
  rows = bench_table.render({**result, 'noise': 1e9}).splitlines()
  row = next(row for row in rows if row.startswith('| skip 0.5 '))
  assert row.count('no difference') == 1
  rows = bench_table.render({**result, 'noise': 0.0, 'unavailable': {'x': 'y'}})
  assert '| no difference |' not in rows.replace('dense again', '')
  assert 'x is unavailable: y' in rows


def test_arms_that_compute_something_else_are_refused():
  bench_torch.check_losses(5.0, {'a': 5.00004, 'b': 4.99996}, 'float32')
  bench_torch.check_losses(5.0, {'a': 5.04}, 'bfloat16')
  with pytest.raises(errors.SatjaxError, match='a 5.0001') as caught:
    bench_torch.check_losses(5.0, {'a': 5.0001, 'b': 5.0}, 'float32')
  assert 'b 5' not in str(caught.value)
  assert 'dense arm is 5' in str(caught.value)
  for nan in ({'dense': np.nan, 'a': 5.0}, {'dense': 5.0, 'a': np.nan}):
    with pytest.raises(errors.SatjaxError, match='a '):
      bench_torch.check_losses(nan['dense'], {'a': nan['a']}, 'float32')


def test_missing_torch_is_named(monkeypatch):
  monkeypatch.setattr(bench_torch, '_PACKAGES', ('no_such_package',))
  assert bench_torch.is_wanted(None) is False
  with pytest.raises(errors.ConfigError, match='no_such_package'):
    bench_torch.is_wanted(True)


def test_rates_that_a_model_can_not_realise_are_refused():
  with pytest.raises(errors.ConfigError, match=r'head_rate 0\.1'):
    run(make_config(), rates=(0.1,), torch=False)


def test_bench_configurations_realise_the_default_rates():
  for module in (bench_cpu, bench_cpu_plus):
    config = config_lib.Config.from_dict(module.get_config())
    for rate in bench.RATES:
      changed = bench_arms.with_rate(config, rate, 'skip')
      assert changed.sparsity.head_rate == rate


@pytest.mark.parity
@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
def test_torch_arms_train_alike(dtype):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  config = make_config()
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, dtype=dtype),
    train=dataclasses.replace(config.train, microbatch_size=2),
  )
  result = run(config, torch=True)
  assert not result['unavailable']
  assert set(result['arms']) == JAX_ARMS | set(bench_torch.NAMES)
  assert set(result['torch']) == {'torch', 'transformers'}
  json.dumps(result)
