"""Which layer each layer comes from: published maps, rates and refusals."""

import fractions
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from satjax import errors
from satjax.growth import layer_maps

quick = settings(max_examples=40, deadline=None)
sizes = st.integers(1, 12)


def rate(pattern_or_map, num_layers=6):
  layer_map = pattern_or_map
  if isinstance(layer_map, str):
    layer_map = layer_maps.partial(num_layers, layer_map)
  return layer_maps.connection_rate(layer_map)


@pytest.mark.parametrize(
  'pattern, kept',
  [
    ('123456*4', 20),
    ('12-3456*5-56', 18),
    ('12-345*7-6', 17),
    ('123-456*7', 17),
    ('1-234*7-56', 17),
    ('123*7-456', 17),
    ('1234-56*10', 14),
    ('12-34*10-56', 14),
  ],
)
def test_connection_rates_of_the_paper(pattern, kept):
  """Du et al. (2024), Table 5: 6 layers become 24."""
  assert len(layer_maps.partial(6, pattern)) == 24
  assert rate(pattern) == float(fractions.Fraction(kept, 23))


@pytest.mark.parametrize(
  'make, num_layers, target, kept',
  [
    (layer_maps.stack, 8, 24, 21),
    (layer_maps.interpolate, 8, 24, 7),
    (layer_maps.stack, 3, 6, 4),
    (layer_maps.interpolate, 3, 6, 2),
    (layer_maps.stack, 6, 24, 20),
    (layer_maps.append, 2, 4, 1),
  ],
)
def test_connection_rates_of_stack_and_interpolation(
  make, num_layers, target, kept
):
  found = rate(make(num_layers, target))
  assert found == float(fractions.Fraction(kept, target - 1))


def test_a_single_layer_is_connected():
  assert layer_maps.connection_rate((0,)) == 1.0


@pytest.mark.parametrize(
  'found, wanted',
  [
    (layer_maps.stack(3, 6), (0, 1, 2, 0, 1, 2)),
    (layer_maps.stack(3, 7), (0, 1, 2, 0, 1, 2, 0)),
    (layer_maps.interpolate(3, 6), (0, 0, 1, 1, 2, 2)),
    (layer_maps.interpolate(2, 5), (0, 0, 0, 1, 1)),
    (layer_maps.interpolate(3, 4), (0, 0, 1, 2)),
    (layer_maps.append(3, 5), (0, 1, 2, 2, 2)),
    (layer_maps.gradual(4, 2), (0, 1, 2, 3, 2, 3)),
    (layer_maps.gradual(4, 4), (0, 1, 2, 3, 0, 1, 2, 3)),
    (layer_maps.gradual(1, 1), (0, 0)),
    (layer_maps.solar(32, 8), (*range(24), *range(8, 32))),
    (layer_maps.solar(3, 0), (0, 1, 2, 0, 1, 2)),
    (layer_maps.solar(5, 2), (0, 1, 2, 2, 3, 4)),
    (layer_maps.llama_pro(4, 2), (0, 1, 1, 2, 3, 3)),
    (layer_maps.llama_pro(3, 1), (0, 0, 1, 1, 2, 2)),
    (layer_maps.llama_pro(3, 3), (0, 1, 2, 2)),
    (layer_maps.partial(3, '12*2-3'), (0, 1, 0, 1, 2)),
    (layer_maps.partial(3, '3-1'), (2, 0)),
    (layer_maps.partial(9, '9*2'), (8, 8)),
  ],
)
def test_maps_of_every_kind(found, wanted):
  assert found == wanted


def test_llama_pro_makes_40_layers_of_32():
  layer_map = layer_maps.llama_pro(32, 4)
  assert len(layer_map) == 40
  new = [i for i, flag in enumerate(layer_maps.is_new(layer_map)) if flag]
  assert new == [4, 9, 14, 19, 24, 29, 34, 39]
  assert [layer_map[i] for i in new] == [3, 7, 11, 15, 19, 23, 27, 31]


@pytest.mark.parametrize(
  'blocks, copied',
  [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4)],
)
@pytest.mark.parametrize('size', [1, 2, 3])
def test_midas_copies_the_middle_block_behind_itself(blocks, copied, size):
  """Block ceil(n / 2), counted from 1."""
  groups = [
    list(range(block * size, (block + 1) * size)) for block in range(blocks)
  ]
  groups.insert(copied, groups[copied - 1])
  wanted = tuple(layer for group in groups for layer in group)
  assert layer_maps.midas(blocks * size, size) == wanted


@pytest.mark.parametrize(
  'num_layers, pattern, wanted',
  [
    (10, '1..8-9,10*3', (*range(8), 8, 9, 8, 9, 8, 9)),
    (12, '1..12*2', (*range(12), *range(12))),
    (11, '1,3,11', (0, 2, 10)),
    (11, '4..4*2-11', (3, 3, 10)),
    (11, '10', (9,)),
    (24, '1..12,20-24', (*range(12), 19, 23)),
    (9, '12-9*2', (0, 1, 8, 8)),
  ],
)
def test_patterns_beyond_nine_layers_have_numbers_and_ranges(
  num_layers, pattern, wanted
):
  assert layer_maps.partial(num_layers, pattern) == wanted


@pytest.mark.parametrize(
  'num_layers, pattern, group',
  [
    (6, '', ''),
    (6, '12--3', ''),
    (6, '127', '127'),
    (6, '102', '102'),
    (6, '12*0', '12*0'),
    (6, '12*', '12*'),
    (6, '*3', '*3'),
    (6, '12*-1', '12*'),
    (6, 'ab', 'ab'),
    (6, '1,2', '1,2'),
    (6, '1..3', '1..3'),
    (6, '12 -3', '12 '),
    (12, '1..13', '1..13'),
    (12, '0..3', '0..3'),
    (12, '5..3', '5..3'),
    (12, '1,5..3', '1,5..3'),
    (12, '1.3', '1.3'),
    (12, '1,,3', '1,,3'),
    (12, '1...3', '1...3'),
    (12, '123', '123'),
  ],
)
def test_patterns_that_can_not_be_read_are_quoted(num_layers, pattern, group):
  said = f'pattern {pattern!r}: {group!r} is no group of layers 1 to'
  with pytest.raises(errors.ConfigError, match=re.escape(said)):
    layer_maps.partial(num_layers, pattern)


@pytest.mark.parametrize(
  'make, value, said',
  [
    (layer_maps.gradual, 0, 'layers 0 .* use 1 to 6'),
    (layer_maps.gradual, 7, 'layers 7 .* use 1 to 6'),
    (layer_maps.gradual, -1, 'layers -1 '),
    (layer_maps.midas, 0, 'layers 0 .* divisor'),
    (layer_maps.midas, 4, 'layers 4 of MIDAS cut 6'),
    (layer_maps.midas, 12, 'layers 12 '),
    (layer_maps.solar, -1, 'drop -1 .* use 0 to 2'),
    (layer_maps.solar, 3, 'drop 3 .* use 0 to 2'),
    (layer_maps.solar, 6, 'drop 6 '),
    (layer_maps.llama_pro, 0, 'group 0 .* divisor'),
    (layer_maps.llama_pro, 4, 'group 4 of LLaMA-Pro cuts 6'),
    (layer_maps.llama_pro, 12, 'group 12 '),
  ],
)
def test_numbers_that_do_not_fit_are_quoted(make, value, said):
  with pytest.raises(errors.ConfigError, match=said):
    make(6, value)


@quick
@given(sizes, st.integers(0, 3))
def test_the_drops_that_solar_names_are_those_that_grow(num_layers, drop):
  if 2 * (num_layers - drop) > num_layers:
    assert len(layer_maps.solar(num_layers, drop)) == 2 * (num_layers - drop)
  else:
    with pytest.raises(errors.ConfigError):
      layer_maps.solar(num_layers, drop)


@quick
@given(sizes)
def test_growth_to_the_same_depth_is_the_identity(num_layers):
  whole = tuple(range(num_layers))
  for make in (layer_maps.stack, layer_maps.interpolate, layer_maps.append):
    assert make(num_layers, num_layers) == whole


@quick
@given(sizes, st.integers(1, 4))
def test_a_whole_factor_copies_every_layer_as_often(num_layers, factor):
  target = num_layers * factor
  stacked = layer_maps.stack(num_layers, target)
  spread = layer_maps.interpolate(num_layers, target)
  assert sorted(stacked) == sorted(spread) == list(spread)
  assert stacked == tuple(range(num_layers)) * factor
  if target > 1:
    kept = factor * (num_layers - 1)
    assert layer_maps.connection_rate(stacked) == kept / (target - 1)


@quick
@given(sizes, st.integers(0, 12))
def test_maps_to_any_depth_keep_every_source(num_layers, more):
  target = num_layers + more
  for make in (layer_maps.stack, layer_maps.interpolate, layer_maps.append):
    layer_map = make(num_layers, target)
    assert len(layer_map) == target
    assert set(layer_map) == set(range(num_layers))
    assert sum(layer_maps.is_new(layer_map)) == more


@quick
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_new_layers_are_those_that_repeat_a_source(layer_map):
  is_new = layer_maps.is_new(layer_map)
  assert len(is_new) == len(layer_map)
  assert sum(is_new) == len(layer_map) - len(set(layer_map))
  old = [layer for layer, flag in zip(layer_map, is_new) if not flag]
  assert len(set(old)) == len(old)
  assert 0 <= layer_maps.connection_rate(layer_map) <= 1


@quick
@given(st.integers(1, 9), st.data())
def test_a_pattern_of_digits_says_what_it_repeats(num_layers, data):
  digits = st.text('123456789'[:num_layers], min_size=1, max_size=4)
  groups = data.draw(
    st.lists(st.tuples(digits, st.integers(1, 3)), min_size=1, max_size=3)
  )
  pattern = '-'.join(f'{text}*{times}' for text, times in groups)
  wanted = ''.join(text * times for text, times in groups)
  found = layer_maps.partial(num_layers, pattern)
  assert found == tuple(int(digit) - 1 for digit in wanted)
