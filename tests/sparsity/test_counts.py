"""How many neurons an omission rate keeps, and which rates work."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from satjax import errors
from satjax.sparsity import counts


@pytest.mark.parametrize(
  'total, rate, multiple, kept',
  [
    (8, 0.5, 1, 4),
    (8, 0.25, 1, 6),
    (10, 0.7, 1, 3),
    # Halves round up: 2.5 and 3.5 to 3 and 4; 1.5 tiles to 2.
    (5, 0.5, 1, 3),
    (7, 0.5, 1, 4),
    (6, 0.5, 2, 4),
    (384, 0.5, 128, 256),
    # 1.5 of 15, though floats say 1.4999...
    (15, 0.9, 1, 2),
    # Just below and above a half.
    (100, 0.504, 1, 50),
    (100, 0.496, 1, 50),
    (100, 0.494, 1, 51),
    # To the nearest multiple, down and up.
    (11008, 0.5, 128, 5504),
    (768, 0.5, 64, 384),
    (768, 0.5, 256, 512),
    (768, 0.6, 256, 256),
    # At least one multiple.
    (8, 0.999, 1, 1),
    (8, 0.999, 4, 4),
    (128, 0.999, 64, 64),
    (1, 0.9, 1, 1),
    # At most all, also where the total is no multiple.
    (100, 0.01, 64, 100),
    (100, 0.3, 64, 64),
    # A rate of exactly 0 keeps all, whatever the multiple.
    (100, 0.0, 64, 100),
    (100, 0, 1, 100),
  ],
)
def test_kept_count_by_hand(total, rate, multiple, kept):
  found = counts.kept_count(total, rate, multiple)
  assert found == kept
  assert isinstance(found, int)


@given(
  total=st.integers(256, 5000),
  rate=st.floats(0, 1, exclude_max=True),
  multiple=st.integers(1, 256),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_kept_count_is_within_half_a_multiple(total, rate, multiple):
  kept = counts.kept_count(total, rate, multiple)
  assert 1 <= kept <= total
  wanted = (1 - rate) * total
  if kept not in (total, multiple):
    assert kept % multiple == 0
    assert abs(kept - wanted) <= multiple / 2 + 1e-9


@pytest.mark.parametrize(
  'total, multiple, groups, step',
  [(96, 6, 4, 12), (8, 1, 1, 1), (8, 4, 2, 4), (8, 2, 4, 4), (5, 1, 5, 5)],
)
def test_whole_tiles_in_every_group(total, multiple, groups, step):
  assert counts.common_step(total, multiple, groups) == step


@pytest.mark.parametrize(
  'call, said',
  [
    (
      lambda: counts.kept_count(100, 0.9, 128),
      'multiples of 128.*are 100; use',
    ),
    (lambda: counts.common_step(8, 16), '8 neurons.* multiples of 16 '),
    (lambda: counts.common_step(8, 1, 3), '8 neurons.* 3 equal groups; use'),
    (lambda: counts.common_step(12, 8, 3), '12 neurons.* 8 .* 3 equal groups'),
  ],
)
def test_what_no_tile_can_realise_is_refused(call, said):
  with pytest.raises(errors.ConfigError, match=said):
    call()


@pytest.mark.parametrize(
  'total, multiple, rate, what, near',
  [
    # 8 heads in groups: multiples of a quarter.
    (8, 2, 0.05, 'nothing', '0.25'),
    (8, 2, 0.99, 'all', '0.75'),
    (9, 3, 0.9, 'all', '0.666667'),
    # The last tile is not whole: 64 of 96 stay, or all.
    (96, 64, 0.9, 'all', '0.333333'),
    (96, 64, 0.01, 'nothing', '0.333333'),
    # Nothing can be left out of one tile.
    (4, 4, 0.5, 'nothing', '0'),
    (4, 4, 0.9, 'nothing', '0'),
  ],
)
def test_rates_that_no_tile_is_near(total, multiple, rate, what, near):
  said = counts.not_realised(rate, total, multiple, 'heads')
  assert said == (
    f'{rate} leaves out {what}: {total} heads are left out in multiples of'
    f' {multiple}; use {near}'
  )


@pytest.mark.parametrize(
  'total, multiple, rate, found',
  [
    (9, 3, 0.5, 1 / 3),  # half a tile more stays
    (9, 3, 0.333333, 1 / 3),
    (9, 3, 0.8, 2 / 3),
    (8, 2, 0.3, 0.25),
    (8, 1, 0.0, 0.0),
  ],
)
def test_other_rates_become_the_nearest(total, multiple, rate, found):
  assert not counts.not_realised(rate, total, multiple, 'heads')
  kept = counts.kept_count(total, rate, multiple)
  assert 1 - kept / total == pytest.approx(found)


@pytest.mark.parametrize(
  'shape, groups, step, kv_heads',
  [
    # (heads, key/value heads, granularity, shards), and half of the heads kept.
    ((8, 8, 'per_group', 1), 1, 1, 4),
    ((8, 2, 'per_group', 1), 2, 2, 2),
    ((8, 1, 'per_group', 1), 1, 1, 1),
    ((8, 2, 'group', 1), 1, 4, 1),
    ((8, 2, 'free', 1), 1, 1, 2),
    ((8, 2, 'per_group', 4), 4, 4, 2),
    ((12, 4, 'per_group', 6), 12, 12, 4),
  ],
)
def test_heads_by_hand(shape, groups, step, kv_heads):
  assert counts.head_groups(*shape) == groups
  assert counts.head_step(*shape) == step
  assert counts.kept_kv_heads(shape[0] // 2, *shape[:3]) == kv_heads


@pytest.mark.parametrize(
  'rate, scales, sizes, omitted',
  [
    (0.5, [1] * 4, [4], [2]),
    (0.0, [1] * 4, [4], [0]),
    # The nearest whole number, but never all, and none of scale 0.
    (0.4, [1] * 4, [4], [2]),
    (0.9, [1] * 4, [4], [3]),
    (0.5, [0, 1, 1, 0], [4], [1]),
    (0.9, [0, 1, 1, 0], [1, 2, 1], [0, 2, 0]),
    (0.5, [0, 0.25, 0.5, 0.75, 1.0], [5], [1]),
    # Shared out by largest remainder over runs of equal layers.
    (0.5, [1] * 6, [3, 3], [2, 1]),
    (0.5, [1] * 7, [1, 6], [1, 3]),
    (0.25, [1] * 8, [2, 6], [1, 1]),
  ],
)
def test_layers_that_are_left_out_by_hand(rate, scales, sizes, omitted):
  assert counts.omitted_layers(rate, scales, sizes) == tuple(omitted)


def test_layers_left_out_add_up_whatever_the_runs():
  random = np.random.default_rng(0)
  for _ in range(300):
    sizes = random.integers(1, 5, random.integers(1, 5)).tolist()
    scales = random.choice([0.0, 0.3, 1.0], sum(sizes)).tolist()
    rate = float(random.random() * 0.99)
    found = counts.omitted_layers(rate, scales, sizes)
    whole = counts.omitted_layers(rate, scales, [len(scales)])[0]
    assert sum(found) == whole < len(scales)
    first = 0
    for size, omitted in zip(sizes, found):
      room = sum(x > 0 for x in scales[first : first + size])
      assert 0 <= omitted <= room
      first += size
