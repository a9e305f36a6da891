"""Scores of heads and channels, by hand on trees of a few numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.sparsity import importance

METRICS = ('uniform', 'magnitude', 'maxip')


def make_params(kv_heads):
  """Two layers, 2 heads of width 2, 2 channels, embed_dim 2; layer 1 is -2x."""
  query = [[[1, 0], [0, 1]], [[2, 0], [0, 0]]]
  key = [[[0, 2], [0, 0]], [[0, 1], [1, 0]]]
  value = [[[2, 0], [0, 0]], [[1, 1], [1, -1]]]
  output = [[[1, 1], [1, 0]], [[0, 3], [2, 0]]]
  gate, up, down = [[1, -1], [2, 0]], [[2, 1], [0, 1]], [[3, 0], [0, 2]]

  def stack(leaf):
    leaf = np.array(leaf, np.float32)
    return jnp.array([leaf, -2 * leaf])

  return {
    'blocks': {
      'attention': {
        'query': stack(query),
        'key': stack(key[:kv_heads]),
        'value': stack(value[:kv_heads]),
        'output': stack(output),
      },
      'mlp': {'gate': stack(gate), 'up': stack(up), 'down': stack(down)},
    }
  }


def make_inputs():
  """Two layers of one row of two positions."""
  x_TD = np.array([[1, 0], [-1, 2]], np.float32)
  return {
    'attention': jnp.array([[x_TD], [x_TD[::-1] + 1]]),
    'mlp': jnp.array([[x_TD], [3 * x_TD]]),
  }


def scores_of(metric, kv_heads, units=None):
  params = make_params(kv_heads)
  units = units or tree.neuron_units(params)
  return importance.scores(metric, params, units, make_inputs())


def silu(x):
  return x / (1 + math.exp(-x))


@pytest.mark.parametrize('kv_heads', [1, 2])
def test_uniform_is_one_for_everyone(kv_heads):
  scores = scores_of('uniform', kv_heads)
  assert scores.keys() == {'heads', 'mlp'}
  np.testing.assert_array_equal(scores['heads'], np.ones((2, 2)))
  np.testing.assert_array_equal(scores['mlp'], np.ones((2, 2)))


def test_magnitude_of_channels_by_hand():
  # Squares of gate, up and down: 2 + 5 + 9 and 4 + 1 + 4; layer 1 is doubled.
  expected = np.array([[4.0, 3.0], [8.0, 6.0]])
  np.testing.assert_allclose(
    scores_of('magnitude', 2)['mlp'], expected, rtol=1e-6
  )


@pytest.mark.parametrize(
  'kv_heads, squares',
  [
    # Query and output: 2 + 3 and 4 + 13.
    (1, (5, 17)),
    # With key and value: 4 + 4 more, and 2 + 4 more.
    (2, (13, 23)),
  ],
)
def test_magnitude_of_heads_by_hand(kv_heads, squares):
  first = np.sqrt(squares)
  np.testing.assert_allclose(
    scores_of('magnitude', kv_heads)['heads'], [first, 2 * first], rtol=1e-6
  )


def test_maxip_of_channels_by_hand():
  # Layer 0: x = (1, 0) and (-1, 2). Channel 0 has x.g = 1, -3 and x.u = 2, 0;
  # channel 1 has x.g = 2, -2 and x.u = 0, 2.
  # Layer 1: 3x and weights -2 times: x.g = -6, 18 and x.u = -12, 0; x.g = -12,
  # 12 and x.u = 0, -12.
  expected = [
    [silu(1) * 2 / 2, -silu(-2) * 2 / 2],
    [-silu(-6) * 12 / 2, silu(12) * 12 / 2],
  ]
  np.testing.assert_allclose(scores_of('maxip', 2)['mlp'], expected, rtol=1e-5)


def test_maxip_takes_the_response_before_the_mean():
  # Responses of opposite sign must not cancel.
  params = {
    'blocks': {
      'mlp': {
        'gate': jnp.full((1, 1, 2), 1.0),
        'up': jnp.array([[[1.0, -1.0]]]),
        'down': jnp.zeros((1, 1, 2)),
      }
    }
  }
  units = {'mlp': {'blocks/mlp/gate': (0, 1), 'blocks/mlp/up': (0, 1)}}
  inputs = {'mlp': jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])}
  scores = importance.scores('maxip', params, units, inputs)
  np.testing.assert_allclose(scores['mlp'], [[silu(1)]], rtol=1e-6)


def test_maxip_of_heads_with_grouped_queries_reads_queries_only():
  # Layer 0: head 0 responds (1, 0) and (-1, 2), head 1 (2, 0) and (-2, 0).
  # Layer 1: x = (0, 3) and (2, 1), weights -2 times.
  expected = [
    [(math.sqrt(1 / 2) + math.sqrt(5 / 2)) / 2, math.sqrt(4 / 2)],
    [(math.sqrt(36 / 2) + math.sqrt(20 / 2)) / 2, math.sqrt(64 / 2) / 2],
  ]
  scores = scores_of('maxip', 1)
  np.testing.assert_allclose(scores['heads'], expected, rtol=1e-6)


def test_maxip_of_heads_includes_their_own_key_and_value():
  # Layer 0, squares of the six responses at each position.
  # Head 0: query 1, 5; key (0, 2) 0, 16; value (2, 0) 4, 4.
  # Head 1: query 4, 4; key (0, 1), (1, 0) 1, 5; value (1, 1), (1, -1) 2, 10.
  head_0 = (math.sqrt(5 / 6) + math.sqrt(25 / 6)) / 2
  head_1 = (math.sqrt(7 / 6) + math.sqrt(19 / 6)) / 2
  scores = scores_of('maxip', 2)
  np.testing.assert_allclose(scores['heads'][0], [head_0, head_1], rtol=1e-6)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('unit', ['heads', 'mlp'])
def test_only_the_units_asked_for_are_scored(metric, unit):
  units = {unit: tree.neuron_units(make_params(2))[unit]}
  scores = scores_of(metric, 2, units)
  assert scores.keys() == {unit}
  np.testing.assert_array_equal(scores[unit], scores_of(metric, 2)[unit])


@pytest.mark.parametrize('metric', METRICS)
def test_half_precision_parameters_are_scored_in_float32(metric):
  random = np.random.default_rng(0)

  def draw(x):
    return jnp.asarray(random.normal(size=x.shape), jnp.bfloat16)

  params = jax.tree.map(draw, make_params(2))
  inputs = jax.tree.map(draw, make_inputs())
  units = tree.neuron_units(params)
  scores = importance.scores(metric, params, units, inputs)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (params, inputs))
  exact = importance.scores(metric, wide[0], units, wide[1])
  for unit in ('heads', 'mlp'):
    assert scores[unit].dtype == jnp.float32
    np.testing.assert_allclose(scores[unit], exact[unit], rtol=1e-6)


@pytest.mark.parametrize('metric', METRICS)
def test_no_gradient_flows_through_scores(metric):
  units = tree.neuron_units(make_params(2))

  def total(params, inputs):
    scores = importance.scores(metric, params, units, inputs)
    return sum(jnp.sum(score) for score in scores.values())

  grads = jax.grad(total, argnums=(0, 1))(make_params(2), make_inputs())
  for path, leaf in tree.flatten(grads).items():
    assert not leaf.any(), path


def test_only_maxip_needs_activations():
  assert [importance.needs_inputs(m) for m in METRICS] == [False, False, True]


def test_scores_read_a_tree_that_is_not_ours():
  params = {'a': jnp.array([[3.0, 0.0], [4.0, 1.0]]), 'b': jnp.array([0.0, 2])}
  units = {'hidden': {'a': (1,), 'b': (0,)}}
  scores = importance.scores('magnitude', params, units)
  np.testing.assert_allclose(scores['hidden'], [5.0, math.sqrt(5)], rtol=1e-6)
