"""`satjax plan` for a model that is to grow: when, from what, and what for."""

import dataclasses
import json
import math
import pathlib

from satjax import console, errors
from satjax.growth import guidelines

# Advice of papers, and what `claim` came to in our experiments `tested_by`.
PUBLISHED = pathlib.Path(__file__).with_name('published.json')
# Printed comparisons: parameters, tokens of the run from scratch, speed-up: the
# FLOPs of that over those of the run that grew (the paper prints it less 1).
_RUNS = (
  (1.1e9, 100e9, 1.491),
  (3e9, 180e9, 1.486),
  (3e9, 240e9, 1.545),
  (7e9, 160e9, 1.408),
  (7e9, 220e9, 1.553),
  (7e9, 280e9, 1.538),
  (7e9, 300e9, 1.546),
)
_LONG_RUNS = ((0.41e9, 400e9, 1.531), (0.41e9, 700e9, 1.310))


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A run that grows once, and what the paper's runs let one expect of it."""

  num_params: float  # parameters of the target model
  tokens: float  # tokens of training it from scratch
  factor: float  # growth factor, target parameters over base parameters
  base_tokens: float  # tokens before growth
  # FLOPs from scratch over FLOPs with growth, at the same loss: the lowest
  # and the highest that was published.
  speedup: tuple[float, float]
  basis: str  # the published runs that the expectation comes from
  notes: tuple[str, ...]  # what to know before relying on it; empty if nothing

  @property
  def scratch_flops(self) -> float:
    return 6 * self.num_params * self.tokens

  @property
  def base_flops(self) -> float:
    """FLOPs before growth."""
    return 6 * self.num_params / self.factor * self.base_tokens

  @property
  def target_flops(self) -> tuple[float, float]:
    """FLOPs after growth, lowest and highest, to the loss from scratch."""
    low, high = (self.scratch_flops / s - self.base_flops for s in self.speedup)
    return high, low


def plan(
  num_params: float | None, tokens: float | None, factor: float | None = None
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

  Numbers are those of `Schedule`; `factor` None: as the paper advises.

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
  guidelines.check(num_params=num_params, tokens=tokens)
  if not (math.isfinite(factor) and factor >= 2):
    raise errors.ConfigError(
      f'factor {factor!r}: must be a finite number of at least 2; give 4'
    )
  flops = 6 * num_params * tokens
  base_tokens, notes = guidelines.timing_and_notes(num_params, flops, tokens)
  if factor != guidelines.FACTOR:
    notes.append(
      f'factor {factor:g}: timing and speed-ups are published for a factor of'
      f' {guidelines.FACTOR}; there a base of one layer was worse than none'
    )
  speedups, basis, note = _expected(num_params, tokens)
  # The base takes below half of the FLOPs from scratch, as it has fewer tokens
  # and half the size at most: something remains for the target.
  return Schedule(
    num_params, tokens, factor, base_tokens, speedups, basis, (*notes, *note)
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


def render(s: Schedule) -> str:
  """The schedule as Markdown, what papers advise for it, and warnings."""
  after, low_high = s.target_flops, '{:.3e} to {:.3e}'.format
  target_tokens = (_count(x / (6 * s.num_params)) for x in after)
  size, small = _count(s.num_params), _count(s.num_params / s.factor)
  rows = (
    ('before growth', small, _count(s.base_tokens), f'{s.base_flops:.3e}'),
    (
      f'after growth by {s.factor:g}',
      *(size, ' to '.join(target_tokens), low_high(*after)),
    ),
    ('both', '', '', low_high(*(s.base_flops + x for x in after))),
    ('from scratch', size, _count(s.tokens), f'{s.scratch_flops:.3e}'),
  )
  shares = '{:.1%} to {:.1%}'.format
  saving = shares(*(1 - 1 / x for x in s.speedup))
  gain = shares(*(x - 1 for x in s.speedup))
  budget = {
    'tokens': _count(s.base_tokens),
    'most': _count(0.8 * s.tokens),
    'each': f'{s.tokens / s.num_params:.3g}',
  }
  published = [
    f'* {p["source"]}: {p["advice"].format(**budget)}. Shown for'
    f' {p["shown_for"]}. In our runs: {p["claim"]}: {p["verdict"]}'
    f' ({p["tested_by"]}).'
    for p in json.loads(PUBLISHED.read_text())
  ]
  lines = [
    console.markdown(('stage', 'parameters', 'tokens', 'FLOPs'), rows),
    f'Expected saving: {saving} of the FLOPs from scratch, at the same loss (a'
    f' speed-up of {gain}). This is what the {s.basis} came to (Du et al.,'
    ' 2024); whether yours does, only a run tells.',
    '',
    'What is published on growth in depth:',
    '',
    *published,
    '',
    *(f'Warning: {note}.' for note in s.notes),
  ]
  return '\n'.join(lines)


def _count(number: float) -> str:
  """A number of parameters or tokens, such as 11.11B."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M')):
    # From where four digits round up to the next unit.
    if number >= 0.99995 * size:
      return f'{number / size:.4g}{unit}'
  return f'{number:.4g}'
