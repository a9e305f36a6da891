"""Growth in a run: what trains, what stands still, and what is remembered."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import flops, tree
from satjax.config import stages
from satjax.data import pipeline, tokenizers
from satjax.growth import learned
from satjax.model import decoder
from satjax.sparsity import selection
from satjax.train import loss as loss_lib
from satjax.train import phases, staging, views, window
from satjax.train import setup as setup_lib
from satjax.train import state as state_lib
from satjax.train import step as step_lib
from tests.train import helpers

STEP = 4 * 32  # tokens
SMALL = {
  'model__embed_dim': 32,
  'model__num_heads': 2,
  'model__num_kv_heads': 2,
  'model__mlp_dim': 48,
}


def make_config(*hops, **overrides):
  return helpers.make_config(growth__hops=hops, **(SMALL | overrides))


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close(actual, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected
  )


def started(config):
  """A setup, and its state after two steps, so that no moment is 0."""
  setup = helpers.one_device(config)
  state, _, _ = helpers.run(config, steps=2, setup=setup)
  return setup, state


def trained(config, steps):
  """The windows of the steps of a run, as they are after each."""
  setup = helpers.one_device(config)
  now = window.first(setup, helpers.initial_state(setup))
  seen = []
  for step in range(steps):
    stage = stages.stage_at(config, step)
    batch = stages.cut(helpers.random_batch(config, step), stage)
    now = window.turn_over(setup, now, step, batch, weighs=False)
    program = program_of(setup, stage)
    now.state, scalars = program(now.state, batch, now.forward_extra)
    whole = window.whole(setup, now, step + 1)
    seen.append((stage, jax.device_get(whole), jax.device_get(scalars)))
  return seen


@functools.cache
def program_of(setup, stage):
  return jax.jit(setup_lib.make_step(setup, stage))


# --- frozen layers ---------------------------------------------------------

FREEZE = {'freeze_tokens': 3 * STEP}


@pytest.fixture(scope='module')
def frozen_run():
  config = make_config((2 * STEP, 'stack', 2, FREEZE))
  return config, trained(config, 7)


def test_frozen_layers_are_bitwise_constant(frozen_run):
  _, seen = frozen_run
  modes = [stage.mode for stage, _, _ in seen]
  assert modes == ['all'] * 2 + ['frozen'] * 3 + ['all'] * 2
  before, last, after = seen[1][1], seen[4][1], seen[5][1]
  old, now, then = (
    tree.flatten({'params': s.params, 'opt': s.opt_state})
    for s in (before, last, after)
  )
  checked = 0
  for path, leaf in now.items():
    name = tree.param_of(path)
    if name and name.startswith('blocks/'):
      np.testing.assert_array_equal(leaf[:2], old[path], path)
      assert not np.array_equal(leaf[2:], old[path]), path
      assert not np.array_equal(then[path][:2], leaf[:2]), path
      checked += 1
    elif name == 'embed':
      np.testing.assert_array_equal(leaf, old[path], path)
      assert not np.array_equal(then[path], leaf), path
    elif name:
      assert not np.array_equal(leaf, old[path]), path
  assert checked == 3 * 9  # parameters and both moments


def test_frozen_layers_train_as_with_gradients_of_zero_rows(frozen_run):
  """The oracle differentiates the whole model and updates a part of it."""
  config, seen = frozen_run
  setup = helpers.one_device(config)
  stage = seen[2][0]
  state, held = staging.enter(
    setup, seen[1][1], None, seen[1][0], stages.stages(config)[1]
  )
  whole = staging.whole(setup, state, held, stage)
  batch = helpers.random_batch(config, 2)

  def loss(params):
    logits = decoder.apply(stage.model, params, batch)
    total = np.maximum(batch['weights'].sum(), 1)
    return loss_lib.cross_entropy_sum(logits, batch) / total

  value, grads = jax.jit(jax.value_and_grad(loss))(whole.params)
  active, _ = staging.part(setup, whole, stage)
  cut, _ = staging.part(setup, whole.replace(params=grads), stage)
  expected = step_lib.update(
    active, cut.params, tx=setup.tx, schedule=setup.schedule
  )
  expected = staging.whole(setup, expected, held, stage)
  assert seen[2][2]['loss'] == pytest.approx(float(value), rel=1e-6)
  assert_close(seen[2][1].params, expected.params, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('spec, below', [('stack', True), ('llama_pro', False)])
def test_a_frozen_step_is_cheaper_by_what_the_formula_says(spec, below):
  target = 2 if spec == 'stack' else 1
  config = make_config(
    (STEP, spec, target, FREEZE),
    model__num_layers=4,
    model__vocab_size=258,
    model__mlp_dim=256,
  )
  setup = helpers.one_device(config)
  found = {}
  for stage in stages.stages(config)[1:]:
    state, held = staging.shapes(setup, stage)
    batch = setup.batch_shapes(helpers.random_batch(config, 0), stage)
    program = jax.jit(setup_lib.make_step(setup, stage))
    lowered = program.lower(state, batch, staging.forward_extra(stage, held))
    found[stage.mode] = lowered.cost_analysis()['flops']
  executed = {
    stage.mode: phases.step_flops(config, stage.start)
    for stage in stages.stages(config)[1:]
  }
  # Matrix products that are saved; the rest of a step is saved as well.
  saved = executed['all'] - executed['frozen']
  assert saved > (0.3 if below else 0.15) * executed['all']
  assert found['all'] - found['frozen'] == pytest.approx(saved, rel=0.15)


# --- masks and maps --------------------------------------------------------


def test_new_units_are_let_in_step_by_step():
  hop = (2 * STEP, 'random', {'factor': 2, 'ramp_tokens': 4 * STEP})
  stage = stages.stages(make_config(hop))[1]
  params = {'blocks': {'mlp': {'down': jnp.ones((4, 2, 3))}}}
  for step, share in ((2, 0.0), (3, 0.25), (5, 0.75), (6, 1.0), (9, 1.0)):
    seen = views.seen(stage, params, None, jnp.int32(step))
    down = seen['blocks']['mlp']['down']
    np.testing.assert_array_equal(down[:2], 1)
    np.testing.assert_array_equal(down[2:], share)


def test_the_mask_counts_steps_in_the_state():
  hop = (2 * STEP, 'random', {'factor': 2, 'ramp_tokens': 2 * STEP})
  seen = trained(make_config(hop), 5)
  assert [s.mode for s, _, _ in seen] == ['all'] * 2 + ['ramp'] * 2 + ['all']
  down = [state.params['blocks']['mlp']['down'] for _, state, _ in seen]
  # At share 0 the new layers see no gradient, then they do.
  query = [state.params['blocks']['attention']['query'] for _, state, _ in seen]
  moved = [np.abs(b[2:] - a[2:]).max() for a, b in zip(query[2:], query[3:])]
  assert min(moved) > 0
  assert all(np.isfinite(x).all() for x in down)


@pytest.mark.slow
def test_maps_are_learned_while_the_old_model_stands_aside():
  hop = (2 * STEP, 'learn', {'factor': 2, 'width_factor': 2, 'steps': 3})
  config = make_config(hop, growth__opt_state='reset')
  seen = trained(config, 6)
  assert [s.mode for s, _, _ in seen] == ['all'] * 2 + ['learn'] * 3 + ['all']
  assert set(seen[2][1].params) == {'width', 'depth'}
  rates = [scalars['learning_rate'] for _, _, scalars in seen[2:5]]
  assert rates == [pytest.approx(1e-3)] * 3
  # The first step of the new model starts from what the maps make of the old.
  setup, stage = helpers.one_device(config), seen[4][0]
  params = learned.materialise(seen[4][1].params, seen[1][1].params)
  assert stage.model.embed_dim == 64
  state = state_lib.new_state(params, setup.tx)
  state = state.replace(step=jnp.int32(5))
  batch = helpers.random_batch(config, 5)
  program = program_of(setup, seen[5][0])
  expected, scalars = program(state, batch, None)
  assert seen[5][2]['loss'] == pytest.approx(float(scalars['loss']), rel=1e-5)
  assert_close(seen[5][1].params, expected.params, rtol=1e-4, atol=1e-5)


def test_learning_is_paid_for():
  hop = (2 * STEP, 'learn', {'factor': 2, 'steps': 3})
  config = make_config(hop, growth__opt_state='reset')
  learn, then = phases.step_flops(config, 2), phases.step_flops(config, 5)
  before, after = (stage.model for stage in stages.stages(config)[:2])
  maps = flops.map_flops(before, after)
  assert learn == then + 3 * maps
  # A sum over 2 old layers for each number of the 4 new ones.
  numbers = 4 * 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32
  assert maps == 2 * 2 * 4 * numbers


# --- moments, learning rate, data ------------------------------------------


@pytest.mark.parametrize('spec', [('stack', 2), ('direct', 2), ('zero', 2)])
@pytest.mark.parametrize('opt_state', ['grow', 'reset'])
def test_moments_follow_or_start_anew(spec, opt_state):
  config = make_config((2 * STEP, *spec), growth__opt_state=opt_state)
  setup, state = started(config)
  first, second = stages.stages(config)
  grown, held = staging.enter(setup, state, None, first, second)
  assert held is None
  fresh = setup.tx.init(grown.params)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), fresh)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), grown.opt_state) == shapes
  count = {
    path: int(leaf)
    for path, leaf in tree.flatten(grown.opt_state).items()
    if path.endswith('count')
  }
  assert set(count.values()) == {2 if opt_state == 'grow' else 0}
  moments = [
    np.abs(leaf).max()
    for path, leaf in tree.flatten(grown.opt_state).items()
    if tree.param_of(path)
  ]
  assert (min(moments) > 0) == (opt_state == 'grow')
  assert int(grown.step) == 2


@pytest.mark.parametrize('spec', [('stack', 2), ('interpolate', 2)])
def test_moments_of_new_layers_alone_start_anew(spec):
  config = make_config((2 * STEP, *spec), growth__opt_state='reset_new')
  setup, state = started(config)
  first, second = stages.stages(config)
  grown, _ = staging.enter(setup, state, None, first, second)
  (deeper,) = second.operators
  is_new = np.array(deeper.is_new)
  sources = np.array(deeper.layer_map)[~is_new]
  before = tree.flatten(state.opt_state)
  moments = {n: x for n, x in before.items() if tree.param_of(n)}
  assert len(sources) == 2 and len(moments) > 20
  after = tree.flatten(grown.opt_state)
  for name, old in moments.items():
    if not tree.param_of(name).startswith('blocks/'):
      np.testing.assert_array_equal(after[name], old)
      continue
    assert not np.any(after[name][is_new]) and np.any(old)
    np.testing.assert_array_equal(after[name][~is_new], old[sources])
  assert int(grown.step) == 2


def test_the_learning_rate_goes_on_or_starts_anew():
  hop = (10 * STEP, 'stack', 2)
  keys = {'optimizer__warmup_steps': 4}
  goes_on = helpers.one_device(make_config(hop, **keys)).schedule
  plain = helpers.one_device(make_config(**keys)).schedule
  anew = helpers.one_device(
    make_config(hop, **keys, growth__learning_rate='restart')
  ).schedule
  steps = range(20)
  assert [goes_on(s) for s in steps] == [plain(s) for s in steps]
  assert [anew(s) for s in range(10)] == [plain(s) for s in range(10)]
  assert float(anew(10)) == 0.0
  assert float(anew(14)) == pytest.approx(1e-3)
  assert float(anew(20)) == pytest.approx(float(plain(20)))


def test_longer_rows_read_nothing_twice():
  config = make_config(
    (3 * STEP, 'length', 2), data__train=('stdlib:docs',), data__seq_len=32
  )
  last = stages.stages(config)[-1]
  assert (last.seq_len, last.batch_size) == (64, 2)
  batches = pipeline.make_batches(
    dataclasses.replace(config.data, seq_len=last.seq_len),
    split='train',
    batch_size=last.batch_size,
    tokenizer=tokenizers.get_tokenizer('byte'),
    vocab_size=320,
  )
  read, shapes = [], []
  for step in range(8):
    batch = stages.cut(batches[step], stages.stage_at(config, step))
    shapes.append(batch['tokens'].shape)
    read.append(batch['tokens'].ravel())
    np.testing.assert_array_equal(
      batch['tokens'].ravel(), batches[step]['tokens'].ravel()
    )
  assert shapes == [(4, 32)] * 3 + [(2, 64)] * 5
  pieces = np.concatenate(read).reshape(-1, 32)
  assert len(np.unique(pieces, axis=0)) == len(pieces)


def test_growth_in_length_leaves_the_loss_as_it_was():
  """Positions run on at a cut; rotary attention sees differences alone."""
  hop = (2 * STEP, 'length', {'factor': 2, 'rope_theta': 1e4})
  grown, losses, _ = helpers.run(make_config(hop), steps=4)
  assert len(losses) == 4 and np.isfinite(losses).all()
  assert int(grown.step) == 4


# --- growth and SAT --------------------------------------------------------

SPARSE = {
  'sparsity__head_rate': 0.5,
  'sparsity__channel_rate': 0.5,
  'sparsity__channel_multiple': 8,
  'sparsity__importance': 'magnitude',
  'sparsity__refresh_every': 2,
}


def test_a_run_may_grow_and_then_go_sparse():
  config = make_config(
    (2 * STEP, (('direct', {'mlp_dim': 64}), ('stack', 2))),
    **SPARSE,
    sparsity__warm_start=0.2,
  )
  seen = trained(config, 6)
  found = [phases.phase_at(config, step) for step in (0, 3, 4)]
  assert [phase.is_sparse for phase in found] == [False, False, True]
  assert found[2].mean_kept == {'heads': 1, 'mlp': 32, 'layers': 4}
  assert seen[5][1].params['blocks']['mlp']['up'].shape == (4, 64, 32)


def test_what_is_remembered_of_selections_starts_anew_after_growth():
  config = make_config((3 * STEP, 'stack', 2), **SPARSE)
  setup = helpers.one_device(config)
  now = window.first(setup, helpers.initial_state(setup))
  counts = []
  for step in range(6):
    stage = stages.stage_at(config, step)
    batch = helpers.random_batch(config, step)
    now = window.turn_over(setup, now, step, batch, weighs=False)
    counts.append((int(now.visits['selections']), now.visits['mlp'].shape))
    kept = now.chosen.kept
    assert selection.overlap(kept['mlp'], kept['mlp']) == 1
    assert np.isnan(now.chosen.telemetry['overlap_mlp']) == (step in (0, 1, 3))
    now.state, _ = program_of(setup, stage)(now.state, batch, now.forward_extra)
  # Windows open at 0 and 2; after growth at 3, and at 4.
  assert counts == [
    (1, (2, 48)),
    (1, (2, 48)),
    (2, (2, 48)),
    (1, (4, 48)),
    (2, (4, 48)),
    (2, (4, 48)),
  ]


def test_compact_equals_masked_across_growth_in_width():
  hop = (5 * STEP, (('zero', {'width_factor': 2}), ('stack', 2)))
  results = {}
  for execution in ('compact', 'masked'):
    config = make_config(hop, **SPARSE, sparsity__execution=execution)
    with jax.enable_x64(True):
      results[execution] = helpers.run(
        helpers.in_float64(config), steps=10, dtype=np.float64
      )
  compact, masked = results['compact'], results['masked']
  assert_close(compact[1], masked[1], rtol=1e-9)
  assert_close(compact[0].params, masked[0].params, rtol=1e-9, atol=1e-12)


# --- several devices -------------------------------------------------------


@pytest.mark.parametrize(
  'spec',
  [
    pytest.param(('stack', 2), marks=pytest.mark.slow),
    pytest.param(('direct', 2), marks=pytest.mark.slow),
    pytest.param(('learn', {'factor': 2, 'steps': 2}), marks=pytest.mark.slow),
    pytest.param(('stack', 2, FREEZE), marks=pytest.mark.slow),
  ],
)
def test_growth_under_a_mesh_equals_one_device(spec):
  config = make_config(
    (2 * STEP, *spec), growth__opt_state='reset', mesh__fsdp=2, mesh__tensor=2
  )
  many, losses, _ = helpers.run(
    config, steps=5, setup=setup_lib.make_setup(config, jax.devices()[:4])
  )
  alone = make_config((2 * STEP, *spec), growth__opt_state='reset')
  one, expected, _ = helpers.run(alone, steps=5)
  up = many.params['blocks']['mlp']['up']
  assert up.addressable_shards[0].data.size * 4 == up.size
  assert_close(losses, expected, rtol=1e-4)
  assert_close(
    jax.device_get(many.params),
    jax.device_get(one.params),
    rtol=2e-3,
    atol=2e-5,
  )
