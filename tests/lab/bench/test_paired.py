"""What the benchmark reports and what it refuses; never how fast."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import (
  bench_cpu,
  bench_cpu_plus,
  bench_gpu,
  bench_gpu_small,
  tiny,
)
from satjax import errors
from satjax.config.run import Config
from satjax.interop import huggingface, llama
from satjax.lab.bench import arms as bench_arms
from satjax.lab.bench import paired
from satjax.lab.bench import table as bench_table
from satjax.lab.bench import torch_arms as bench_torch
from satjax.train import phases, refresh
from satjax.train import setup as setup_lib

JAX_ARMS = {'dense', 'dense again', 'skip 0.5', 'exact 0.5'}
JAX_ARMS |= {'skip 0.5, twin', 'exact 0.5, twin'}


def make_config(**sparsity) -> Config:
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
  return Config.from_dict(config)


def run(config, **options):
  options = {'rates': (0.5,), **options}
  return paired.bench(
    config, rounds=2, steps=1, devices=jax.devices()[:1], **options
  )


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A result, and the JSON file that it was written to."""
  path = tmp_path_factory.mktemp('bench') / 'new' / 'result.json'
  # Bytes for the dense arm, its copy and one pair of others, not for two.
  result = run(make_config(), torch=(), memory=1.03e6, out=path)
  return result, path


@pytest.mark.slow
def test_every_arm_is_timed(written):
  result, _ = written
  assert set(result['arms']) == JAX_ARMS
  for arm in result['arms'].values():
    assert len(arm['step_seconds']) == 2
    assert all(0 < value < np.inf for value in arm['step_seconds'])
    assert 0 < arm['ratio']['min'] <= arm['ratio']['median']
    assert arm['ratio']['median'] <= arm['ratio']['max']
    assert arm['tokens_per_second'] > 0
    assert min(arm['compile_seconds'][name] for name in ('cold', 'warm')) > 0


@pytest.mark.slow
def test_arms_that_do_not_fit_together_are_timed_in_groups(written):
  result, path = written
  group = {name: arm['group'] for name, arm in result['arms'].items()}
  assert group['dense'] == group['dense again'] == group['skip 0.5'] == 0
  assert group['exact 0.5'] == group['exact 0.5, twin'] == 1
  arms = result['arms']
  exact, dense = arms['exact 0.5'], arms['dense']
  assert exact['dense_step_seconds'] != dense['step_seconds']
  refresh = np.median(exact['refresh_seconds']) / 4
  ratios = (np.array(exact['step_seconds']) + refresh) / (
    exact['dense_step_seconds']
  )
  assert exact['ratio']['median'] == pytest.approx(np.median(ratios))
  assert 'exact 0.5, exact 0.5, twin' in path.with_suffix('.md').read_text()


@pytest.mark.slow
def test_dense_has_to_fit_twice():
  with pytest.raises(errors.ConfigError, match='fit twice.*microbatch_size'):
    run(make_config(), rates=(), torch=(), memory=1e5)


@pytest.mark.slow
def test_dense_is_the_unit(written):
  dense = written[0]['arms']['dense']
  assert dense['ratio'] == {'median': 1, 'min': 1, 'max': 1, 'iqr': 0}
  assert dense['limit'] == dense['efficiency'] == 1


@pytest.mark.slow
def test_sat_bears_its_refreshes(written):
  sat = written[0]['arms']['skip 0.5']
  refresh = np.median(sat['refresh_seconds'])
  assert len(sat['refresh_seconds']) == 2 and refresh > 0
  # config.sparsity.refresh_every is 4 here.
  expected = np.median(sat['step_seconds']) + refresh / 4
  np.testing.assert_allclose(sat['seconds'], expected)
  np.testing.assert_allclose(sat['refresh_share'], refresh / 4 / expected)


@pytest.mark.slow
def test_twin_computes_what_sat_does(written):
  arms = written[0]['arms']
  assert arms['skip 0.5']['flops'] == arms['skip 0.5, twin']['flops']
  assert arms['skip 0.5']['limit'] > arms['exact 0.5']['limit'] > 1
  assert arms['skip 0.5']['twin']['median'] > 0
  assert arms['exact 0.5']['twin']['median'] > 0


@pytest.mark.slow
def test_a_sub_network_takes_less_memory_though_the_rest_is_counted(written):
  memory = {n: arm['memory'] for n, arm in written[0]['arms'].items()}
  assert memory['skip 0.5, twin'] < memory['skip 0.5'] < memory['dense']


@pytest.mark.slow
def test_equal_arms_have_equal_losses(written):
  losses = written[0]['losses']
  assert losses['dense'] == losses['dense again']
  assert losses['exact 0.5'] == pytest.approx(losses['dense'])
  assert losses['skip 0.5'] != losses['dense']


@pytest.mark.slow
def test_layers_have_arms_of_their_own():
  config = make_config().to_dict()
  config['model'] |= {'num_layers': 4}
  forwards = ('skip', 'mean', 'exact', 'through')
  result = run(
    Config.from_dict(config),
    rates=(),
    layers=(0.5,),
    forwards=forwards,
    torch=(),
  )
  names = [f'{how} layers 0.5' for how in ('skip', 'exact', 'through')]
  twins = {f'{name}, twin' for name in names}
  arms = result['arms']
  assert {*arms} >= {'dense', 'dense again', *names, *twins}
  limits = [arms[name]['limit'] for name in names]
  assert limits == sorted(limits, reverse=True) and limits[-1] > 1
  # The twin is a model of 2 layers.
  assert arms[names[0]]['flops'] == arms[f'{names[0]}, twin']['flops']
  for name in names[1:]:
    loss = result['losses'][name]
    np.testing.assert_allclose(loss, result['losses']['dense'], rtol=1e-5)


@pytest.mark.slow
def test_the_exact_forward_pass_is_dense(written):
  losses = written[0]['losses']
  np.testing.assert_allclose(losses['exact 0.5'], losses['dense'], rtol=1e-5)


@pytest.mark.slow
def test_files_hold_the_result_and_its_table(written):
  result, path = written
  assert json.loads(path.read_text()) == result
  assert path.with_suffix('.md').read_text() == bench_table.render(result)


@pytest.mark.slow
def test_without_rates_only_dense_is_timed():
  result = run(make_config(), rates=(), torch=())
  assert set(result['arms']) == {'dense', 'dense again'}
  bench_table.render(result)


@pytest.mark.slow
def test_masked_execution_is_timed():
  result = run(make_config(execution='masked'), torch=())
  assert set(result['arms']) == JAX_ARMS


def test_a_probe_runs_where_a_refresh_does(monkeypatch):
  # Elsewhere it would be another program, and pay for its compile.
  setup = setup_lib.make_setup(make_config(), jax.devices()[:1])
  phase = phases.phase_at(setup.config, 0)
  seen = []
  monkeypatch.setattr(
    refresh, 'measure', lambda *_: seen.append(jax.sharding.get_mesh())
  )
  bench_arms.TrainArm(setup, phase, None, {}, [{}], None).probe({})
  assert seen == [setup.mesh]


def test_an_arm_has_the_sizes_of_the_model_that_it_would_begin_with(tmp_path):
  config = make_config()
  stored = dataclasses.replace(config.model, mlp_dim=64, num_layers=3)
  values = llama.describe(stored, 'float32', 16)
  (tmp_path / 'config.json').write_text(json.dumps(values))
  model = dataclasses.replace(config.model, init_from=str(tmp_path))
  found = bench_arms.fresh(dataclasses.replace(config, model=model))
  assert found.model == dataclasses.replace(stored, init_from='')


def test_file_that_can_not_be_written_costs_no_time(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.StorageError, match='result.json'):
    run(make_config(), torch=(), out=tmp_path / 'file' / 'result.json')


def test_spread_by_hand():
  assert bench_table.spread(np.array([4.0, 1.0, 2.0, 3.0, 5.0])) == {
    'median': 3.0,
    'min': 1.0,
    'max': 5.0,
    'iqr': 2.0,
  }


@pytest.mark.parametrize(
  'median, iqr, floor',
  [(1.03, 0.01, 0.03), (0.99, 0.05, 0.05), (0.8, 0.1, 0.25)],
)
def test_noise_floor_is_the_larger_stray(median, iqr, floor):
  found = bench_table.noise_floor({'median': median, 'iqr': iqr})
  np.testing.assert_allclose(found, floor)
  assert bench_table.claim(1 / median, found) == 'no difference'


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


@pytest.mark.slow
def test_table_claims_nothing_below_the_noise(written):
  result = written[0]
  rows = bench_table.render({**result, 'noise': 1e9}).splitlines()
  row = next(row for row in rows if row.startswith('| skip 0.5 '))
  assert row.count('no difference') == 1
  rows = bench_table.render({**result, 'noise': 0.0, 'unavailable': {'x': 'y'}})
  assert '| no difference |' not in rows.replace('dense again', '')
  assert 'x is unavailable: y' in rows


def test_arms_that_compute_something_else_are_refused():
  bench_table.check_losses(5.0, {'a': 5.00004, 'b': 4.99996}, 'float32')
  bench_table.check_losses(5.0, {'a': 5.04}, 'bfloat16')
  with pytest.raises(errors.SatjaxError, match='a 5.0001') as caught:
    bench_table.check_losses(5.0, {'a': 5.0001, 'b': 5.0}, 'float32')
  assert 'b 5' not in str(caught.value)
  assert 'dense arm is 5' in str(caught.value)
  for nan in ({'dense': np.nan, 'a': 5.0}, {'dense': 5.0, 'a': np.nan}):
    with pytest.raises(errors.SatjaxError, match='a '):
      bench_table.check_losses(nan['dense'], {'a': nan['a']}, 'float32')


def test_an_accelerator_may_round_the_factors_of_a_matmul():
  bench_table.check_losses(5.0, {'a': 5.004}, 'float32', 'gpu')
  with pytest.raises(errors.SatjaxError, match='a 5.006'):
    bench_table.check_losses(5.0, {'a': 5.006}, 'float32', 'gpu')


@pytest.mark.slow
def test_figures_of_an_accelerator_have_their_columns(written):
  result = json.loads(json.dumps(written[0]))
  assert 'MFU' not in bench_table.render(result)
  arm = result['arms']['dense']
  arm |= {'mfu': 0.461, 'of_measured': 0.577, 'peak_memory': 3 * 2**30}
  result['clocks'] = {'before': [], 'after': [{'power.draw': '612.00 W'}]}
  table = bench_table.render(result)
  head, _, row = table.splitlines()[:3]
  cells = dict(zip(head.split(' | '), row.split(' | ')))
  assert cells['MFU'] == '46.1%' and cells['of measured'] == '57.7%'
  assert cells['peak GiB'] == '3.00'
  assert 'nvidia-smi after: power.draw 612.00 W.' in table
  assert 'dense-equivalent' not in table.lower()


@pytest.mark.slow
def test_the_best_torch_arm_is_the_baseline(written):
  result = json.loads(json.dumps(written[0]))
  for name, ratio in (('torch eager', 1.5), ('torch compile, cudnn', 1.2)):
    arm = {**result['arms']['dense again'], 'ratio': {'median': ratio}}
    arm['ratio'] |= {'min': ratio, 'max': ratio, 'iqr': 0.0}
    result['arms'][name] = arm
  table = bench_table.render({**result, 'noise': 0.1})
  assert 'dense / best torch: 1.200x (torch compile, cudnn)' in table
  table = bench_table.render({**result, 'noise': 0.3})
  assert 'dense / best torch: no difference' in table


def test_variants_of_each_platform():
  gpu = bench_torch.variants('gpu', 'bfloat16')
  assert len(gpu) == 6
  assert gpu['torch eager, flash'] == bench_torch.Variant('', 'FLASH_ATTENTION')
  assert gpu['torch max-autotune, cudnn'] == bench_torch.Variant(
    'max-autotune-no-cudagraphs', 'CUDNN_ATTENTION'
  )
  assert not any(
    v.attention for v in bench_torch.variants('gpu', 'float32').values()
  )


def exported(folder):
  """The setup of a small model, whose first weights are in a folder."""
  setup = setup_lib.make_setup(make_config(), jax.devices()[:1])
  params = jax.device_get(setup_lib.initial_state(setup).params)
  huggingface.save(folder, setup.config.model, params, seq_len=16)
  return setup


@pytest.mark.parity
def test_torch_attention_is_the_one_that_was_named(tmp_path):
  torch = pytest.importorskip('torch')
  pytest.importorskip('transformers')
  setup = exported(tmp_path)
  batches = bench_arms.random_batches(setup.config)
  losses = {}
  for name in ('FLASH_ATTENTION', 'MATH'):
    variant = bench_torch.Variant('', name)
    arm = bench_torch.TorchArm(setup, tmp_path, variant, batches, 4)
    with torch.profiler.profile() as seen:
      losses[name] = arm.steps(1)
    kernels = {event.key for event in seen.key_averages()}
    flash = any('flash_attention' in kernel for kernel in kernels)
    assert flash == (name == 'FLASH_ATTENTION')
  assert losses['MATH'] == pytest.approx(losses['FLASH_ATTENTION'], rel=1e-5)


@pytest.mark.parity
def test_attention_has_no_mask_though_it_is_compiled(tmp_path):
  torch = pytest.importorskip('torch')
  pytest.importorskip('transformers')
  setup = exported(tmp_path)
  batches = bench_arms.random_batches(setup.config)
  arm = bench_torch.TorchArm(setup, tmp_path, bench_torch.Variant(), batches, 1)
  graphs = []

  def keep(graph, inputs):
    graphs.append(graph)
    return graph

  arm._forward = torch.compile(arm._model, backend=keep)
  arm.steps(1)
  calls = [
    node
    for graph in graphs
    for node in graph.graph.nodes
    if node.target is torch.nn.functional.scaled_dot_product_attention
  ]
  assert len(calls) == setup.config.model.num_layers
  assert all(call.kwargs['attn_mask'] is None for call in calls)
  assert all(call.kwargs['is_causal'] is True for call in calls)


def test_missing_torch_is_named(monkeypatch):
  monkeypatch.setattr(bench_torch, '_PACKAGES', ('no_such_package',))
  assert bench_torch.wanted(None, 'cpu', 'float32') == {}
  assert bench_torch.wanted((), 'cpu', 'float32') == {}
  with pytest.raises(errors.ConfigError, match='no_such_package'):
    bench_torch.wanted(('torch eager',), 'cpu', 'float32')


def test_torch_arms_go_by_the_beginnings_of_their_names(monkeypatch):
  monkeypatch.setattr(bench_torch, '_PACKAGES', ())
  assert len(bench_torch.wanted(None, 'gpu', 'bfloat16')) == 6
  names = ('torch compile', 'torch eager, cudnn')
  assert list(bench_torch.wanted(names, 'gpu', 'bfloat16')) == [
    'torch eager, cudnn',
    'torch compile, flash',
    'torch compile, cudnn',
  ]
  with pytest.raises(errors.ConfigError, match="'torch comple'.*'torch eager'"):
    bench_torch.wanted(('torch comple',), 'cpu', 'float32')


def test_rates_that_a_model_can_not_realise_are_refused():
  with pytest.raises(errors.ConfigError, match=r'head_rate 0\.1'):
    run(make_config(), rates=(0.1,), torch=())


def test_bench_configurations_realise_the_default_rates():
  for module in (bench_cpu, bench_cpu_plus, bench_gpu, bench_gpu_small):
    config = Config.from_dict(module.get_config())
    for rate in paired.RATES:
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
  # With a limit, every PyTorch arm is alone with the dense one.
  result = run(config, torch=('torch',), memory=1e9)
  groups = {
    result['arms'][n]['group'] for n in ('torch eager', 'torch compile')
  }
  assert groups == {0, 1} and result['arms']['dense again']['group'] == 2
  assert 'dense / best torch' in bench_table.render(result)
  assert not result['unavailable']
  names = bench_torch.variants('cpu', dtype)
  assert set(names) == {'torch eager', 'torch compile'}
  assert set(result['arms']) == JAX_ARMS | set(names)
  assert set(result['torch']) == {'torch', 'transformers'}
  json.dumps(result)
