"""Every axis and every meaning of leaving out: compact against masked."""

import functools
import itertools

import jax
import numpy as np
import pytest

from satjax import tree
from satjax.train import phases, programs, window
from tests.train import helpers

AXES = {
  'heads': {'sparsity__head_rate': 0.5},
  'mlp': {'sparsity__channel_rate': 0.5},
  'layers': {'sparsity__layer_rate': 0.5},
}
EVERY = {key: rate for rates in AXES.values() for key, rate in rates.items()}
MEANINGS = ('skip', 'mean', 'exact', 'through')
# Refreshes at steps 0, 7 and 14; the rungs begin at steps 10 and 15.
RUN = {
  'sparsity__refresh_every': 7,
  'sparsity__split': 0.5,
  'sparsity__rungs': 2,
  'train__num_steps': 20,
  'optimizer__peak_lr': 1e-2,
  'model__num_layers': 4,
}
# What trains differs by layer: stacks, and runs of resting layers around them.
UNEVEN = {
  'sparsity__dense_layers': (1, 0),
  'sparsity__layer_scale': {'mlp': (1.0, 1.0, 0.5, 1.0)},
}
FAST = {
  'layers skip': AXES['layers'],
  'all through, embed rests': EVERY
  | {
    'sparsity__omitted_forward': 'through',
    'sparsity__embed': 'rest',
    'model__num_kv_heads': 2,
  },
}
SLOW = {
  **{
    f'{axis} {how}': AXES[axis] | {'sparsity__omitted_forward': how}
    for axis, how in itertools.product(AXES, MEANINGS)
    if (axis, how) != ('layers', 'mean')
  },
  **{
    f'all: {a}, {b}, {c}': EVERY
    | {'sparsity__omitted_forward': {'heads': a, 'mlp': b, 'layers': c}}
    for a, b, c in (
      ('mean', 'skip', 'through'),
      ('exact', 'through', 'skip'),
      ('through', 'mean', 'exact'),
    )
  },
  **{
    f'uneven, {how}': EVERY | UNEVEN | {'sparsity__omitted_forward': how}
    for how in ('skip', 'exact', 'through')
  },
  'grouped exact': EVERY
  | {'sparsity__omitted_forward': 'exact', 'model__num_kv_heads': 2},
  'in turn, embed rests': AXES['layers']
  | {
    'sparsity__importance': {'layers': 'cyclic'},
    'sparsity__omitted_forward': 'through',
    'sparsity__embed': 'rest',
  },
  'by gradients': EVERY
  | {
    'sparsity__importance': {
      'heads': 'taylor',
      'mlp': 'taylor',
      'layers': 'sensitivity',
    }
  },
  'decayed': EVERY
  | {'sparsity__omitted': 'decayed', 'sparsity__omitted_forward': 'skip'},
  'muon': EVERY | {'optimizer__name': 'muon', 'sparsity__embed': 'rest'},
  'muon skip': EVERY
  | {'optimizer__name': 'muon', 'sparsity__omitted_forward': 'skip'},
  'dropout': EVERY
  | {'model__dropout': 0.2, 'sparsity__omitted_forward': 'skip'},
  'dropout through': EVERY
  | {'model__dropout': 0.2, 'sparsity__omitted_forward': 'through'},
  'remat': EVERY
  | {'model__remat': 'minimal', 'sparsity__omitted_forward': 'through'},
  'scanned': EVERY
  | {'model__scan': True, 'sparsity__omitted_forward': 'through'},
  **{
    f'adapters {how}': EVERY
    | {
      'lora__rank': 2,
      'sparsity__omitted_forward': {'layers': how},
    }
    for how in ('skip', 'exact', 'through')
  },
}


def trained(options, **more):
  config = helpers.make_config(**{**RUN, **options, **more})
  with jax.enable_x64(True):
    state, losses, _ = helpers.run(helpers.in_float64(config), dtype=np.float64)
    return jax.device_get(state), losses


def check(options):
  """Losses, parameters and moments, across refreshes and rungs."""
  compact, losses = trained(options, sparsity__execution='compact')
  masked, masked_losses = trained(options, sparsity__execution='masked')
  np.testing.assert_allclose(losses, masked_losses, rtol=1e-9)
  moments = compact.opt_state, masked.opt_state.inner
  for one, two in ((compact.params, masked.params), moments):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9),
      one,
      two,
    )


@pytest.mark.parametrize('name', FAST)
def test_compact_equals_masked(name):
  check(FAST[name] | {'train__num_steps': 8, 'sparsity__refresh_every': 3})


@pytest.mark.slow
@pytest.mark.parametrize('name', SLOW)
def test_compact_equals_masked_everywhere(name):
  check(SLOW[name])


@pytest.mark.parametrize(
  'how, embed', [('skip', 'train'), ('exact', 'train'), ('through', 'rest')]
)
def test_what_rests_is_bitwise_what_it_was(how, embed):
  config = helpers.make_config(
    **RUN,
    **EVERY,
    sparsity__omitted_forward=how,
    sparsity__embed=embed,
    optimizer__weight_decay=0.1,
  )
  setup = helpers.one_device(config)
  start = helpers.initial_state(setup)
  before = jax.device_get(start)
  now = window.first(setup, start)
  for step in range(2):
    batch = setup.put_batch(helpers.random_batch(config, step))
    now = window.turn_over(setup, now, step, batch, weighs=False)
    program = helpers.compiled_step(setup, now.stage)
    now.state, _ = program(now.state, batch, now.forward_extra)
  kept = jax.device_get(now.chosen.kept)
  after = jax.device_get(window.whole(setup, now, 2))
  old, new = tree.flatten(before), tree.flatten(after)
  for path, leaf in new.items():
    name = tree.param_of(path) or ''
    axes = tree.axes_of(path, leaf.ndim)
    trains = np.ones(leaf.shape, bool)
    for axis in axes or ():
      if name.startswith('blocks/') and axis in kept:
        mask = kept[axis]
        if axis != 'layers':
          mask = mask.reshape(*mask.shape, *[1] * (leaf.ndim - 2))
        else:
          mask = mask.reshape(-1, *[1] * (leaf.ndim - 1))
        trains = trains & mask
    if name and not name.startswith('blocks/'):
      trains = np.full(leaf.shape, embed == 'train')
    np.testing.assert_array_equal(leaf[~trains], old[path][~trains], path)
    if trains.any() and name:
      # Of words, those that the batches have.
      assert (leaf[trains] != old[path][trains]).mean() > 0.3, path


def test_at_rate_0_the_step_is_the_dense_one():
  """The same program, whatever else is set."""
  programs = []
  for options in (
    {},
    {
      'sparsity__omitted_forward': {'layers': 'through', 'mlp': 'exact'},
      'sparsity__importance': {'layers': 'sensitivity'},
      'sparsity__embed': 'rest',
    },
  ):
    config = helpers.make_config(**options)
    setup = helpers.one_device(config)
    now = window.first(setup, helpers.initial_state(setup))
    batch = helpers.random_batch(config, 0)
    step = helpers.setup_lib.make_step(setup)
    programs.append(
      str(jax.make_jaxpr(step)(now.state, batch, now.forward_extra))
    )
  assert programs[0] == programs[1]


def test_a_phase_counts_what_it_realises():
  config = helpers.make_config(**RUN, **EVERY)
  phase = phases.phase_at(config, 0)
  assert phases.describe(phase)['sparsity/layers_kept'] == 2
  assert phases.describe(phase)['model/num_layers'] == 4
  assert phases.omission_rate(phase) == pytest.approx(0.75)
  last = phases.phase_at(config, 19)
  assert not last.is_sparse
  assert phases.describe(last)['sparsity/layers_kept'] == 4


@pytest.mark.parametrize('name', SLOW)
def test_every_window_is_known_as_shapes(name):
  """What compiles ahead, and what plans count."""
  config = helpers.make_config(**{**RUN, **SLOW[name]})
  setup = helpers.one_device(config)
  phase = phases.phase_at(config, 0)
  batch = jax.eval_shape(lambda: helpers.random_batch(config, 0))
  opened = programs.shapes(setup, batch, phase)
  kept = phases.describe(phase)
  stacks = tree.stacks(opened.state.params)
  layers = sum(len(jax.tree.leaves(stack)[0]) for stack in stacks)
  assert layers == kept['sparsity/layers_kept']
  for leaf in jax.tree.leaves((opened.state, opened.forward_extra)):
    assert isinstance(leaf, jax.ShapeDtypeStruct)
