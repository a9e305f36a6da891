"""Sliding windows of a `config.json`: one for all layers, in and out.

transformers lets a query see the keys `k > q - sliding_window`: itself and the
`sliding_window - 1` tokens before it, as `ModelConfig.sliding_window` counts.
"""

from collections.abc import Mapping
from typing import Any

from satjax.errors import brief

# Of an absent key, the value that transformers assumes; null means no window.
_ABSENT = {'mistral': 4096, 'qwen2': 4096, 'qwen3': 4096}
_FIRST_LAYER = 28
_SWITCHED = ('qwen2', 'qwen3')  # by use_sliding_window, from a layer on
_FULL, _SLIDING = 'full_attention', 'sliding_attention'


def read(stored: Mapping[str, Any], family: str, problems: list[str]) -> int:
  """`ModelConfig.sliding_window`, where all layers have the same one.

  Args:
    stored: `config.json`, nulls included.
    family: its model_type.
    problems: what is wrong with it is added.
  """
  window = stored.get('sliding_window', _ABSENT.get(family))
  if family in _SWITCHED and not stored.get('use_sliding_window'):
    window = None
  if window is not None and (type(window) is not int or window < 1):
    problems.append(
      f'sliding_window = {brief(window)}; allowed: null, or at least 1'
    )
    return 0
  if window and family == 'llama':
    longest = stored.get('max_position_embeddings')
    if type(longest) is not int or window < longest:
      problems.append(
        f'sliding_window = {window}; supported: null, or no less than'
        f' max_position_embeddings ({brief(longest)}); a llama has no window,'
        ' and with one it is a mistral'
      )
    window = None
  kinds = stored.get('layer_types')
  if window and family in _SWITCHED and kinds is None:
    return window if _slides(stored, problems) else 0
  if kinds is None:
    return window or 0
  allowed = [_SLIDING] if window else [_FULL]
  if family in _SWITCHED and window:
    allowed.append(_FULL)
  for kind in allowed:
    if isinstance(kinds, list) and all(k == kind for k in kinds):
      return window if kind == _SLIDING else 0
  problems.append(
    f'layer_types = {brief(kinds)}; supported:'
    f' {" or ".join(map(repr, allowed))} in all layers, where sliding_window ='
    f' {"null" if window is None else window}'
  )
  return 0


def _slides(stored: Mapping[str, Any], problems: list[str]) -> bool:
  """Whether layers have the window, which begins at one of them."""
  first = stored.get('max_window_layers', _FIRST_LAYER)
  count = stored.get('num_hidden_layers')
  if type(first) is int and type(count) is int:
    if first <= 0:
      return True
    if first >= count:
      return False
  problems.append(
    f'max_window_layers = {brief(first)} of {brief(count)} layers; supported:'
    ' 0, a window in all layers, or a window in none'
  )
  return False


def describe(window: int, family: str, num_layers: int) -> dict[str, Any]:
  """The keys of `config.json`, for old and new transformers."""
  if family not in _SWITCHED:
    return {'sliding_window': window} if window else {}
  return {
    'use_sliding_window': bool(window),
    'sliding_window': window or None,
    'max_window_layers': 0 if window else num_layers,
  }
