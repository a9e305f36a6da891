"""LORS around any optimizer: omitted neurons rest, and return on a ladder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from satjax import tree
from satjax.config.groups import OptimizerConfig
from satjax.sparsity import counts, importance, lors, selection, subnetwork
from satjax.sparsity.ladder import Ladder
from satjax.train import optimizer

LAYERS, HEADS, HEAD_DIM, DIM, CHANNELS = 2, 4, 2, 3, 8
HALF = Ladder(0.5, split=1.0, rungs=1, num_steps=100)


def make_params(seed=0, kv_heads=HEADS):
  """A part of satjax's tree: heads, channels, and a leaf that has neither."""
  random = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(random.normal(size=shape), jnp.float32)

  return {
    'final_norm': draw(DIM),
    'blocks': {
      'attention': {
        'query': draw(LAYERS, HEADS, HEAD_DIM, DIM),
        'key': draw(LAYERS, kv_heads, HEAD_DIM, DIM),
      },
      'mlp': {'up': draw(LAYERS, CHANNELS, DIM)},
    },
  }


def make_grads(step):
  return make_params(seed=100 + step)


OPTIMIZERS = {
  'adamw': lambda: optax.chain(
    optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.1)
  ),
  'lion': lambda: optax.lion(0.1, weight_decay=0.1),
  'muon': lambda: optax.chain(
    optimizer.make_optimizer(
      OptimizerConfig(
        name='muon',
        schedule='constant',
        peak_lr=0.1,
        end_lr=0.1,
        warmup_steps=0,
        decay_steps=0,
        b1=0.9,
        b2=0.99,
        eps=1e-8,
        weight_decay=0.1,
        clip_norm=1.0,
      )
    ),
    optax.scale(-0.1),
  ),
}


# Quick to compile, and no fused multiply-adds, which round differently in two
# programs that compute the same.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def step_with(tx):
  """One optimizer step."""

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return compiled(step)


def steps(step, params, state, numbers):
  for number in numbers:
    params, state = step(params, state, make_grads(number))
  return params, state


def rows_of(mask):
  """The neurons of a mask as row numbers, by axis."""
  leaves = tree.flatten(mask)
  rows = {}
  for axis, path in (
    ('heads', 'blocks/attention/query'),
    ('mlp', 'blocks/mlp/up'),
  ):
    kept = np.array(leaves[path]).reshape(LAYERS, -1)
    rows[axis] = jnp.array([np.flatnonzero(layer) for layer in kept])
  rows['kv_heads'] = rows['heads']
  return rows


def assert_same(one, two):
  one, two = tree.flatten(one), tree.flatten(two)
  assert one.keys() == two.keys()
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[path], path)


def assert_close(one, two, tolerance):
  one, two = tree.flatten(one), tree.flatten(two)
  assert one.keys() == two.keys()
  for path, leaf in one.items():
    np.testing.assert_allclose(
      leaf, two[path], rtol=tolerance, atol=tolerance, err_msg=path
    )


def is_dense(mask):
  return all(leaf.all() for leaf in jax.tree.leaves(mask))


HEADS_KEPT = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], bool)
KEPT = {
  'heads': HEADS_KEPT,
  'kv_heads': HEADS_KEPT,
  'mlp': np.array([[1, 0, 1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 1]], bool),
}
CUT = (
  subnetwork.Stack(0, LAYERS, (('heads', 2), ('kv_heads', 2), ('mlp', 3))),
)


def parts(values):
  """The rows that take part, and those that do not."""
  sub, parked = subnetwork.split(values, subnetwork.orders(KEPT), CUT)
  return sub, parked.rows


def resting_rows(values):
  """By path; step counts, which go on, are left out."""
  leaves = tree.flatten(parts(values)[1])
  return {path: leaf for path, leaf in leaves.items() if leaf.ndim}


def begun(name):
  """An optimizer, and parameters and moments after two dense steps."""
  inner = OPTIMIZERS[name]()
  params = make_params()
  step = step_with(inner)
  return inner, step, *steps(step, params, inner.init(params), range(2))


def make_mask(params):
  return lors.masks(params, tree.neuron_units(params), KEPT)


@pytest.mark.parametrize(
  'name, omitted',
  [('adamw', 'frozen'), ('adamw', 'decayed'), ('muon', 'frozen')],
)
def test_a_rate_of_zero_is_the_inner_transform(name, omitted):
  inner, params = OPTIMIZERS[name](), make_params()
  tx = lors.lors(inner, Ladder(0.0, num_steps=10), omitted=omitted)
  new, state = steps(step_with(tx), params, compiled(tx.init)(params), range(2))
  expected, inner_state = steps(
    step_with(inner), params, inner.init(params), range(2)
  )
  assert is_dense(state.mask)
  assert state.count == 2
  assert_same(new, expected)
  assert_same(state.inner, inner_state)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_omitted_neurons_rest_and_the_others_train_on_their_own(name):
  inner, inner_step, before, old_moments = begun(name)
  tx = lors.lors(inner, HALF, refresh_every=0)
  state = compiled(tx.init)(before)._replace(
    mask=make_mask(before), inner=old_moments
  )
  after, state = steps(step_with(tx), before, state, range(2, 5))
  for old, new in ((before, after), (old_moments, state.inner)):
    old_rows, new_rows = resting_rows(old), resting_rows(new)
    assert len(old_rows) >= 3
    assert_same(new_rows, old_rows)
  # The sub-network, as a smaller tree in the inner transform.
  sub, moments = parts(before)[0], parts(old_moments)[0]
  for number in range(2, 5):
    grads = parts(make_grads(number))[0]
    sub, moments = inner_step(sub, moments, grads)
  assert_close(parts(after)[0], sub, 1e-6)
  assert_close(parts(state.inner)[0], moments, 1e-6)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_decayed_neurons_see_a_gradient_of_zero(name):
  inner, _, before, moments = begun(name)
  tx = lors.lors(inner, HALF, refresh_every=0, omitted='decayed')
  mask = make_mask(before)
  state = compiled(tx.init)(before)._replace(mask=mask, inner=moments)
  params, state = steps(step_with(tx), before, state, range(2, 4))
  expected, step = before, step_with(inner)
  for number in range(2, 4):
    grads = lors.apply_mask(make_grads(number), mask)
    expected, moments = step(expected, moments, grads)
  assert_same(params, expected)
  assert_same(state.inner, moments)
  # The decay of the moments, at least, moves the neurons that are left out.
  old = parts(before)[1]['blocks']['mlp']['up']
  new = parts(params)[1]['blocks']['mlp']['up']
  assert (old != new).all()


def test_one_program_climbs_the_ladder_and_ends_dense():
  ladder = Ladder(0.5, split=0.5, rungs=2, num_steps=8)
  assert ladder.boundaries == (4, 6)
  tx = lors.lors(optax.adam(0.1), ladder)
  traces = []

  @compiled
  def step(params, state, grads):
    traces.append(None)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params, state = make_params(), compiled(tx.init)(make_params())
  kept = []
  for number in range(8):
    rows = rows_of(state.mask)
    kept.append((rows['mlp'].shape[1], rows['heads'].shape[1]))
    params, state = step(params, state, make_grads(number))
  assert kept == [(4, 2)] * 4 + [(6, 3)] * 2 + [(8, 4)] * 2
  assert is_dense(state.mask)
  assert len(traces) == 1


@pytest.mark.parametrize('method, kv_heads', [('top_k', HEADS), ('sample', 2)])
def test_the_mask_is_what_select_selects(method, kv_heads):
  params = make_params(kv_heads=kv_heads)
  groups = counts.head_groups(HEADS, kv_heads)
  tx = lors.lors(
    optax.sgd(0.1),
    HALF,
    selection=method,
    temperature=0.5,
    groups={'heads': groups},
    seed=3,
  )
  units = tree.neuron_units(params)

  @compiled
  def select(params):
    return selection.select(
      importance.scores('magnitude', params, units),
      {'heads': 2, 'mlp': 4},
      jax.random.fold_in(jax.random.key(3), 0),
      method=method,
      temperature=0.5,
      kv_heads=kv_heads,
    )

  active = select(params)
  rows = rows_of(compiled(tx.init)(params).mask)
  for axis in ('heads', 'mlp'):
    expected = [np.flatnonzero(layer) for layer in active[axis]]
    np.testing.assert_array_equal(rows[axis], expected)


def test_a_fresh_mask_follows_the_new_parameters():
  tx = lors.lors(optax.sgd(1.0), HALF, refresh_every=2)
  params = make_params()
  state = compiled(tx.init)(params)
  first, step = rows_of(state.mask), step_with(tx)
  nothing = jax.tree.map(jnp.zeros_like, params)
  # The second gradient takes the neurons that take part to 0.
  for grads in (nothing, params):
    assert_same(rows_of(state.mask), first)
    params, state = step(params, state, grads)
  assert_same(rows_of(state.mask), rows_of_omitted(first))


def rows_of_omitted(rows):
  sizes = {'heads': HEADS, 'kv_heads': HEADS, 'mlp': CHANNELS}
  return {
    axis: jnp.array([np.setdiff1d(np.arange(sizes[axis]), r) for r in layers])
    for axis, layers in rows.items()
  }


def test_scores_from_outside_take_precedence():
  tx = lors.lors(optax.sgd(0.1), HALF)
  params = make_params()
  scores = {
    'heads': jnp.array([[1.0, 2, 3, 4], [4, 3, 2, 1]]),
    'mlp': jnp.array([[8.0, 1, 7, 2, 6, 3, 5, 4], [1, 2, 3, 4, 5, 6, 7, 8]]),
  }
  _, state = compiled(tx.update)(
    make_grads(0), compiled(tx.init)(params), params, scores=scores
  )
  rows = rows_of(state.mask)
  assert rows['heads'].tolist() == [[2, 3], [0, 1]]
  assert rows['mlp'].tolist() == [[0, 2, 4, 6], [4, 5, 6, 7]]


def test_the_caller_may_set_the_mask():
  tx = lors.lors(optax.sgd(0.1), HALF, refresh_every=0)
  params = make_params()
  state = compiled(tx.init)(params)
  assert is_dense(state.mask)
  mask = jax.tree.map(jnp.zeros_like, state.mask)
  mask['final_norm'] = jnp.ones((), bool)
  state = state._replace(mask=mask)
  new, state = steps(step_with(tx), params, state, range(2))
  assert_same(new['blocks'], params['blocks'])
  assert (new['final_norm'] != params['final_norm']).all()
  assert_same(state.mask, mask)


def test_each_unit_may_have_its_own_ladder():
  ladders = {
    'heads': Ladder(0.0, num_steps=6),
    'mlp': Ladder(0.75, split=0.5, rungs=1, num_steps=6),
  }
  tx = lors.lors(optax.sgd(0.1), ladders, refresh_every=100)
  params = make_params()
  state = compiled(tx.init)(params)
  rows = rows_of(state.mask)
  assert (rows['heads'].shape[1], rows['mlp'].shape[1]) == (HEADS, 2)
  # A rung of one unit renews the mask, though no refresh is due.
  step = step_with(tx)
  params, state = steps(step, params, state, range(2))
  assert not is_dense(state.mask)
  assert is_dense(steps(step, params, state, [2])[1].mask)


CHANNELS_ONLY = {'mlp': {'up': (0,)}}


@pytest.mark.parametrize(
  'options, kept',
  [
    ({'multiple': 4}, 8),
    ({'groups': {'mlp': 8}}, 8),
    # 12 at a time: whole tiles of 6, and as many in each of 4 groups.
    ({'multiple': 6, 'groups': {'mlp': 4}}, 12),
  ],
)
def test_kept_counts_are_whole_tiles_in_every_group(options, kept):
  params = {'up': jnp.arange(1.0, 25)}
  rate = Ladder(0.6, split=1.0, rungs=1, num_steps=10)
  tx = lors.lors(optax.sgd(0.1), rate, units=CHANNELS_ONLY, **options)
  mask = np.array(tx.init(params).mask['up'])
  groups = options.get('groups', {}).get('mlp', 1)
  assert mask.reshape(groups, -1).sum(-1).tolist() == [kept // groups] * groups
  told = rate.realised_rates(24, options.get('multiple', 1), groups)
  assert told[0] == 1 - kept / 24


@pytest.mark.parametrize(
  'rate, options, said',
  [
    (0.5, {'multiple': 32}, "'mlp': 24 neurons.* 32 .*use"),
    (0.5, {'groups': {'mlp': 5}}, '5 equal groups.*divide 24'),
    (0.5, {'multiple': 8, 'groups': {'mlp': 6}}, None),  # all at a time: 24
    (0.01, {}, 'rate 0.01 leaves out nothing.*use 0.0416667'),
  ],
)
def test_what_neurons_can_not_realise_is_refused(rate, options, said):
  ladder = Ladder(rate, split=1.0, rungs=1, num_steps=10)
  tx = lors.lors(optax.sgd(0.1), ladder, units=CHANNELS_ONLY, **options)
  with pytest.raises(ValueError, match=said):
    tx.init({'up': jnp.arange(1.0, 25)})


UNITS = {
  'hidden': {
    'Dense_0/kernel': (1,),
    'Dense_0/bias': (0,),
    'Dense_1/kernel': (0,),
  }
}


def test_a_tree_that_is_not_ours_trains():
  random = np.random.default_rng(0)
  params = {
    'Dense_0': {
      'kernel': jnp.asarray(random.normal(size=(3, 6)), jnp.float32),
      'bias': jnp.asarray(random.normal(size=6), jnp.float32),
    },
    'Dense_1': {'kernel': jnp.asarray(random.normal(size=(6, 2)), jnp.float32)},
  }
  tx = lors.lors(optax.adamw(0.1), HALF, units=UNITS, refresh_every=10)
  state = compiled(tx.init)(params)
  score = np.sqrt(
    np.sum(np.square(params['Dense_0']['kernel']), 0)
    + np.square(params['Dense_0']['bias'])
    + np.sum(np.square(params['Dense_1']['kernel']), 1)
  )
  kept = np.zeros(6, bool)
  kept[np.argsort(-score)[:3]] = True
  mask = tree.flatten(state.mask)
  np.testing.assert_array_equal(mask['Dense_0/kernel'], kept[None])
  np.testing.assert_array_equal(mask['Dense_0/bias'], kept)
  np.testing.assert_array_equal(mask['Dense_1/kernel'], kept[:, None])
  grads = jax.tree.map(jnp.ones_like, params)
  updates, state = compiled(tx.update)(grads, state, params)
  for path, update in tree.flatten(updates).items():
    moved = np.broadcast_to(mask[path], update.shape)
    np.testing.assert_array_equal(update != 0, moved, path)
    moments = tree.flatten(state.inner[0].mu)[path]
    np.testing.assert_array_equal(moments != 0, moved, path)


def test_update_needs_the_parameters():
  tx = lors.lors(optax.sgd(0.1), HALF, refresh_every=0)
  state = tx.init(make_params())
  with pytest.raises(ValueError, match='parameters'):
    tx.update(make_grads(0), state)


@pytest.mark.parametrize(
  'option', [{'omitted': 'reset'}, {'importance': 'maxip'}, {'selection': 'x'}]
)
def test_an_unknown_option_is_refused_with_its_value(option):
  (name, value), *_ = option.items()
  with pytest.raises(ValueError, match=f"{name}.*'{value}'"):
    lors.lors(optax.sgd(0.1), HALF, **option)
