"""With `rest='host'` the device never holds the whole model: every program."""

import jax
import numpy as np
import pytest

from satjax import tree
from satjax.sparsity import subnetwork
from satjax.train import (
  checkpoint,
  evaluation,
  phases,
  programs,
  refresh,
  window,
)
from satjax.train import setup as setup_lib
from satjax.train import step as step_lib
from tests.train import helpers

SIZES = {
  'model__num_layers': 2,
  'model__mlp_dim': 512,
  'data__seq_len': 8,
  'train__batch_size': 2,
  'sparsity__head_rate': 0.75,
  'sparsity__channel_rate': 0.75,
  'sparsity__split': 1.0,
  'sparsity__probe': 1.0,
  'sparsity__importance': 'maxip',
  'sparsity__omitted': 'decayed',
  'sparsity__omitted_forward': 'mean',
  'sparsity__rest': 'host',
}


def on_device():
  """Bytes of the arrays that the device holds now."""
  return sum(
    x.nbytes for x in jax.live_arrays() if x.sharding.memory_kind == 'device'
  )


def extra(compiled):
  """Bytes that a program needs besides its arguments."""
  needs = compiled.memory_analysis()
  more = needs.temp_size_in_bytes + needs.output_size_in_bytes
  return more - needs.alias_size_in_bytes


class Watched:
  """A program that notes what the device holds while it runs, at most."""

  def __init__(self, name, program, peaks):
    self._name, self._program, self._peaks = name, program, peaks

  def __call__(self, *args, **kwargs):
    peak = on_device() + extra(self._program.lower(*args, **kwargs).compile())
    self._peaks.append((peak, self._name))
    return self._program(*args, **kwargs)


@pytest.fixture
def peaks(monkeypatch):
  """(bytes, name) of every program of windows that runs."""
  found = []
  for module, names in (
    (subnetwork, ('_split_leaf', '_merge_leaf', '_inverse', '_copy', 'orders')),
    (refresh, ('_measure', '_choose')),
    (checkpoint, ('_hash_leaves',)),
    (step_lib, ('eval_step', 'replay')),
  ):
    for name in names:
      program = Watched(name, getattr(module, name), found)
      monkeypatch.setattr(module, name, program)
  return found


def test_no_program_needs_more_than_the_step_and_a_leaf(peaks):
  jax.clear_caches()
  config = helpers.make_config(**SIZES)
  setup = helpers.one_device(config)
  before = on_device()
  now = window.first(setup, setup_lib.initial_state(setup))
  leaves = jax.tree.leaves(now.state)
  largest = max(leaf.nbytes for leaf in leaves)
  everything = sum(leaf.nbytes for leaf in leaves)
  program, most = None, 0
  for step in range(config.sparsity.refresh_every + 1):
    phase = phases.phase_at(config, step)
    batch = setup.put_batch(helpers.random_batch(config, step))
    now = window.turn_over(setup, now, step, batch)
    if program is None:
      program = programs.compile_step(setup, batch, phase, now)
      most = on_device() + extra(program)
    now.state, _ = program(now.state, batch, now.forward_extra)
    evaluation.mean_loss(
      setup.mesh, now.stage, window.whole_params(setup, now, step), [batch]
    )
    checkpoint.fingerprint(window.whole(setup, now, step))
  assert {name for _, name in peaks} >= {
    '_split_leaf',
    '_merge_leaf',
    '_measure',
    '_choose',
    '_hash_leaves',
    'eval_step',
    'replay',
  }
  for peak, name in peaks:
    # The optimizer moves a parameter on with its two moments.
    leaves = 3 if name == 'replay' else 1
    assert peak - before <= most - before + leaves * largest, name
    assert peak - before < everything, name


def test_layers_on_the_host_count_beside_neurons_on_the_device():
  """Both rest, both are seen; where they lie changes no bit."""
  changes = {
    'model__num_layers': 4,
    'model__scan': True,
    'sparsity__channel_rate': 0.5,
    'sparsity__layer_rate': 0.5,
    'sparsity__omitted_forward': {'mlp': 'exact', 'layers': 'through'},
    'sparsity__embed': 'rest',
    'sparsity__split': 1.0,
    'train__num_steps': 6,
  }
  states, losses = {}, {}
  for rest in ('device', 'host'):
    config = helpers.make_config(**changes, sparsity__rest=rest)
    setup = helpers.one_device(config)
    now = window.first(setup, setup_lib.initial_state(setup))
    batch = setup.put_batch(helpers.random_batch(config, 0))
    now = window.turn_over(setup, now, 0, batch)
    kinds = {
      name: {x.sharding.memory_kind for x in jax.tree.leaves(part.params)}
      for name, part in (
        ('rows', now.parked.rows),
        ('layers', now.parked.layers),
        ('tables', now.parked.tables),
      )
    }
    away = 'pinned_host' if rest == 'host' else 'device'
    assert kinds == {'rows': {'device'}, 'layers': {away}, 'tables': {'device'}}
    moments = {
      x.sharding.memory_kind
      for path, x in tree.flatten(now.parked.tables.opt_state).items()
      if tree.param_of(path)
    }
    assert moments == {away}
    states[rest], losses[rest], _ = helpers.run(
      config, start=setup_lib.initial_state(setup)
    )
  assert losses['host'] == losses['device']
  jax.tree.map(np.testing.assert_array_equal, states['host'], states['device'])
