"""What a 7B model would need, by the compiler's account, not by trying."""

import collections
import importlib.util
import math

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import pytest

from configs import llama2_7b_cpt
from satjax import tree
from satjax.config.run import Config
from satjax.lab.plan import compiled as plan_compile
from satjax.lab.plan import memory as plan_memory
from satjax.sparsity import subnetwork
from satjax.train import phases, programs, refresh, window
from satjax.train import setup as setup_lib

pytestmark = pytest.mark.slow


def make_setup(device=None, layers=32, **sparsity):
  """At 7B, one row of 128 tokens, on one device."""
  config = llama2_7b_cpt.get_config()
  config.model.update(init_from='', num_layers=layers)
  config.data.seq_len = 128
  config.train.update(batch_size=1, microbatch_size=0)
  config.mesh.update(data=1, fsdp=1, tensor=1)
  config.sparsity.update(sparsity)
  config = Config.from_dict(config)
  return setup_lib.make_setup(config, [device or jax.devices()[0]])


def compiled(**sparsity):
  """The step."""
  setup = make_setup(**sparsity)
  phase = phases.phase_at(setup.config, 0)
  return programs.compile_phase(setup, plan_memory.BATCH, phase)


def test_a_window_needs_the_state_of_its_sub_network_on_the_device():
  rates = {'head_rate': 0.5, 'channel_rate': 0.5, 'rest': 'host'}
  sparse = compiled(**rates).memory_analysis()
  dense = compiled(head_rate=0.0, channel_rate=0.0).memory_analysis()
  # The arguments of a step are its state, and a batch of 3 kB.
  share = sparse.argument_size_in_bytes / dense.argument_size_in_bytes
  print(f'state of the sub-network: {share:.3f} of dense')
  assert dense.argument_size_in_bytes > 12 * 6.7e9
  assert share <= 0.62
  # The state is donated: what comes out takes its place.
  assert sparse.alias_size_in_bytes > 0.99 * sparse.argument_size_in_bytes


def accelerator():
  if not importlib.util.find_spec('libtpu'):
    pytest.skip("needs the extra tpu; pip install -e '.[tpu]'")
  return topologies.get_topology_desc('v5p:2x2x1', 'tpu').devices[0]


def bytes_on_device(values):
  """Of arrays of these shapes that are not in the memory of the host."""
  return sum(
    math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(values)
    if hasattr(x, 'shape')
    and (x.sharding is None or x.sharding.memory_kind != 'pinned_host')
  )


@pytest.mark.parametrize(
  'find', [lambda: jax.devices()[0], accelerator], ids=['cpu', 'tpu']
)
def test_two_layers_in_training_need_a_third_of_the_dense_state(
  find, monkeypatch
):
  """The preset lisa: in no program of a window does the device hold more."""
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  setup = make_setup(
    find(),
    layers=30,
    head_rate=0.0,
    channel_rate=0.0,
    layer_rate=28 / 30,
    importance='uniform',
    omitted_forward={'layers': 'through'},
    rest='host',
  )
  phase = phases.phase_at(setup.config, 0)
  assert phase.mean_kept['layers'] == 2
  full = setup_lib.abstract_state(setup, phase.stage)
  at_host = tree.map_with_path(setup.park_leaf, full)
  # Of each program what it gets on the device, gives, and needs meanwhile.
  needs = collections.Counter()

  def call(program, *args):
    more = plan_compile.step_bytes(program.lower(*args).compile())[1]
    name = program.__name__
    needs[name] = max(needs[name], bytes_on_device(args) + more)
    return program.eval_shape(*args)

  monkeypatch.setattr(subnetwork, 'ahead', call)
  batch = setup.batch_shapes(plan_memory.BATCH, phase.stage)

  @jax.jit
  def measure(params, batch):
    return refresh.measure(setup.config, phase.stage.model, params, batch)

  call(measure, at_host.params, batch)
  opened = programs.shapes(setup, batch, phase, call)
  window.compile_exchange(setup, opened, batch)
  step = programs.compile_step(setup, batch, phase, opened)
  held = bytes_on_device((opened.state, opened.forward_extra))
  held += plan_compile.parked_bytes(opened)
  dense = bytes_on_device(full)
  most = held + max(plan_compile.step_bytes(step)[1], *needs.values())
  print(f'state {held / dense:.3f} of dense, at most {most / dense:.3f}', needs)
  assert {'_take_layers', '_join_layers', 'measure'} <= needs.keys()
  assert dense > 12 * 6.3e9
  assert most <= 0.35 * dense
