"""Paper-scale steps of one layer, compiled by the TPU compiler on this machine.

A process of its own for each: the compiler is loaded once and for all.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="the TPU compiler is not installed; pip install -e '.[tpu]'",
  ),
]


def plan(tmp_path, config, topology, **changes):
  """What `satjax plan` writes."""
  out = tmp_path / 'plan.json'
  flags = [f'--config.{key}={value}' for key, value in changes.items()]
  subprocess.run(
    [
      *(sys.executable, '-m', 'satjax', 'plan', f'--out={out}'),
      *(f'--config=configs/{config}.py', f'--topology={topology}'),
      *('--config.model.num_layers=1', '--config.sparsity.rungs=1', *flags),
    ],
    cwd=ROOT,
    check=True,
    timeout=1200,
  )
  return json.loads(out.read_text())


DENSE = {'sparsity.head_rate': 0.0, 'sparsity.channel_rate': 0.0}
TWO = {'mesh.tensor': 2, 'sparsity.shards': 2}


@pytest.mark.parametrize(
  ('config', 'topology', 'fsdp', 'changes'),
  [
    ('llama2_7b_cpt', 'v6e:8x8', 32, TWO),
    ('llama2_7b_cpt', 'v5p:2x4x4', 32, DENSE),
    ('llama2_13b_cpt', 'v6e:8x8', 64, DENSE),
    ('llama2_70b_cpt', 'v5p:4x4x8', 64, DENSE | TWO),
  ],
)
def test_a_layer_of_paper_scale(tmp_path, config, topology, fsdp, changes):
  changes = {'mesh.fsdp': fsdp, 'train.batch_size': 2 * fsdp} | changes
  found = plan(tmp_path, config, topology, **changes)
  assert found['advice'] is None  # the settings as given fit
  for phase in found['phases']:
    compiled, closed = phase['compiler'], phase['closed_form_bytes']
    assert phase['fits'] and compiled['argument_bytes'] > 0
    assert closed['state'] == pytest.approx(
      compiled['argument_bytes'], rel=0.02
    )
    assert closed['total'] == pytest.approx(phase['total_bytes'], rel=0.2)
    assert sum(x['bytes'] for x in phase['exchanged'].values()) > 0
  if len(found['phases']) == 2:
    sparse, dense = found['phases']
    assert sparse['flops'] < 0.75 * dense['flops']
    assert (
      sparse['compiler']['temporary_bytes']
      <= dense['compiler']['temporary_bytes']
    )


def test_too_much_is_said_with_its_figure_and_advice(tmp_path):
  small = {
    'model.embed_dim': 512,
    'model.mlp_dim': 1024,
    'model.num_heads': 4,
    'model.num_kv_heads': 4,
    'model.remat': 'none',
    'train.batch_size': 256,
    **DENSE,
  }
  found = plan(tmp_path, 'llama2_7b_cpt', 'v5e:2x2', **small)
  refused = found['phases'][0]
  assert not refused['fits']
  assert 'RESOURCE_EXHAUSTED' in refused['compiler']['refusal']
  assert refused['total_bytes'] > 16e9
  assert found['advice']['largest_phase']['fits']
  assert found['advice']['largest_phase']['compiler']['refusal'] == ''
