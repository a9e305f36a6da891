"""What a 7B model would need, by the compiler's account, not by trying."""

import jax
import jax.numpy as jnp
import pytest

from configs import llama2_7b_cpt
from satjax.config.run import Config
from satjax.train import phases, programs
from satjax.train import setup as setup_lib

pytestmark = pytest.mark.slow


def compiled(**sparsity):
  """The step at 7B, one row of 128 tokens, on one device."""
  config = llama2_7b_cpt.get_config()
  config.model.init_from = ''
  config.data.seq_len = 128
  config.train.update(batch_size=1, microbatch_size=0)
  config.mesh.update(data=1, fsdp=1, tensor=1)
  config.sparsity.update(sparsity)
  config = Config.from_dict(config)
  setup = setup_lib.make_setup(config, jax.devices()[:1])
  row = jax.ShapeDtypeStruct((1, 128), jnp.int32)
  names = ('tokens', 'targets', 'positions', 'segments')
  batch = {name: row for name in names}
  batch['weights'] = jax.ShapeDtypeStruct((1, 128), jnp.float32)
  phase = phases.phase_at(config, 0)
  return programs.compile_phase(setup, batch, phase)


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
