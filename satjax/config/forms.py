"""Forms: what a nested value of JSON types looks like.

A form is a type, where list and dict stand for all sequences and mappings; a
tuple of words, one of which the value is; (form, None) of what may be null;
[form] of a list; {str: form} of an object with any keys; or an object of forms
by key, where ? marks one that may be absent.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from satjax import errors
from satjax.config import schema


def misfits(value: Any, form: Any, where: str) -> Iterator[str]:
  """Where a value does not have the form; only the first may be asked for."""
  if isinstance(form, tuple) and form[-1] is None:
    if value is None:
      return
    form = form[0]
  if isinstance(form, tuple):
    fine, wanted = value in form, ' | '.join(map(repr, form))
  else:
    kind = form if isinstance(form, type) else type(form)
    usual = kind.__name__, lambda value: isinstance(value, kind)
    wanted, is_kind = _KINDS.get(kind, usual)
    fine = is_kind(value)
  if not fine:
    yield f'{where} is {errors.brief(value)}, not {wanted}'
  if isinstance(form, list):
    for number, inner in enumerate(value):
      yield from misfits(inner, form[0], f'{where}.{number}')
  elif isinstance(form, dict):
    for key, inside in form.items():
      for name in value if key is str else [key.removesuffix('?')]:
        path = f'{where}.{name}' if where else name
        if name in value:
          yield from misfits(value[name], inside, path)
        elif not key.endswith('?'):
          yield f'{path} is missing'


_KINDS = {
  str: ('a text', lambda value: isinstance(value, str)),
  float: ('a number', schema.is_number),
  int: ('a whole number', schema.is_whole),
  bool: ('true or false', lambda value: isinstance(value, bool)),
  list: ('a list', lambda value: isinstance(value, list | tuple)),
  dict: ('an object', lambda value: isinstance(value, Mapping)),
}
