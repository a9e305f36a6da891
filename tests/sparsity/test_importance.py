"""Scores of heads and channels, by hand on trees of a few numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.sparsity import importance

METRICS = importance.METRICS


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


X_TD = np.array([[1, 0], [-1, 2]], np.float32)
# Two layers of one row of two positions.
INPUTS = {
  'attention': np.array([[X_TD], [X_TD[::-1] + 1]]),
  'mlp': np.array([[X_TD], [3 * X_TD]]),
}
# What a head mixed: any numbers, in the shape [L, B, T, N, H].
MIXED = np.arange(1, 17, dtype=np.float32).reshape(2, 1, 2, 2, 2)


def blocks_of(params):
  """What the forward pass of each layer shows."""
  attention, mlp = params['blocks']['attention'], params['blocks']['mlp']

  def project(x, w):
    return jnp.einsum('lbtd,ln...d->lbtn...', x, w)

  gate = project(INPUTS['mlp'], mlp['gate'])
  return {
    'attention': {
      'input': jnp.asarray(INPUTS['attention']),
      'hidden': jnp.asarray(MIXED),
      **{
        name: project(INPUTS['attention'], attention[name])
        for name in ('query', 'key', 'value')
      },
    },
    'mlp': {
      'input': jnp.asarray(INPUTS['mlp']),
      'hidden': jax.nn.silu(gate) * project(INPUTS['mlp'], mlp['up']),
    },
  }


def observe(metric, blocks, balance=False):
  layers = [
    importance.observe(
      metric, jax.tree.map(lambda x, i=i: x[i], blocks), balance=balance
    )
    for i in range(2)
  ]
  return jax.tree.map(lambda *parts: jnp.stack(parts), *layers)


def scores_of(metric, kv_heads, units=None, balance=False):
  params = make_params(kv_heads)
  units = units or tree.neuron_units(params)
  seen = observe(metric, blocks_of(params), balance)
  return importance.scores(metric, params, units, seen, balance=balance)


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
  hidden = jnp.array([[[[2.0], [-2.0]]]])
  blocks = {'attention': blocks_of(make_params(1))['attention']}
  blocks['mlp'] = {'input': hidden, 'hidden': jnp.tile(hidden, (2, 1, 1, 1))}
  assert observe('maxip', blocks)['mlp'].tolist() == [[2.0], [2.0]]


def test_maxip_out_is_maxip_times_the_norm_that_writes():
  maxip, out = scores_of('maxip', 2), scores_of('maxip_out', 2)
  # Norms of down: 3 and 2; of output: sqrt(3) and sqrt(13); layer 1 doubled.
  for unit, norm in (('mlp', [3, 2]), ('heads', np.sqrt([3, 13]))):
    factor = np.array([norm, 2 * np.array(norm)])
    np.testing.assert_allclose(out[unit], maxip[unit] * factor, rtol=1e-6)


def test_wanda_of_channels_by_hand():
  # Mean squares of layer 0's input: (1, 2). Channel 0: 1 (1 + 4) + 2 (1 + 1);
  # channel 1: 1 (4 + 0) + 2 (0 + 1). Layer 1: inputs thrice, weights twice.
  expected = np.sqrt([[9, 6], [9 * 36, 6 * 36]])
  np.testing.assert_allclose(scores_of('wanda', 2)['mlp'], expected, rtol=1e-6)


@pytest.mark.parametrize(
  'kv_heads, squares',
  [
    # Query: 1 + 2 and 4; layer 1 has mean squares (2, 5), weights doubled.
    (1, [[3, 4], [4 * 7, 4 * 8]]),
    # With key (2 x 4; 2 + 1) and value (4; 1 + 2 + 1 + 2).
    (2, [[3 + 8 + 4, 4 + 3 + 6], [4 * (7 + 20 + 8), 4 * (8 + 7 + 14)]]),
  ],
)
def test_wanda_of_heads_by_hand(kv_heads, squares):
  found = scores_of('wanda', kv_heads)['heads']
  np.testing.assert_allclose(found, np.sqrt(squares), rtol=1e-6)


def test_wanda_out_by_hand():
  # Mixed values of layer 0: head 0 has 1, 2 and 5, 6; head 1 3, 4 and 7, 8.
  rms = np.sqrt([(1 + 4 + 25 + 36) / 4, (9 + 16 + 49 + 64) / 4])
  found = scores_of('wanda_out', 2)
  np.testing.assert_allclose(
    found['heads'][0], rms * np.sqrt([3, 13]), rtol=1e-6
  )
  # Hidden values: channel 0 2 silu(1), 0; channel 1 0, 2 silu(-2).
  rms = np.array([2 * silu(1), -2 * silu(-2)]) / math.sqrt(2)
  np.testing.assert_allclose(found['mlp'][0], rms * [3, 2], rtol=1e-5)


def test_maxip_mean_by_hand():
  # The mean input of layer 0 is (0, 1): gate gives -1 and 0, up 1 and 1.
  found = scores_of('maxip_mean', 2)
  np.testing.assert_allclose(found['mlp'][0], [2, 1], rtol=1e-6)
  # Columns of head 0: query 0, 1; key 2, 0; value 0, 0. Of head 1: query 0, 0;
  # key 1, 0; value 1, -1.
  np.testing.assert_allclose(found['heads'][0], [3 / 6, 3 / 6], rtol=1e-6)
  queries = scores_of('maxip_mean', 1)['heads']
  np.testing.assert_allclose(queries[0], [1 / 2, 0], rtol=1e-6)


def test_balance_by_hand():
  # Squares of gate 2, 4, up 5, 1 and down 9, 4, over their means 3, 3 and 6.5.
  expected = np.sqrt([2 / 3 + 5 / 3 + 9 / 6.5, 4 / 3 + 1 / 3 + 4 / 6.5])
  found = scores_of('magnitude', 2, balance=True)['mlp']
  np.testing.assert_allclose(found, [expected, expected], rtol=1e-6)
  # Layer 0, squares by position: query (1, 5) and (4, 4), mean 3.5; key
  # (0, 16), (1, 5), mean 5.5; value (4, 4), (2, 10), mean 5.
  first = (1 / 3.5 + 4 / 5, 5 / 3.5 + 16 / 5.5 + 4 / 5)
  second = (4 / 3.5 + 1 / 5.5 + 2 / 5, 4 / 3.5 + 5 / 5.5 + 10 / 5)
  expected = [np.mean(np.sqrt(np.array(x) / 6)) for x in (first, second)]
  found = scores_of('maxip', 2, balance=True)['heads'][0]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('metric', METRICS)
def test_balance_ignores_the_scale_of_a_matrix(metric):
  params = make_params(2)
  units = tree.neuron_units(params)
  scaled = jax.tree.map(lambda x: x, params)
  scaled['blocks']['attention']['key'] *= 100.0
  orders = []
  for weights in (params, scaled):
    seen = observe(metric, blocks_of(weights), balance=True)
    score = importance.scores(metric, weights, units, seen, balance=True)
    orders.append(score['heads'])
  np.testing.assert_allclose(orders[0], orders[1], rtol=1e-5)


def test_mean_hidden_values():
  blocks = jax.tree.map(lambda x: x[0], blocks_of(make_params(2)))
  means = importance.observe_means(blocks)
  assert means['heads'].tolist() == [[3.0, 4.0], [5.0, 6.0]]
  np.testing.assert_allclose(means['mlp'], [silu(1), silu(-2)], rtol=1e-5)


@pytest.mark.parametrize(
  'score, value',
  [
    ([[1, 1, 1, 1]], 1.0),
    ([[0, 0, 5, 0]], 0.0),
    ([[1, 1, 0, 0], [1, 1, 1, 1]], 0.75),
    ([[2, np.inf, 2, np.nan]], 0.5),
    ([[0, 0, 0, 0]], 0.0),
    ([[3e38, 3e38, 3e38, 3e38]], 1.0),  # their sum is infinite
  ],
)
def test_entropy_by_hand(score, value):
  found = importance.entropy(np.float32(score))
  assert found == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
  'score, scale',
  [
    # The first two of four take part: 20 of 25, and all of it.
    ([4, 2, 2, 1], np.sqrt(25 / 20)),
    ([4, 2, 0, 0], 1.0),
    # Finite scores alone; 3e38 squared is none.
    ([4, np.inf, 2, np.nan], np.sqrt(20 / 16)),
    ([3e38, 3e38, 3e38, 3e38], np.sqrt(2)),
    # They tell nothing of the two: as many times as neurons are left out.
    ([0, 0, 0, 0], 2.0),
    ([0, 0, 3, 1], 2.0),
    ([np.nan, np.inf, 3, 1], 2.0),
    ([np.nan, np.nan, np.inf, -np.inf], 2.0),
  ],
)
def test_energy_scale_by_hand(score, scale):
  kept = np.array([[True, True, False, False]])
  found = importance.energy_scale(np.float32([score]), kept)
  np.testing.assert_allclose(found, [scale], rtol=1e-6)


def test_a_matrix_of_zeros_or_a_number_too_large_spoils_no_balance():
  params = {'a': np.float32([[3, 1, 2]]), 'b': np.float32([[0, 0, 0]])}
  units = {'mlp': {'a': (0, 1), 'b': (0, 1)}}
  for large in (0.0, np.inf, np.nan):
    params['b'][0, 0] = large
    score = importance.scores('magnitude', params, units, balance=True)['mlp']
    assert np.isfinite(score[0, 0]) == (large == 0)
    # Squares 9, 1 and 4 of mean 14 / 3.
    wanted = np.sqrt(np.array([1, 4]) * 3 / 14)
    np.testing.assert_allclose(score[0, 1:], wanted, rtol=1e-6)


@pytest.mark.parametrize('silent', [0.0, np.nan])
def test_a_silent_projection_spoils_no_balance_of_heads(silent):
  blocks = blocks_of(make_params(2))
  quiet = jax.tree.map(lambda x: x, blocks)
  keys = jnp.zeros_like(blocks['attention']['key'])
  quiet['attention']['key'] = keys.at[:, :, :, 0].add(silent)
  found = observe('maxip', quiet, balance=True)['heads']
  assert np.isfinite(found[:, 1]).all() and (found[:, 1] > 0).all()


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
def test_half_precision_is_scored_in_float32(metric):
  random = np.random.default_rng(0)

  def draw(x):
    return jnp.asarray(random.normal(size=x.shape), jnp.bfloat16)

  params = jax.tree.map(draw, make_params(2))
  blocks = jax.tree.map(draw, blocks_of(make_params(2)))
  units = tree.neuron_units(params)
  scores = importance.scores(metric, params, units, observe(metric, blocks))
  params, blocks = jax.tree.map(
    lambda x: x.astype(jnp.float32), (params, blocks)
  )
  exact = importance.scores(metric, params, units, observe(metric, blocks))
  for unit in ('heads', 'mlp'):
    assert scores[unit].dtype == jnp.float32
    np.testing.assert_allclose(scores[unit], exact[unit], rtol=1e-6)


@pytest.mark.parametrize('metric', METRICS)
def test_no_gradient_flows_through_scores(metric):
  units = tree.neuron_units(make_params(2))

  def total(params, blocks):
    seen = observe(metric, blocks)
    scores = importance.scores(metric, params, units, seen)
    return sum(jnp.sum(score) for score in scores.values())

  params = make_params(2)
  grads = jax.grad(total, argnums=(0, 1))(params, blocks_of(params))
  for path, leaf in tree.flatten(grads).items():
    assert not leaf.any(), path


def test_only_weights_need_no_probe():
  found = {m for m in METRICS if not importance.needs_probe(m)}
  assert found == {'uniform', 'magnitude'}


def test_scores_read_a_tree_that_is_not_ours():
  params = {'a': jnp.array([[3.0, 0.0], [4.0, 1.0]]), 'b': jnp.array([0.0, 2])}
  units = {'hidden': {'a': (1,), 'b': (0,)}}
  scores = importance.scores('magnitude', params, units)
  np.testing.assert_allclose(scores['hidden'], [5.0, math.sqrt(5)], rtol=1e-6)


def test_influence_by_hand():
  before = jnp.array([[[1.0, 0.0], [0.0, 2.0]]])
  after = jnp.array([[[0.0, 3.0], [0.0, 1.0]]])
  block = {'stream': {'input': before, 'output': after}}
  # A right angle and none.
  assert importance.influence(block) == pytest.approx(0.5)
  silent = {'stream': {'input': before, 'output': jnp.zeros_like(after)}}
  assert importance.influence(silent) == pytest.approx(1.0)


@pytest.mark.parametrize(
  'turn, trains',
  [(0, [0, 1, 2]), (1, [0, 3, 4]), (2, [0, 1, 5]), (3, [0, 2, 3])],
)
def test_layers_take_part_in_turn(turn, trains):
  scale_L = jnp.array([0.0, 1.0, 0.5, 1.0, 1.0, 1.0])
  count_L = jnp.array([[3] * 6, [0] * 6])
  score_L = importance.in_turn(scale_L, count_L, turn)
  first = [number for number in range(1, 6) if np.isinf(score_L[number])]
  assert [0, *first] == trains


def test_each_run_of_layers_has_turns_of_its_own():
  count_L = jnp.array([[1, 1, 1, 2, 2, 2, 2], [0, 0, 0, 1, 1, 1, 1]])
  found = []
  for turn in range(6):
    score_L = importance.in_turn(jnp.ones(7), count_L, turn)
    found.append(np.flatnonzero(np.isinf(score_L)).tolist())
  assert found == [[0, 3, 4], [1, 5, 6], [2, 3, 4], [0, 5, 6]] + [
    *([1, 3, 4], [2, 5, 6])
  ]
