"""How settings and options are declared and checked: types, ranges, messages.

A group is a frozen dataclass whose fields carry a rule and no default; the
options of growth operators are declared alike. Every message names the key,
the value and what is allowed.
"""

import ast
from collections.abc import Callable, Iterable, Mapping
import contextlib
import dataclasses
import difflib
import math
import typing
from typing import Any

from ml_collections.config_flags import tuple_parser

from satjax.errors import brief


class Group:
  """What groups inherit."""

  def problems(self) -> Iterable[str]:
    """What is wrong between the fields, each of which is right by itself."""
    return ()


def rule(
  check: Callable[[Any], bool], allowed: str, *, share: bool = False
) -> Any:
  """A dataclass field without default whose value must pass `check`.

  With `share`, a whole number may be given as a float: a share of the run.
  """
  said = {'check': check, 'allowed': allowed, 'share': share}
  return dataclasses.field(metadata=said | {'word': None, 'axes': ()})


def at_least(minimum: float) -> Any:
  """A number of at least `minimum`."""
  return rule(lambda value: value >= minimum, f'at least {minimum}')


def above(minimum: float) -> Any:
  """A number above `minimum`."""
  return rule(lambda value: value > minimum, f'above {minimum}')


def between(low: float, high: float) -> Any:
  """A number from `low` to below `high`."""
  return rule(lambda v: low <= v < high, f'from {low} to below {high}')


def fraction() -> Any:
  """A share: above 0, up to 1."""
  return rule(lambda v: 0 < v <= 1, 'above 0, up to 1')


def one_of(*values: Any) -> Any:
  """One of these values."""
  return rule(lambda value: value in values, ' | '.join(map(repr, values)))


def steps(minimum: int) -> Any:
  """A number of steps, or a share of the run: what `defaults` makes whole."""
  return rule(
    lambda v: v >= minimum or is_share(v),
    f'at least {minimum}, or a share of the run between 0 and 1',
    share=True,
  )


def or_word(field: Any, word: str) -> Any:
  """What a field holds, or a word for what follows from other settings."""
  said = {**field.metadata, 'word': word}
  said['allowed'] = f'{said["allowed"]}, or {word!r}'
  return dataclasses.field(metadata=said)


def or_auto(field: Any) -> Any:
  """What a field holds, or 'auto': what `defaults` says of it."""
  return or_word(field, 'auto')


def by_axis(field: Any, axes: tuple[str, ...]) -> Any:
  """What a field holds, one for all axes, or by axis: a mapping, or its pairs.

  It is read as pairs in the order of `axes`, for those that it has.
  """
  said = {**field.metadata, 'axes': axes}
  names = ' | '.join(map(repr, axes))
  said['allowed'] = f'{said["allowed"]}; one for all, or by axis: {names}'
  return dataclasses.field(metadata=said)


def pairs(value: Any) -> list[tuple[str, Any]] | None:
  """What is given by axis, each with its name; None: it is one for all."""
  if isinstance(value, Mapping):
    return list(value.items())
  is_pair = (
    isinstance(value, (list, tuple))
    and value
    and all(
      isinstance(x, (list, tuple)) and len(x) == 2 and isinstance(x[0], str)
      for x in value
    )
  )
  return [tuple(pair) for pair in value] if is_pair else None


def is_whole(value: Any) -> bool:
  """An int that is no bool."""
  return isinstance(value, int) and not isinstance(value, bool)


def is_share(value: Any) -> bool:
  """A float between 0 and 1, without these."""
  return isinstance(value, float) and 0 < value < 1


def is_number(value: Any) -> bool:
  """An int or a float that is no bool."""
  return is_whole(value) or isinstance(value, float)


def build(
  group: type,
  path: str,
  values: Any,
  problems: list[str],
  *,
  alone: bool = False,
) -> Any:
  """Builds one group, or appends what is wrong with it to `problems`.

  With `alone`, rules between its fields wait.
  """
  if not isinstance(values, Mapping):
    problems.append(f'{path} = {brief(values)}; allowed: a group of keys')
    return None
  fields = {field.name: field for field in dataclasses.fields(group)}
  found = wrong_keys(path, values, fields)
  built = {}
  for name, field in fields.items():
    if name in values:
      built[name] = read(f'{path}.{name}', field, values[name], found)
  problems += found
  if found:
    return None
  config = group(**built)
  if not alone:
    problems += [f'{path}: {problem}' for problem in config.problems()]
  return config


def read(
  name: str, field: dataclasses.Field, value: Any, problems: list[str]
) -> Any:
  """A value as its field wants it; what is wrong with it goes to `problems`."""
  if isinstance(value, str) and value == field.metadata['word']:
    return value
  if field.metadata['axes'] and (parts := pairs(value)) is not None:
    return _read_by_axis(name, field, parts, problems)
  try:
    value = _coerce(value, field.type)
    odd = _odd_part(value)
  except RecursionError:  # it is deeper than any setting
    odd = value
  if field.metadata['share'] and isinstance(value, float):
    # A ConfigDict keeps 10 as 10.0 where a share stood before.
    value = int(value) if value.is_integer() else value
  has_type = field.metadata['share'] and is_share(value)
  if not has_type and not _has_type(value, field.type):
    kind = type(value).__name__
    problems.append(
      f'{name} = {brief(value)} is a {kind}; allowed: {allowed(field)}'
    )
  elif odd is not None:
    problems.append(
      f'{name} = {brief(value)} holds {brief(odd)}'
      f' ({type(odd).__name__}); a setting is made of strings, of numbers below'
      f' 2**63, and of tuples of these. Allowed: {allowed(field)}'
    )
  elif not field.metadata['check'](value):
    said = field.metadata['allowed']
    problems.append(f'{name} = {brief(value)}; allowed: {said}')
  return value


def _read_by_axis(name, field, parts, problems):
  axes, names = field.metadata['axes'], [axis for axis, _ in parts]
  if not parts:
    problems.append(f'{name} = {{}}; allowed: {allowed(field)}')
  for axis in dict.fromkeys(names):
    if axis not in axes:
      problems.append(unknown_key(name, axis, axes))
    elif names.count(axis) > 1:
      problems.append(f'{name} has {axis!r} twice; keep one of them')
  given = dict(parts)
  return tuple(
    (axis, read(f'{name}.{axis}', _of_one(field), given[axis], problems))
    for axis in axes
    if axis in given
  )


def _of_one(field):
  """The field of a single axis."""
  said = {**field.metadata, 'axes': ()}
  one = dataclasses.field(metadata=said)
  one.name, one.type = field.name, field.type
  return one


def wrong_keys(
  path: str, values: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
  """What to say of keys that are unknown or missing."""
  remedy = 'start from configs/base.py, which holds every key'
  unknown = [
    unknown_key(path, key, known) for key in values if key not in known
  ]
  missing = [key for key in known if key not in values]
  return unknown + [f'{path}.{key} is missing; {remedy}' for key in missing]


def unknown_key(path: str, key: str, known: Mapping[str, Any]) -> str:
  """What to say of a key that is not there: the nearest one, or all."""
  close = difflib.get_close_matches(str(key), known, n=1)
  if close:
    return f'{path}.{key} is not a known key; did you mean {path}.{close[0]}?'
  return f'{path}.{key} is not a known key; allowed: {", ".join(known)}'


def allowed(field: dataclasses.Field) -> str:
  """Type and range of a field, in words."""
  return f'{field.type.__name__}, {field.metadata["allowed"]}'


def parse(field: dataclasses.Field, text: str) -> Any:
  """What somebody typed for a field; text that is no such value stays text."""
  if field.metadata['axes'] and text.lstrip().startswith('{'):
    with contextlib.suppress(ValueError, SyntaxError, TypeError):
      found = ast.literal_eval(text)
      given = ast.parse(text.strip(), mode='eval').body
      if isinstance(found, dict) and len(found) < len(given.keys):
        both = given.keys, given.values
        return tuple(zip(*(map(ast.literal_eval, some) for some in both)))
      # A ConfigDict takes no key with a dot.
      if isinstance(found, dict) and not any('.' in str(key) for key in found):
        return found
  if field.type is str or text == field.metadata['word']:
    return text
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  is_tuple = field.type is tuple
  for read in [tuple_parser.TupleParser().parse] if is_tuple else [int, float]:
    with contextlib.suppress(ValueError):
      return read(text)
  return text


def _coerce(value: Any, wanted: type) -> Any:
  """JSON knows no tuples, and people write 1 for 1.0."""
  if wanted is tuple and isinstance(value, (list, tuple)):
    return _as_tuple(value)
  if wanted is float and is_whole(value) and abs(value) < 2**1000:
    return float(value)
  return value


def _as_tuple(value: Any) -> Any:
  """Hashable: lists are tuples, and a mapping inside of one is its pairs."""
  if isinstance(value, (list, tuple)):
    return tuple(map(_as_tuple, value))
  if isinstance(value, Mapping):
    return tuple((key, _as_tuple(inner)) for key, inner in value.items())
  return value


def _odd_part(value: Any) -> Any:
  """A part that no JSON file holds and no program can be keyed by, or None."""
  if isinstance(value, tuple):
    return next((x for x in map(_odd_part, value) if x is not None), None)
  if isinstance(value, int):
    return None if abs(value) < 2**63 else value
  return None if isinstance(value, str | float | None) else value


def _has_type(value: Any, wanted: type) -> bool:
  if wanted is float:
    return isinstance(value, float) and math.isfinite(value)
  if wanted is int:
    return is_whole(value)
  return isinstance(value, typing.get_origin(wanted) or wanted)
