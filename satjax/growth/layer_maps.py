"""Which layer each layer of a deeper model comes from; plain tuples, no JAX.

A map holds the source of every target layer, from the first layer on. Where a
source occurs again, the later occurrence is the new layer.
"""

from collections.abc import Iterator, Sequence
import re

from satjax import errors

LayerMap = tuple[int, ...]


def stack(num_layers: int, target: int) -> LayerMap:
  """The whole stack again and again (G_stack): `i % l`."""
  return tuple(i % num_layers for i in range(target))


def interpolate(num_layers: int, target: int) -> LayerMap:
  """Every layer repeated in its place: `floor(i l / L)`."""
  return tuple(i * num_layers // target for i in range(target))


def append(num_layers: int, target: int) -> LayerMap:
  """New layers on top; the last layer stands for each."""
  return tuple(min(i, num_layers - 1) for i in range(target))


def partial(num_layers: int, pattern: str) -> LayerMap:
  """Part of the stack repeated: '12-345*7-6', layers counted from 1.

  Groups are joined by '-', and '*7' repeats one (Du et al., 2024, appendix
  H.3). Up to 9 layers a digit is a layer; beyond, numbers have commas and
  ranges: '1..8-9,10*3-11'.

  Raises:
    ConfigError: another notation, or a layer that is not there.
  """
  found = []
  for group in pattern.split('-'):
    match = re.fullmatch(r'([\d.,]+)(?:\*([1-9]\d{0,3}))?', group)
    layers = list(_layers(match[1], num_layers > 9)) if match else []
    if not layers or not all(1 <= n <= num_layers for n in layers):
      raise errors.ConfigError(
        f'pattern {pattern!r}: {group!r} is no group of layers 1 to'
        f" {num_layers}; write '12-345*7-6', and '1..9,10*2' beyond 9 layers"
      )
    found += [n - 1 for n in layers] * int(match[2] or 1)
  return tuple(found)


def _layers(text: str, has_numbers: bool) -> Iterator[int]:
  """Layers of a group, from 1; a 0 stands for what cannot be read."""
  if not has_numbers:
    yield from (int(digit) if digit.isdigit() else 0 for digit in text)
    return
  for part in text.split(','):
    match = re.fullmatch(r'(\d{1,5})(?:\.\.(\d{1,5}))?', part)
    first, last = (match[1], match[2] or match[1]) if match else (0, 0)
    yield from range(int(first), int(last) + 1) or (0,)


def given(num_layers: int, layer_map: Sequence[int]) -> LayerMap:
  """Any sources."""
  _check(
    max(layer_map) < num_layers,
    f'layer_map {tuple(layer_map)} names layer {max(layer_map)}; the model has'
    f' layers 0 to {num_layers - 1}',
  )
  return tuple(layer_map)


def gradual(num_layers: int, layers: int) -> LayerMap:
  """A copy of the last `layers` layers on top (Reddi et al., 2023)."""
  _check(
    1 <= layers <= num_layers,
    f'layers {layers} of gradual stacking are copied from the end of'
    f' {num_layers}; use 1 to {num_layers}',
  )
  whole = tuple(range(num_layers))
  return whole + whole[num_layers - layers :]


def midas(num_layers: int, layers: int) -> LayerMap:
  """A copy of the middle block of `layers` layers, right after it.

  Of n blocks, block ceil(n / 2), counted from 1 (Saunshi et al., 2024).
  """
  _check_cut(num_layers, layers, f'layers {layers} of MIDAS cut')
  whole = tuple(range(num_layers))
  end = -(-(num_layers // layers) // 2) * layers
  return whole[:end] + whole[end - layers :]


def solar(num_layers: int, drop: int) -> LayerMap:
  """Two copies, the first without its end, the second without its beginning.

  32 layers with `drop` 8 become 48 (Kim et al., 2023).
  """
  _check(
    0 <= 2 * drop < num_layers,
    f'drop {drop} of SOLAR leaves 2 ({num_layers} - {drop}) layers, no more'
    f' than before; use 0 to {(num_layers - 1) // 2}',
  )
  whole = tuple(range(num_layers))
  return whole[: num_layers - drop] + whole[drop:]


def llama_pro(num_layers: int, group: int) -> LayerMap:
  """After every `group` layers a copy of the last one (Wu et al., 2024).

  The copies are identity blocks: zero what they write.
  """
  _check_cut(num_layers, group, f'group {group} of LLaMA-Pro cuts')
  copied = range(group - 1, num_layers, group)
  return tuple(sorted([*range(num_layers), *copied]))


def is_new(layer_map: Sequence[int]) -> tuple[bool, ...]:
  """Which target layers repeat a source that came before."""
  first = {source: place for place, source in reversed([*enumerate(layer_map)])}
  return tuple(place != first[s] for place, s in enumerate(layer_map))


def connection_rate(layer_map: Sequence[int]) -> float:
  """R_c: the share of neighbours that were neighbours in the source.

  Du et al. (2024), Eq. 51; 1 for a single layer.
  """
  pairs = list(zip(layer_map, layer_map[1:]))
  kept = sum(above == below + 1 for below, above in pairs)
  return kept / len(pairs) if pairs else 1.0


def _check_cut(num_layers: int, size: int, what: str) -> None:
  _check(
    size > 0 and num_layers % size == 0,
    f'{what} {num_layers} layers into parts as long; use a divisor',
  )


def _check(good: bool, message: str) -> None:
  if not good:
    raise errors.ConfigError(message)
