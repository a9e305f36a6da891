"""When to grow, by how much, and what to expect of it (Du et al., 2024).

The equations are those of "Stacking Your Transformers" (arXiv 2405.15319),
fitted to single runs of 0.41B to 3B parameters. Bad numbers raise ConfigError,
which is a ValueError.
"""

import math
import warnings

from satjax import errors

FACTOR = 4  # the best lie between 2 and 4
FITTED_PARAMS = (0.41e9, 3e9)
FITTED_FLOPS = (0.8e20, 12e20)
SHARE = 0.1  # of the target's tokens, where Eq. 2 asks for all of them

_SUCH_AS = {'params': '7e9', 'tokens': '2e12', 'flops': '8.4e22'}


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
  tokens, notes = timing_and_notes(num_params, flops, target_tokens)
  for note in notes:
    warnings.warn(note, stacklevel=2)
  return tokens


def growth_factor() -> int:
  """The factor to grow by, whatever the size and the budget.

  Du et al. (2024) find the best between 2 and 4 at 1.1B and 3B parameters.
  Their fit to more (Eq. 50), which they call mediocre, gives 19 for 7B on 2T
  tokens, where nobody has tried it.
  """
  return FACTOR


def speedup(flops_scratch: float, flops_grown: float) -> float:
  """Eq. 48 of Du et al. (2024): FLOPs from scratch over grown, less 1.

  Both up to the same loss, those of the base model included: 0.5 where scratch
  needs half as much again, below 0 where growth lost.

  Raises:
    ConfigError: a number that is not finite or not above 0.
  """
  check(flops_scratch=flops_scratch, flops_grown=flops_grown)
  return flops_scratch / flops_grown - 1


def timing_and_notes(
  num_params: float, flops: float, target_tokens: float | None = None
) -> tuple[float, list[str]]:
  """`growth_timing`, and what to know before relying on it."""
  check(num_params=num_params, flops=flops)
  if target_tokens is None:
    target_tokens = flops / (6 * num_params)
  check(target_tokens=target_tokens)
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


def check(**values: float) -> None:
  """Refuses numbers that are not finite or not above 0."""
  for name, value in values.items():
    if not math.isfinite(value) or value <= 0:
      example = next(x for part, x in _SUCH_AS.items() if part in name)
      raise errors.ConfigError(
        f'{name} {value!r}: must be a finite number above 0, such as {example}'
      )
