"""When to grow, by how much, and what to expect of it (Du et al., 2024).

The equations are those of "Stacking Your Transformers" (arXiv 2405.15319),
fitted to single runs of 0.41B to 3B parameters. Bad numbers raise ConfigError,
which is a ValueError.
"""

import dataclasses
import math
import warnings

from satjax import errors

FACTOR = 4  # the best lie between 2 and 4
FITTED_PARAMS = (0.41e9, 3e9)
FITTED_FLOPS = (0.8e20, 12e20)
SHARE = 0.1  # of the target's tokens, where Eq. 2 asks for all of them

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
_SUCH_AS = {'params': '7e9', 'tokens': '2e12', 'flops': '8.4e22', 'stages': '4'}


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


def growth_timing(
  num_params: float, flops: float, target_tokens: float | None = None
) -> float:
  """Tokens on which to train the base model before growth, for a factor of 4.

  Eq. 2 of Du et al. (2024), log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74.
  Where it asks for `target_tokens` or more, a tenth of these is returned. That,
  and a place outside of the fitted range, is a UserWarning.

  Args:
    num_params: parameters of the target model (N). The paper's text leaves out
      the embeddings, its table of results takes the nominal size.
    flops: FLOPs of training the target (C), 6 x parameters x tokens; those of
      the base model are not part of them.
    target_tokens: tokens of training the target; None: flops / (6 N).

  Returns:
    Tokens (d), always fewer than `target_tokens`.

  Raises:
    ConfigError: a number that is not finite or not above 0.
  """
  tokens, notes = _timing(num_params, flops, target_tokens)
  for note in notes:
    warnings.warn(note, stacklevel=2)
  return tokens


def growth_factor(
  num_params: float | None = None, flops: float | None = None
) -> int:
  """The factor to grow by: 4, whatever the size and the budget.

  Du et al. (2024) find the best between 2 and 4 at 1.1B and 3B parameters;
  `fitted_growth_factor` is their attempt at more.

  Args:
    num_params: parameters of the target model; makes no difference.
    flops: FLOPs of training the target; make no difference.
  """
  del num_params, flops
  return FACTOR


def fitted_growth_factor(num_params: float, flops: float) -> float:
  """The preliminary fit of the factor, which its authors call mediocre.

  Eq. 50 of Du et al. (2024), log10 g = 1.01 log10 N - 29.88 / log10 C - 7.36:
  2.2 for 1.1B on 100B tokens, but 19 for 7B on 2T. Nothing here uses it.

  Args:
    num_params: parameters of the target model (N).
    flops: FLOPs of training the target (C), above 1.

  Raises:
    ConfigError: a number that is not finite or too small.
  """
  _check(num_params=num_params)
  _check(1, flops=flops)
  exponent = 1.01 * math.log10(num_params) - 29.88 / math.log10(flops) - 7.36
  return 10**exponent


def growth_schedule(
  num_params: float, tokens: float, factor: float = FACTOR
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
  _check(num_params=num_params, tokens=tokens)
  if not (math.isfinite(factor) and factor >= 2):
    raise errors.ConfigError(
      f'factor {factor!r}: must be a finite number of at least 2; give 4'
    )
  scratch = 6 * num_params * tokens
  base_tokens, notes = _timing(num_params, scratch, tokens)
  if factor != FACTOR:
    notes.append(
      f'factor {factor:g}: timing and speed-ups are published for a factor of'
      f' {FACTOR}; a base of one layer came out worse than no growth'
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


def midas_stages(
  num_tokens: int, num_stages: int, alpha: float
) -> tuple[int, ...]:
  """Tokens of every stage of gradual growth: Prop-alpha of MIDAS.

  Stage i of k takes i^alpha / sum_j j^alpha of all tokens (Saunshi et al.,
  2024, arXiv 2409.19044), rounded so that the lengths add up exactly and never
  shrink. A stage can have none where there are few tokens.

  Args:
    num_tokens: tokens of all stages together.
    num_stages: how many stages, the last of them at full depth.
    alpha: 0: equal lengths; 1 and 2: later, deeper stages are longer.

  Raises:
    ConfigError: a number that is not whole, not finite or too small.
  """
  _check(whole=True, num_tokens=num_tokens, num_stages=num_stages)
  if not (math.isfinite(alpha) and alpha >= 0):
    raise errors.ConfigError(
      f'alpha {alpha!r}: must be a finite number of at least 0; give 1 or 2'
    )
  total, stages = int(num_tokens), range(1, int(num_stages) + 1)
  # Whole weights, so that every division below is exact.
  weights = [round(2**53 * (i / len(stages)) ** alpha) for i in stages]
  parts = [divmod(total * weight, sum(weights)) for weight in weights]
  missing = total - sum(whole for whole, _ in parts)
  by_rest = sorted(range(len(parts)), key=lambda i: (parts[i][1], i))
  extra = set(by_rest[len(parts) - missing :])
  return tuple(whole + (i in extra) for i, (whole, _) in enumerate(parts))


def speedup(flops_scratch: float, flops_grown: float) -> float:
  """Eq. 48 of Du et al. (2024): FLOPs from scratch over grown, less 1.

  Args:
    flops_scratch: FLOPs of the run from scratch up to some loss.
    flops_grown: the same of the run that grew, base model included.

  Returns:
    0.5 where scratch needs half as much again; below 0 where growth lost.

  Raises:
    ConfigError: a number that is not finite or not above 0.
  """
  _check(flops_scratch=flops_scratch, flops_grown=flops_grown)
  return flops_scratch / flops_grown - 1


def _timing(num_params, flops, target_tokens) -> tuple[float, list[str]]:
  """Tokens before growth, and what to know of them."""
  _check(num_params=num_params, flops=flops)
  if target_tokens is None:
    target_tokens = flops / (6 * num_params)
  _check(target_tokens=target_tokens)
  notes = [
    f'{name} {value:.3g} is outside of {low:.3g} to {high:.3g}, to which Eq. 2'
    ' of Du et al. (2024) was fitted: the tokens before growth are extrapolated'
    for name, value, (low, high) in (
      ('num_params', num_params, FITTED_PARAMS),
      ('flops', flops, FITTED_FLOPS),
    )
    if not low <= value <= high
  ]
  tokens = math.inf
  if flops > 1:
    fit = 0.88 * math.log10(num_params) + 163.27 / math.log10(flops) - 5.74
    tokens = 10 ** min(fit, 300.0)
  if tokens >= target_tokens:
    notes.append(
      f'Eq. 2 gives {tokens:.3g} tokens before growth, and the target has'
      f' {target_tokens:.3g} in all: {SHARE:.0%} of these are taken instead'
    )
    tokens = SHARE * target_tokens
  return tokens, notes


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


def _check(above=0, whole=False, **values) -> None:
  for name, value in values.items():
    if not math.isfinite(value) or value <= above or (whole and value % 1):
      kind = 'whole' if whole else 'finite'
      example = next(x for part, x in _SUCH_AS.items() if part in name)
      raise errors.ConfigError(
        f'{name} {value!r}: must be a {kind} number above {above}, such as'
        f' {example}'
      )
