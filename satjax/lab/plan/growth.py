"""`satjax plan` for a model that is to grow: when, from what, and what for."""

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
  whole = tuple(s.base_flops + x for x in s.target_flops)
  target, tokens = (
    _count(s.num_params),
    ' to '.join(map(_count, s.target_tokens)),
  )
  rows = [
    (
      'before growth',
      _count(s.base_params),
      _count(s.base_tokens),
      f'{s.base_flops:.3e}',
    ),
    (
      f'after growth by {s.factor:g}',
      target,
      tokens,
      _range(s.target_flops, '.3e'),
    ),
    ('both', '', '', _range(whole, '.3e')),
    ('from scratch', target, _count(s.tokens), f'{s.scratch_flops:.3e}'),
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


def _range(values: tuple[float, float], form: str) -> str:
  return ' to '.join(format(value, form) for value in values)


def _count(number: float) -> str:
  """A number of parameters or tokens, such as 11.11B."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M')):
    # From where four digits round up to the next unit.
    if number >= 0.99995 * size:
      return f'{number / size:.4g}{unit}'
  return f'{number:.4g}'
