"""Width: which units are copies, where gradients live, moments that follow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.config import specs as specs_lib
from satjax.growth import apply, fresh, width
from satjax.model import decoder
from satjax.train import state as state_lib
from tests.growth import test_depth
from tests.growth import test_preserves as common
from tests.growth.test_preserves import KEY, RAGGED

BRANCHES = {'num_heads': 6, 'mlp_dim': 40}  # the residual stream stays
OLD = {'embed': 16, 'heads': 4, 'kv_heads': 2, 'mlp': 24}
PER_UNIT = {
  path: OLD[axes[1]]
  for path, axes in tree.AXES.items()
  if axes[1:]
  and axes[1] in ('heads', 'kv_heads', 'mlp')
  and tree.has(common.make_model(), path)
}


@pytest.fixture(autouse=True)
def _cheap_numbers(monkeypatch):
  monkeypatch.setattr(fresh, 'normal', common.cheap_normal)


def in_float64(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


@common.compiled
def _loss_and_grad(params, eps):
  model = common.make_model(
    embed_dim=params['embed'].shape[1], norm_eps=eps, dtype='float64'
  )
  tokens_BT = jnp.arange(14).reshape(2, 7)

  def loss(params):
    logits_BTV = decoder.apply(model, params, {'tokens': tokens_BT})
    log_probs_BTV = jax.nn.log_softmax(logits_BTV)
    return -jnp.mean(log_probs_BTV[..., :3])

  return jax.value_and_grad(loss)(params)


def loss_and_grad(model, params):
  """In float64, by path; the program is compiled once for each shape."""
  params = in_float64(params)
  whole = {'unembed': params['embed'], **params}
  with jax.enable_x64(True):
    loss, gradient = _loss_and_grad(whole, model.norm_eps)
  gradient = tree.flatten(jax.tree.map(np.asarray, gradient))
  if 'unembed' not in params:
    gradient['embed'] = gradient['embed'] + gradient.pop('unembed')
  return float(loss), gradient


def grown(name, target, model=None, **options):
  """Operator, new model and its parameters."""
  specs = common.wide(name, target, **options)
  return common.grow(specs, model or common.make_model())


def expected(operator, gradient):
  @common.compiled
  def moments(gradient):
    grow = functools.partial(width.transform_moment, operator)
    return {
      path: (grow(path, 'first', leaf), grow(path, 'second', leaf**2))
      for path, leaf in gradient.items()
    }

  with jax.enable_x64(True):
    found = jax.tree.map(np.asarray, moments(gradient))
  for first, second in found.values():
    np.testing.assert_allclose(second, first**2, 1e-9)
  return {path: first for path, (first, _) in found.items()}


def new_entries(path, x):
  """Where a parameter has entries of new units."""
  found = np.zeros(x.shape, bool)
  for place, axis in enumerate(tree.AXES[path]):
    if axis in OLD:
      found |= np.indices(x.shape)[place] >= OLD[axis]
  return found


def units(path, x):
  """The rows of new units."""
  return x[:, PER_UNIT[path] :]


def descend(model, params, steps, rate=0.3):
  """Parameters after some steps of gradient descent."""
  params = in_float64(params)
  for _ in range(steps):
    _, gradient = loss_and_grad(model, params)
    params = jax.tree.map(
      lambda x, g: x - rate * g, params, tree.unflatten(gradient)
    )
  return params


@pytest.mark.parametrize('name', ['direct', 'fpi'])
@pytest.mark.parametrize('tied', [False, True])
def test_the_gradient_grows_as_first_moments_do(name, tied):
  """Otherwise old moments would be wrong for the new parameters."""
  model = common.make_model(tied=tied)
  (operator,), new, params = grown(name, RAGGED, model)
  loss, gradient = loss_and_grad(model, common.make_params(model))
  new_loss, new_gradient = loss_and_grad(new, params)
  assert abs(new_loss - loss) < 1e-6
  for path, wanted in expected(operator, gradient).items():
    # Channels beyond whole copies are new; nothing is claimed of them.
    found, wanted = new_gradient[path][..., :32], wanted[..., :32]
    size = np.abs(found).max()
    assert size > 1e-5
    np.testing.assert_allclose(found, wanted, 0, 1e-6 * size, err_msg=path)


def test_zero_keeps_old_gradients_and_wakes_new_units_up():
  model = common.make_model()
  (operator,), new, params = grown('zero', RAGGED)
  _, gradient = loss_and_grad(model, common.make_params(model))
  _, start = loss_and_grad(new, params)
  _, later = loss_and_grad(new, descend(new, params, 1))
  for path, wanted in expected(operator, gradient).items():
    old = ~new_entries(path, start[path])
    size = np.abs(wanted).max()
    np.testing.assert_allclose(
      start[path][old], wanted[old], 0, 1e-6 * size, err_msg=path
    )
  assert np.all(start['embed'][:14, 16:] != 0)  # of the tokens that occur
  assert np.all(start['blocks/attention/output'][:, :4, :, 16:] != 0)
  assert np.all(start['blocks/mlp/down'][:, :24, 16:] != 0)
  assert np.all(start['blocks/attention/value'][:, 2:, :, :16] != 0)
  for name in ('attention/query', 'attention/key', 'mlp/gate', 'mlp/up'):
    path = f'blocks/{name}'
    assert not np.any(units(path, start[path])), path
    assert np.all(units(path, later[path])[..., 16:] != 0), path
  for path in ('unembed', 'final_norm', 'blocks/mlp_norm'):
    assert not np.any(start[path][..., 16:])
    assert np.all(later[path][..., 16:] != 0)


def test_new_units_of_branches_live_after_two_steps():
  _, new, params = grown('zero', BRANCHES)
  model = common.make_model()
  loss, _ = loss_and_grad(model, common.make_params(model))
  new_loss, start = loss_and_grad(new, params)
  assert abs(new_loss - loss) < 1e-12
  _, later = loss_and_grad(new, descend(new, params, 2))
  for path in ('blocks/attention/value', 'blocks/mlp/up'):
    assert np.all(units(path, start[path]) != 0), path
  for path in PER_UNIT:
    assert np.all(units(path, later[path]) != 0), path


def test_zero_depth_keeps_old_gradients_and_wakes_what_new_layers_write():
  model = common.make_model()
  _, gradient = loss_and_grad(model, common.make_params(model))
  _, new, params = common.grow((('zero', 2),), model)
  for path, found in loss_and_grad(new, params)[1].items():
    if path.startswith('blocks/'):
      found, added = found[::2], found[1::2]
      writes = path.endswith(('output', 'down'))
      assert np.all(added != 0) if writes else not np.any(added), path
    wanted = gradient[path]
    np.testing.assert_allclose(found, wanted, 1e-9, 1e-12, err_msg=path)


@pytest.mark.parametrize('split', ['even', 'uneven', 'noisy'])
def test_only_an_even_split_leaves_duplicates_alike(split):
  model = common.make_model()
  _, new, params = grown('direct', BRANCHES, split=split)
  loss, _ = loss_and_grad(model, common.make_params(model))
  for path in ('blocks/attention/output', 'blocks/mlp/down'):
    # Whatever the shares, they sum to 1.
    old = tree.flatten(common.make_params(model))[path]
    found = np.array(tree.flatten(params)[path])
    rest = units(path, found)
    assert not np.allclose(rest, old[:, : rest.shape[1]] / 2) or split == 'even'
    found[:, : rest.shape[1]] += rest
    np.testing.assert_allclose(found[:, : PER_UNIT[path]], old, atol=1e-6)
  assert abs(loss_and_grad(new, params)[0] - loss) < 1e-6
  trained = tree.flatten(descend(new, params, 2))
  for path in PER_UNIT:
    copies = units(path, trained[path])
    apart = np.abs(copies - trained[path][:, : copies.shape[1]]).max()
    assert apart < 1e-12 if split == 'even' else apart > 1e-4, path


def test_aki_copies_come_from_the_layer_above():
  _, _, params = grown('aki', BRANCHES)
  old = tree.flatten(common.make_params(common.make_model()))
  for path, found in tree.flatten(params).items():
    if path not in PER_UNIT:
      np.testing.assert_array_equal(found, old[path], path)
      continue
    copies = units(path, found)
    first = np.array(old[path])[:, : copies.shape[1]]
    if path.endswith(('output', 'down')):
      np.testing.assert_array_equal(copies, first / 2, path)
    else:
      np.testing.assert_array_equal(copies, first[[1, 1]], path)
      np.testing.assert_array_equal(found[:, : PER_UNIT[path]], old[path])


def test_copies_are_whole_and_regular():
  model = common.make_model()
  tiled = specs_lib.resolve(('direct', RAGGED), model)
  assert tiled.copies == 2
  np.testing.assert_array_equal(
    width.sources(tiled, 'embed'), [*range(16), *range(16), *[-1] * 8]
  )
  np.testing.assert_array_equal(width.sources(tiled, 'kv_heads'), [0, 1, 0])
  np.testing.assert_array_equal(
    width.sources(tiled, 'heads'), [0, 1, 2, 3, 0, 1]
  )
  draws = []
  for seed in (1, 2):
    (drawn,), _ = specs_lib.resolve_all((('fpi', RAGGED),), model, seed)
    rows = width.sources(drawn, 'mlp')
    assert list(rows[:24]) == list(range(24)) and set(rows) == set(range(24))
    draws.append(tuple(rows))
    heads = width.sources(drawn, 'heads').reshape(-1, 2)
    groups = width.sources(drawn, 'kv_heads')
    np.testing.assert_array_equal(heads // 2, groups[:, None].repeat(2, 1))
  assert draws[0] != draws[1]


def make_state():
  """Parameters and moments of Adam that counts the steps of each neuron."""
  params = common.make_params(common.make_model())
  tx = test_depth.make_tx('adamw', per_neuron=True)
  clip, adam, decay = jax.eval_shape(tx.init, params)
  random = np.random.default_rng(1)

  def draw(x):
    return random.normal(size=x.shape).astype(np.float32)

  mu, count = jax.tree.map(draw, adam.mu), jax.tree.map(draw, adam.count)
  adam = adam._replace(count=count, mu=mu, nu=jax.tree.map(np.square, mu))
  return state_lib.TrainState(3, params, (clip, adam, decay))


@pytest.mark.parametrize('name', ['direct', 'zero'])
def test_moments_and_counts_grow_with_their_parameters(name):
  operator = specs_lib.resolve((name, BRANCHES), common.make_model())
  state = make_state()
  after = apply.grow_tree(state, (operator,), KEY)
  assert after.step == 3
  old, new = (x.opt_state[1] for x in (state, after))
  squares = jax.tree.map(np.square, new.mu)
  jax.tree.map(np.testing.assert_array_equal, new.nu, squares)
  old_counts, counts = tree.flatten(old.count), tree.flatten(new.count)
  moments = tree.flatten(new.mu)
  for path, before in tree.flatten(old.mu).items():
    mu, count = np.array(moments[path]), np.array(counts[path])
    if path not in PER_UNIT:
      np.testing.assert_array_equal(mu, before)
      np.testing.assert_array_equal(count, old_counts[path])
      continue
    size = mu.shape[1] - PER_UNIT[path]
    if name == 'zero':
      assert not np.any(units(path, mu)) and not np.any(units(path, count))
      np.testing.assert_array_equal(mu[:, : PER_UNIT[path]], before)
      continue
    share = 1 if path.endswith(('output', 'down')) else 0.5
    wanted = before[:, :size] * share
    np.testing.assert_array_equal(units(path, mu), wanted, path)
    np.testing.assert_array_equal(mu[:, :size], wanted, path)
    np.testing.assert_array_equal(
      units(path, count), old_counts[path][:, :size], path
    )


def test_factored_moments_can_not_grow_in_width():
  tx = test_depth.make_tx('adafactor')
  state = jax.eval_shape(tx.init, common.abstract_params(common.make_model()))
  operator = specs_lib.resolve(('direct', RAGGED), common.make_model())
  with pytest.raises(ValueError, match='factored.*reset it'):
    jax.eval_shape(lambda s: apply.grow_tree(s, (operator,), KEY), state)
