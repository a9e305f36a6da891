"""`satjax plan` for a model that is to grow: when, from what, and what for."""

import json
import math
import pathlib
from typing import NamedTuple

from satjax import console, errors
from satjax.growth import guidelines

# Advice of papers, and what `claim` came to in our experiments `tested_by`.
PUBLISHED = pathlib.Path(__file__).with_name('published.json')


class Advice(NamedTuple):
  """What Eq. 2 says of a run that grows once, and what to know of it."""

  num_params: float  # parameters of the target model
  tokens: float  # tokens of training it from scratch
  factor: float  # target parameters over base parameters
  base_tokens: float  # tokens before growth
  notes: tuple[str, ...]  # what to know before relying on it


def plan(
  num_params: float | None, tokens: float | None, factor: float | None = None
) -> Advice:
  """What to train before growth, by Du et al. (2024); `factor` None: theirs.

  Raises:
    ConfigError: a number that is missing, not finite or too small.
  """
  if num_params is None or tokens is None:
    raise errors.ConfigError(
      'nothing to plan: name --config=FILE for the ladder of a configuration,'
      ' or both --params=N and --tokens=N for the growth of a model'
    )
  factor = guidelines.growth_factor() if factor is None else factor
  guidelines.check(num_params=num_params, tokens=tokens)
  if not (math.isfinite(factor) and factor >= 2):
    raise errors.ConfigError(
      f'factor {factor!r}: must be a finite number of at least 2; give 4'
    )
  flops = 6 * num_params * tokens
  base_tokens, notes = guidelines.timing_and_notes(num_params, flops, tokens)
  if factor != guidelines.FACTOR:
    notes.append(
      f'factor {factor:g}: the timing is published for a factor of'
      f' {guidelines.FACTOR}; there a base of one layer was worse than none'
    )
  return Advice(num_params, tokens, factor, base_tokens, tuple(notes))


def render(advice: Advice) -> str:
  """As Markdown, with what papers advise and how it went in our runs."""
  num_params, tokens, factor, base_tokens, _ = advice
  size, small = _count(num_params), _count(num_params / factor)
  rows = (
    ('before growth', small, _count(base_tokens)),
    ('from scratch', size, _count(tokens)),
  )
  budget = {
    'tokens': _count(base_tokens),
    'most': _count(0.8 * tokens),
    'each': f'{tokens / num_params:.3g}',
  }
  lines = [
    console.markdown(('stage', 'parameters', 'tokens'), rows),
    'What is published on growth in depth, and how it went in our runs, of 0.15'
    ' to 1 million parameters on one text. Best there: stack half of the layers'
    ' by 2 after 40 % of the tokens (configs/growth.py:stack_up).',
    '',
    *(
      f'* {p["source"]}: {p["advice"].format(**budget)}. Shown for'
      f' {p["shown_for"]}. In our runs: {p["claim"]}: {p["verdict"]}'
      f' ({p["tested_by"]}).'
      for p in json.loads(PUBLISHED.read_text())
    ),
    '',
    *(f'Warning: {note}.' for note in advice.notes),
  ]
  return '\n'.join(lines)


def _count(number: float) -> str:
  """A number of parameters or tokens, such as 11.11B."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M')):
    # From where four digits round up to the next unit.
    if number >= 0.99995 * size:
      return f'{number / size:.4g}{unit}'
  return f'{number:.4g}'
