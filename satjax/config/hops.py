"""A growth of a run as a user writes it: when, what, for how long; no JAX."""

import dataclasses
from typing import Any

from satjax import errors
from satjax.config import schema
from satjax.config import specs as specs_lib

_FORMS = (
  '(at_tokens, operator, target), (at_tokens, ((operator, target), ...)), or'
  " either with options at the end, such as (1000000, 'stack', 2,"
  " {'freeze_tokens': 50000})"
)
# What may train besides new layers while the others are frozen.
TRAINS = {'new': (), 'new+head': ('final_norm', 'unembed')}
_OPTIONS = {'freeze_tokens': 0, 'trains': 'new+head'}


@dataclasses.dataclass(frozen=True)
class Hop(schema.Group):
  """One growth.

  Attributes:
    at_tokens: tokens read before it; 0 grows what the run starts from.
    specs: of `specs`.
    freeze_tokens: for how long after it the old layers stand still.
    trains: what does not, a key of `TRAINS`.
  """

  at_tokens: int = schema.at_least(0)
  specs: tuple = schema.rule(bool, 'one operator or more')
  freeze_tokens: int = schema.at_least(0)
  trains: str = schema.one_of(*TRAINS)


def parse(hop: Any) -> Hop:
  """Reads one entry of `growth.hops`.

  Raises:
    ConfigError: it has another form.
  """
  match hop:
    case [at_tokens, str(operator), target, *rest]:
      specs = ((operator, target),)
    case [at_tokens, [*specs], *rest]:
      pass
    case _:
      at_tokens, specs, rest = None, (), ()
  is_time = schema.is_whole(at_tokens) and at_tokens >= 0
  if not specs or not is_time or len(rest) > 1:
    raise errors.ConfigError(f'{hop!r} is no growth; write {_FORMS}')
  options = specs_lib.as_mapping(rest[0]) if rest else {}
  if options is None or options.keys() - _OPTIONS.keys():
    raise errors.ConfigError(
      f'{rest[0]!r}: the options of a hop are {" and ".join(_OPTIONS)}'
    )
  values = {'at_tokens': at_tokens, 'specs': specs, **_OPTIONS, **options}
  problems = []
  found = schema.build(Hop, 'hop', values, problems)
  if problems:
    raise errors.ConfigError('; '.join(problems))
  return found
