"""`satjax plan` for a model that is to grow: when, from what, and what for."""

from collections.abc import Sequence

from satjax import console, errors
from satjax.growth import guidelines


def plan(
  num_params: float | None, tokens: float | None, factor: float | None = None
) -> guidelines.Schedule:
  """The growth schedule of a model; see `guidelines.growth_schedule`.

  Raises:
    ConfigError: a number that is missing, not finite or too small.
  """
  if num_params is None or tokens is None:
    raise errors.ConfigError(
      'nothing to plan: name --config=FILE for the ladder of a configuration,'
      ' or both --params=N and --tokens=N for the growth of a model'
    )
  factor = guidelines.FACTOR if factor is None else factor
  return guidelines.growth_schedule(num_params, tokens, factor)


def render(schedule: guidelines.Schedule) -> str:
  """The schedule as a Markdown table, what to expect of it, and warnings."""
  s = schedule
  after, both = s.target_flops, [s.base_flops + x for x in s.target_flops]
  stages = (
    ('before growth', [s.base_params], [s.base_tokens], [s.base_flops]),
    (f'after growth by {s.factor:g}', [s.num_params], s.target_tokens, after),
    ('both', [], [], both),
    ('from scratch', [s.num_params], [s.tokens], [s.scratch_flops]),
  )
  rows = [
    (name, _counts(params), _counts(tokens), _range(of_stage, '.3e'))
    for name, params, tokens, of_stage in stages
  ]
  lines = [
    console.markdown(('stage', 'parameters', 'tokens', 'FLOPs'), rows),
    f'Expected saving: {_range(s.saving, ".1%")} of the FLOPs from scratch, at'
    f' the same loss (a speed-up of {_range(s.speedup, ".1%")}). This is what'
    f' the {s.basis} came to (Du et al., 2024); whether yours does, only a run'
    ' tells.',
    *([''] if s.notes else []),
    *(f'Warning: {note}.' for note in s.notes),
  ]
  return '\n'.join(lines)


def _counts(numbers: Sequence[float]) -> str:
  return ' to '.join(map(_count, numbers))


def _range(values: Sequence[float], form: str) -> str:
  return ' to '.join(format(value, form) for value in values)


def _count(number: float) -> str:
  """A number of parameters or tokens, such as 11.11B."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M')):
    # From where four digits round up to the next unit.
    if number >= 0.99995 * size:
      return f'{number / size:.4g}{unit}'
  return f'{number:.4g}'
