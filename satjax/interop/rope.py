"""Rotary positions of a `config.json`: base and scaling, in and out."""

from collections.abc import Mapping
import math
from typing import Any

from satjax.errors import brief

_KEYS = {
  'linear': ('factor',),
  'llama3': (
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  ),
}


def _scaling(key: str, rope: Mapping[str, Any], problems: list[str]) -> Any:
  """`ModelConfig.rope_scaling` of a dictionary in config.json."""
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return ()
  if kind not in _KEYS:
    problems.append(
      f"{key}.rope_type = {brief(kind)}; supported: 'default', "
      f'{", ".join(map(repr, _KEYS))}; take a release of the model without it'
    )
    return ()
  values = tuple(rope.get(name) for name in _KEYS[kind])
  for name, value in zip(_KEYS[kind], values):
    if type(value) not in (int, float) or not 0 < value < math.inf:
      problems.append(f'{key}.{name} = {brief(value)}; allowed: above 0')
      return ()
  return (kind, *map(float, values))


def read(
  stored: Mapping[str, Any], problems: list[str]
) -> tuple[Any | None, tuple[Any, ...]]:
  """Base and scaling, which transformers keeps here or there.

  Args:
    stored: `config.json`.
    problems: what is wrong with it is added.

  Returns:
    `rope_theta`, None where it is not given, and `ModelConfig.rope_scaling`.
  """
  thetas, scalings = {}, []
  if 'rope_theta' in stored:
    thetas['rope_theta'] = stored['rope_theta']
  for key in ('rope_parameters', 'rope_scaling'):
    rope = stored.get(key, {})
    if not isinstance(rope, dict):
      problems.append(f'{key} = {brief(rope)}; supported: an object')
      continue
    if 'rope_theta' in rope:
      thetas[f'{key}.rope_theta'] = rope['rope_theta']
    if key in stored:
      scalings.append(_scaling(key, rope, problems))
    if rope.get('partial_rotary_factor', 1.0) != 1.0:
      factor = brief(rope['partial_rotary_factor'])
      problems.append(f'{key}.partial_rotary_factor = {factor}; supported: 1.0')
  values = list(thetas.values())
  if any(value != values[0] for value in values):
    problems.append(f'{brief(thetas)} differ; expected one value')
  if any(scaling != scalings[0] for scaling in scalings):
    problems.append(
      'rope_parameters and rope_scaling differ; expected the same'
    )
  return values[0] if values else None, scalings[0] if scalings else ()


def describe(theta: float, scaling: tuple[Any, ...]) -> dict[str, Any]:
  """The keys of `config.json`, for old and new transformers."""
  kind, *numbers = scaling or ('default',)
  rope = {'rope_type': kind, **dict(zip(_KEYS.get(kind, ()), numbers))}
  old = {'rope_scaling': rope} if scaling else {}
  return {**old, 'rope_parameters': {**rope, 'rope_theta': theta}}
