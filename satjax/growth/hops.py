"""A growth of a run as a user writes it: when, what, for how long; no JAX."""

import dataclasses
from typing import Any

from satjax import errors
from satjax.growth import specs as specs_lib

_HOP = (
  '(at_tokens, operator, target), (at_tokens, ((operator, target), ...)), or'
  " either with options at the end, such as (1000000, 'stack', 2,"
  " {'freeze_tokens': 50000})"
)
# What may train besides new layers while the others are frozen.
TRAINS = {'new': (), 'new+head': ('final_norm', 'unembed')}


@dataclasses.dataclass(frozen=True)
class Hop:
  """One growth, as a user writes it.

  Attributes:
    at_tokens: tokens read before it; 0 grows what the run starts from.
    specs: of `specs`.
    freeze_tokens: for how long after it the old layers stand still.
    trains: what does not, a key of `TRAINS`.
  """

  at_tokens: int
  specs: tuple[Any, ...]
  freeze_tokens: int = 0
  trains: str = 'new+head'


def parse(hop: Any) -> Hop:
  """Reads one entry of `growth.hops`.

  Raises:
    ConfigError: it has another form.
  """
  parts = list(hop) if isinstance(hop, (tuple, list)) else []
  bad = errors.ConfigError(f'{hop!r} is no growth; write {_HOP}')
  if len(parts) < 2 or type(parts[0]) is not int or parts[0] < 0:
    raise bad
  at_tokens, operator, *rest = parts
  if isinstance(operator, str):
    if not rest:
      raise bad
    specs = ((operator, rest.pop(0)),)
  elif isinstance(operator, (tuple, list)) and operator:
    specs = tuple(operator)
  else:
    raise bad
  if len(rest) > 1:
    raise bad
  options = specs_lib.as_mapping(rest[0]) if rest else {}
  if options is None or set(options) - {'freeze_tokens', 'trains'}:
    raise errors.ConfigError(
      f'{rest[0]!r}: the options of a hop are freeze_tokens, a number of'
      f' tokens, and trains, {" | ".join(map(repr, TRAINS))}'
    )
  tokens = options.get('freeze_tokens', 0)
  if type(tokens) is not int or tokens < 0:
    raise errors.ConfigError(
      f'freeze_tokens {tokens!r}; allowed: a whole number of tokens, at least 0'
    )
  if options.get('trains', 'new') not in TRAINS:
    raise errors.ConfigError(
      f'trains {options["trains"]!r}; allowed: {" | ".join(map(repr, TRAINS))}'
    )
  return Hop(at_tokens, specs, **options)
