"""`satjax plan` for a model that is to grow: when, from what, and what for."""

from collections.abc import Sequence
import dataclasses
import math

from satjax import console, errors
from satjax.growth import guidelines

# Printed comparisons: parameters, tokens of the run from scratch, speed-up.
_RUNS = (
  (1.1e9, 100e9, 0.491),
  (3e9, 180e9, 0.486),
  (3e9, 240e9, 0.545),
  (7e9, 160e9, 0.408),
  (7e9, 220e9, 0.553),
  (7e9, 280e9, 0.538),
  (7e9, 300e9, 0.546),
)
_LONG_RUNS = ((0.41e9, 400e9, 0.531), (0.41e9, 700e9, 0.310))


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A run that grows once, and what the paper's runs let one expect of it.

  Pairs are (lowest, highest), as the published speed-ups are a range.

  Attributes:
    num_params: parameters of the target model.
    tokens: tokens of training it from scratch.
    factor: growth factor, target parameters over base parameters.
    base_params: parameters of the base model.
    base_tokens: tokens before growth.
    base_flops: FLOPs before growth.
    target_tokens: tokens after growth, to the loss of the run from scratch.
    target_flops: FLOPs after growth.
    scratch_flops: FLOPs from scratch, 6 x parameters x tokens.
    speedup: expected, as Eq. 48 has it: scratch over grown, less 1.
    saving: the same as a share of `scratch_flops`: 1 - 1 / (1 + speedup).
    basis: the published runs that the expectation comes from.
    notes: what to know before relying on it; empty if nothing.
  """

  num_params: float
  tokens: float
  factor: float
  base_params: float
  base_tokens: float
  base_flops: float
  target_tokens: tuple[float, float]
  target_flops: tuple[float, float]
  scratch_flops: float
  speedup: tuple[float, float]
  saving: tuple[float, float]
  basis: str
  notes: tuple[str, ...]


def plan(
  num_params: float | None, tokens: float | None, factor: float | None = None
) -> Schedule:
  """The growth schedule of a model, from its size and its tokens.

  Args:
    num_params: parameters of the target model.
    tokens: tokens of training it from scratch.
    factor: target parameters over base parameters; None: as the paper advises.

  Raises:
    ConfigError: a number that is missing, not finite or too small.
  """
  if num_params is None or tokens is None:
    raise errors.ConfigError(
      'nothing to plan: name --config=FILE for the ladder of a configuration,'
      ' or both --params=N and --tokens=N for the growth of a model'
    )
  if factor is None:
    factor = guidelines.growth_factor()
  return growth_schedule(num_params, tokens, factor)


def growth_schedule(
  num_params: float, tokens: float, factor: float = guidelines.FACTOR
) -> Schedule:
  """What to train before and after growth, and the saving to expect.

  The saving is what printed speed-ups let one expect, not a law. Runs of 1.1B
  to 7B parameters on 23 to 91 tokens for each came to the loss of a run from
  scratch with a speed-up of 40.8% to 55.3%; an over-trained one of 0.41B, on
  976 to 1707 tokens for each, with 31.0% to 53.1%. The second range serves
  for every budget beyond the first. All grew by 4 after 10B tokens, one seed
  each, and were compared before the learning rate had decayed. Outside of
  those sizes and budgets it is an extrapolation, and a note says so.

  FLOPs are 6 for each parameter and token, as in the paper. Embeddings do not
  grow, so that the base of a small model costs more than 1 / factor.

  Args:
    num_params: parameters of the target model.
    tokens: tokens of training it from scratch.
    factor: target parameters over base parameters, at least 2.

  Raises:
    ConfigError: a number that is not finite or too small.
  """
  guidelines.check(num_params=num_params, tokens=tokens)
  if not (math.isfinite(factor) and factor >= 2):
    raise errors.ConfigError(
      f'factor {factor!r}: must be a finite number of at least 2; give 4'
    )
  scratch = 6 * num_params * tokens
  base_tokens, notes = guidelines.timing_and_notes(num_params, scratch, tokens)
  if factor != guidelines.FACTOR:
    notes.append(
      f'factor {factor:g}: timing and speed-ups are published for a factor of'
      f' {guidelines.FACTOR}; a base of one layer came out worse than no growth'
    )
  (low, high), basis, note = _expected(num_params, tokens)
  # Below half of `scratch`, as the base has fewer tokens and half the size at
  # most: something remains for the target whatever the published speed-up.
  base_flops = 6 * num_params / factor * base_tokens
  rest = tuple(scratch / (1 + s) - base_flops for s in (high, low))
  return Schedule(
    num_params=num_params,
    tokens=tokens,
    factor=factor,
    base_params=num_params / factor,
    base_tokens=base_tokens,
    base_flops=base_flops,
    target_tokens=tuple(x / (6 * num_params) for x in rest),
    target_flops=rest,
    scratch_flops=scratch,
    speedup=(low, high),
    saving=tuple(1 - 1 / (1 + s) for s in (low, high)),
    basis=basis,
    notes=(*notes, *note),
  )


def _expected(num_params, tokens):
  """Range of published speed-ups, the runs in words, a note if outside."""
  each = tokens / num_params
  runs = _RUNS
  if each > max(d / n for n, d, _ in _RUNS):
    runs = _LONG_RUNS
  sizes, spans, speedups = zip(*((n, d / n, s) for n, d, s in runs))
  ends = dict.fromkeys(f'{n / 1e9:.3g}B' for n in (min(sizes), max(sizes)))
  basis = (
    f'published runs of {" to ".join(ends)} parameters on {min(spans):.0f} to'
    f' {max(spans):.0f} tokens for each'
  )
  note, is_within = [], min(sizes) <= num_params <= max(sizes)
  if not (is_within and min(spans) <= each <= max(spans)):
    note = [
      f'nothing is published for {num_params / 1e9:.3g}B parameters on'
      f' {each:.3g} tokens for each: the expected saving is extrapolated'
    ]
  return (min(speedups), max(speedups)), basis, note


def render(schedule: Schedule) -> str:
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
