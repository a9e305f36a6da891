"""Which neurons take part: static sizes, whatever the scores are."""

import collections
import functools
import itertools

import jax
import numpy as np
import pytest

from satjax.sparsity import selection

DRAWS = 20_000
CHI_SQUARE = {
  3: 21.1,
  5: 25.7,
}  # exceeded once in 10,000, by degrees of freedom
LAYERS, HEADS, KV_HEADS, CHANNELS = 3, 8, 2, 12
KEPT = {'heads': 4, 'mlp': 5}


@functools.cache
def program(kept, options):
  """Quick to compile: the tests compile more than they compute."""

  def run(scores, key):
    return selection.select(scores, dict(kept), key, **dict(options))

  return jax.jit(run, compiler_options={'xla_backend_optimization_level': 0})


def select(scores, kept, seed=0, **options):
  """Rows kept, by unit: int32 [L, n]."""
  masks = select_masks(scores, kept, seed, **options)
  return {
    unit: np.array([np.flatnonzero(layer) for layer in mask], np.int32)
    for unit, mask in masks.items()
  }


def select_masks(scores, kept, seed=0, **options):
  options = {'method': 'top_k', 'temperature': 1.0, 'kv_heads': 1, **options}
  run = program(tuple(kept.items()), tuple(options.items()))
  scores = {name: np.float32(score) for name, score in scores.items()}
  return jax.device_get(run(scores, jax.random.key(seed)))


def kept_channels(score, count, seed=0, **options):
  rows = select({'mlp': [score]}, {'mlp': count}, seed, **options)['mlp'][0]
  return rows.tolist()


@pytest.mark.parametrize(
  'count, rows',
  [
    (1, [3]),
    (2, [3, 6]),
    (3, [0, 3, 6]),
    (5, [0, 2, 3, 5, 6]),
    (7, [0, 1, 2, 3, 5, 6, 7]),
  ],
)
def test_top_k_of_eight_numbers(count, rows):
  score = [0.5, 0.2, 0.3, 9.0, 0.1, 0.4, 2.0, 0.25]
  assert kept_channels(score, count) == rows


def test_ties_are_broken_at_random_and_the_count_is_right():
  score = [0.0, 5.0, 3.0, 1.0, 3.0, 3.0, 0.0, 1.0]
  seen = collections.Counter(
    tuple(kept_channels(score, 3, seed)) for seed in range(60)
  )
  # Always the 5, and two of the three that tie.
  assert seen.keys() == {(1, 2, 4), (1, 2, 5), (1, 4, 5)}
  assert min(seen.values()) >= 8


def test_equal_scores_do_not_favour_a_place():
  score = np.ones((DRAWS, 4), np.float32)
  rows = select({'mlp': score}, {'mlp': 1})['mlp']
  counts = np.bincount(np.ravel(rows), minlength=4)
  assert np.sum((counts - DRAWS / 4) ** 2 / (DRAWS / 4)) < CHI_SQUARE[3]


@pytest.mark.parametrize('method', ['top_k', 'sample'])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_kept(method, bad):
  score = np.array([1, 100, bad, 1, 1, bad, 100, 1], np.float32)
  for seed in range(10):
    rows = kept_channels(score, 2, seed, method=method, temperature=0.1)
    assert rows == [2, 5]
  assert kept_channels(score, 4, method=method, temperature=0.01) == [
    1,
    2,
    5,
    6,
  ]


def adversarial_trees():
  """200 score trees: random ones, and each way in which scores degenerate."""
  random = np.random.default_rng(0)
  spoilt = [
    lambda x: np.zeros_like(x),
    lambda x: np.full_like(x, 0.3),
    lambda x: x * np.float32(3e38),
    lambda x: x * np.float32(1e-42),
    lambda x: np.where(x > 0.7, np.float32(np.nan), x),
    lambda x: np.full_like(x, np.nan),
    lambda x: np.where(x > 0.5, np.float32(np.inf), x),
    lambda x: np.full_like(x, np.inf),
    lambda x: np.where(x > 0.9, x, 0),
    lambda x: np.where(x > 0.5, np.float32(3e38), np.float32(np.nan)),
  ]
  for number in range(200):
    spoil = spoilt[number // 2 % len(spoilt)] if number % 2 else lambda x: x
    yield {
      'heads': spoil(random.random((LAYERS, HEADS), np.float32)),
      'mlp': spoil(random.random((LAYERS, CHANNELS), np.float32)),
    }


@pytest.mark.parametrize('method', ['top_k', 'sample'])
@pytest.mark.parametrize('kv_heads', [KV_HEADS, HEADS])
def test_selections_are_valid_for_any_scores(method, kv_heads):
  units = {'heads', 'mlp'} | ({'kv_heads'} if kv_heads == HEADS else set())
  for number, scores in enumerate(adversarial_trees()):
    active = select(scores, KEPT, number, method=method, kv_heads=kv_heads)
    assert active.keys() == units
    for unit in scores:
      assert active[unit].shape == (LAYERS, KEPT[unit])
    for score, rows in zip(scores['mlp'], active['mlp']):
      wild = np.flatnonzero(~np.isfinite(score))
      inside, outside = (wild, rows) if len(wild) <= len(rows) else (rows, wild)
      assert set(inside) <= set(outside)
    if kv_heads == HEADS:
      np.testing.assert_array_equal(active['kv_heads'], active['heads'])
    else:
      group = active['heads'] // (HEADS // KV_HEADS)
      assert (np.sum(group == 0, axis=1) == KEPT['heads'] // KV_HEADS).all()


def test_grouped_queries_keep_the_best_of_each_group():
  # The four best heads are all in the first group.
  score = [[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]]
  active = select({'heads': score}, {'heads': 4}, kv_heads=2)
  assert active.keys() == {'heads'}
  assert active['heads'].tolist() == [[0, 1, 6, 7]]


def test_heads_with_their_own_keys_take_them_along():
  score = [[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]]
  active = select({'heads': score}, {'heads': 4}, kv_heads=8)
  assert active['heads'].tolist() == [[0, 1, 2, 3]]
  assert active['kv_heads'].tolist() == [[0, 1, 2, 3]]


def test_how_many_are_kept_may_differ_by_layer_and_be_traced():
  score = np.float32([[5, 4, 3, 2, 1, 0]] * 3)

  @jax.jit
  def run(counts):
    return selection.select(
      {'mlp': score},
      {'mlp': counts},
      jax.random.key(0),
      method='top_k',
      temperature=1.0,
      kv_heads=1,
    )['mlp']

  for counts in ([1, 6, 3], [2, 2, 5]):
    expected = np.arange(6) < np.array(counts)[:, None]
    np.testing.assert_array_equal(run(np.array(counts)), expected)
  assert run._cache_size() == 1


def test_every_shard_keeps_as_many_neurons_of_its_own():
  random = np.random.default_rng(2)
  scores = {'mlp': random.random((5, 12)), 'heads': random.random((5, 8))}
  masks = select_masks(
    scores, {'mlp': 8, 'heads': 4}, method='sample', kv_heads=2, shards=4
  )
  assert (masks['mlp'].reshape(5, 4, 3).sum(-1) == 2).all()
  assert (masks['heads'].reshape(5, 4, 2).sum(-1) == 1).all()
  alone = select_masks(scores, {'mlp': 8, 'heads': 4}, method='sample')
  assert (alone['mlp'].reshape(5, 4, 3).sum(-1) != 2).any()


def test_whole_groups_of_heads_go_with_their_key_and_value():
  # Groups of three; the norms of their scores are 3.7, 5.1, 1.7 and 5.2.
  score = [[1, 2, 3, 5, 1, 0, 1, 1, 1, 3, 3, 3]]
  masks = select_masks(
    {'heads': score}, {'heads': 6}, kv_heads=4, granularity='group'
  )
  assert masks['kv_heads'].tolist() == [[False, True, False, True]]
  assert masks['heads'].astype(int).tolist() == [
    [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
  ]


def test_groups_that_can_not_be_equal_are_refused():
  with pytest.raises(ValueError, match='8 neurons.* 3 equal groups; use'):
    select_masks({'mlp': np.ones((2, 8))}, {'mlp': 3}, shards=3)


def test_free_heads_are_the_best_of_all():
  score = [[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]]
  active = select(
    {'heads': score}, {'heads': 4}, kv_heads=2, granularity='free'
  )
  assert active.keys() == {'heads'}
  assert active['heads'].tolist() == [[0, 1, 2, 3]]


def test_overlap_by_hand():
  one = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)
  two = np.array([[1, 0, 1, 0], [1, 1, 1, 0]], bool)
  # One of three, and all.
  np.testing.assert_allclose(selection.overlap(one, two), (1 / 3 + 1) / 2)


def test_layers_and_units_draw_independently():
  score = np.ones((200, 4), np.float32)
  active = select(
    {'heads': score, 'mlp': score}, {'heads': 2, 'mlp': 2}, method='sample'
  )
  pairs = collections.Counter(map(tuple, active['mlp'].tolist()))
  assert len(pairs) == 6
  assert max(pairs.values()) < 60
  same = (active['mlp'] == active['heads']).all(axis=1)
  assert np.sum(same) < 60
  alone = select({'mlp': score}, {'mlp': 2}, method='sample')
  np.testing.assert_array_equal(alone['mlp'], active['mlp'])


def test_the_key_decides():
  score = np.arange(1.0, 9.0)
  draw = functools.partial(kept_channels, score, 4, method='sample')
  assert draw(seed=3) == draw(seed=3)
  assert len({tuple(draw(seed=seed)) for seed in range(20)}) > 5


def test_low_temperature_is_top_k():
  random = np.random.default_rng(1)
  for seed in range(20):
    score = 2.0 ** random.permutation(8)
    sample = kept_channels(score, 4, seed, method='sample', temperature=1e-3)
    assert sample == kept_channels(score, 4, seed)


def draw_pairs(score, temperature):
  """How often each pair is kept of four neurons, in independent draws."""
  scores = {'mlp': np.tile(np.float32(score), (DRAWS, 1))}
  options = {'method': 'sample', 'temperature': temperature}
  rows = np.asarray(select(scores, {'mlp': 2}, **options)['mlp'])
  counts = collections.Counter(map(tuple, rows.tolist()))
  return np.array([counts[p] for p in itertools.combinations(range(4), 2)])


def pair_odds(weight):
  """Plackett-Luce: first by weight, then by weight among the others."""
  p = np.array(weight) / np.sum(weight)
  return np.array(
    [
      p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
      for i, j in itertools.combinations(range(4), 2)
    ]
  )


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_sampling_follows_plackett_luce(temperature):
  score = np.array([1.0, 2.0, 3.0, 6.0])
  expected = DRAWS * pair_odds(score ** (1 / temperature))
  counts = draw_pairs(score, temperature)
  assert np.sum((counts - expected) ** 2 / expected) < CHI_SQUARE[5]
  # The test can tell: odds of another temperature are far away.
  other = DRAWS * pair_odds(score ** (1.2 / temperature))
  assert np.sum((counts - other) ** 2 / other) > 2 * CHI_SQUARE[5]


def test_high_temperature_is_uniform():
  counts = draw_pairs([1.0, 2.0, 3.0, 6.0], temperature=1e4)
  assert np.sum((counts - DRAWS / 6) ** 2 / (DRAWS / 6)) < CHI_SQUARE[5]


def test_only_the_ratio_of_scores_matters():
  score = np.array([1.0, 2.0, 3.0, 6.0])
  for scale in (1e-20, 1e20):
    np.testing.assert_array_equal(
      draw_pairs(scale * score, 1.0), draw_pairs(score, 1.0)
    )


def test_a_score_of_zero_keeps_a_chance():
  scores = {'mlp': np.tile(np.float32([0, 0, 0, 1]), (200, 1))}
  rows = select(scores, {'mlp': 2}, method='sample')['mlp']
  assert (rows[:, 1] == 3).all()
  assert set(rows[:, 0].tolist()) == {0, 1, 2}


def test_jit_selects_the_same():
  scores = {'heads': np.float32([[0.3, 0.1, 0.9, 0.5, 0.5, 0.5, 0.5, 0.2]])}
  options = {'method': 'sample', 'temperature': 1.0, 'kv_heads': 2}
  for seed in range(5):
    jitted = select(scores, {'heads': 4}, seed, **options)
    plain = selection.select(
      scores, {'heads': 4}, jax.random.key(seed), **options
    )
    rows = [np.flatnonzero(layer) for layer in plain['heads']]
    np.testing.assert_array_equal(jitted['heads'], rows)


@pytest.mark.parametrize('method', ['top_k', 'sample'])
def test_each_run_of_layers_keeps_as_many_as_it_should(method):
  kept, run = [1, 1, 1, 2, 2, 0], [0, 0, 0, 1, 1, 2]
  score = np.array([3.0, np.nan, 2.0, 1.0, 9.0, np.inf])
  mask = selection.keep_layers(
    score,
    np.array([kept, run]),
    jax.random.key(0),
    method=method,
    temperature=1.0,
  )
  assert mask.tolist() == [False, True, False, True, True, False]


def test_the_best_layers_stay_whatever_run_they_are_in():
  score = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
  for count, expected in ((1, [1, 0, 0, 0, 0]), (3, [1, 0, 1, 0, 1])):
    mask = selection.keep_layers(
      score,
      np.array([[count] * 5, [0] * 5]),
      jax.random.key(1),
      method='top_k',
      temperature=1.0,
    )
    assert mask.tolist() == [bool(x) for x in expected]
