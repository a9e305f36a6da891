"""How much faster a run that grew comes down to a loss: two curves compared."""

from collections.abc import Sequence

import numpy as np

Curve = tuple[Sequence[float], Sequence[float]]
SHARES = (0.5, 0.75, 1.0)


def speedup_at_equal_loss(
  scratch: Curve,
  grown: Curve,
  at: Sequence[float] = SHARES,
  window: float = 0.05,
) -> np.ndarray:
  """FLOPs scratch / FLOPs grown along a run: 1 + Eq. 48 of Du et al. (2024).

  Both curves are smoothed alike, and made to fall by their running minimum.
  The loss at a share of the FLOPs from scratch is looked up, and the FLOPs at
  which each curve first came down to it are divided, so that a curve compared
  with itself gives exactly 1, however noisy it is.

  Smoothing: a point becomes the mean loss, at the mean FLOPs, of itself and
  the points up to `window` before it. The window is a share of the FLOPs of
  `scratch` for both curves, as their records may lie apart differently; the
  mean FLOPs keep the curves from lagging.

  Args:
    scratch: (FLOPs, loss) of the run from scratch: FLOPs so far, above 0,
      which never fall; both finite.
    grown: the same of the run that grew, after its last growth; its FLOPs
      include the base model's and, where growth was learned, those of learning.
    at: shares of the FLOPs of `scratch`.
    window: share of the FLOPs of `scratch` to average over; 0: as recorded.

  Returns:
    Ratios, float64 [shares]; NaN where `grown` never came down to the loss.
    Where its very first point is below the loss, growth may have been faster
    than is said.
  """
  flops, loss = np.asarray(scratch, np.float64)
  other, other_loss = np.asarray(grown, np.float64)
  assert (np.diff(flops) >= 0).all() and (np.diff(other) >= 0).all()
  width, wanted = window * flops[-1], np.multiply(at, flops[-1])
  flops, loss = _falling(flops, loss, width)
  other, other_loss = _falling(other, other_loss, width)
  ratios = [
    _first(flops, loss, level) / _first(other, other_loss, level)
    for level in np.interp(wanted, flops, loss)
  ]
  return np.array(ratios)


def _falling(flops, loss, width) -> tuple[np.ndarray, np.ndarray]:
  """Trailing means over `width` FLOPs, and of these the lowest so far."""
  stop = np.arange(1, len(flops) + 1)
  start = np.searchsorted(flops, flops - width, side='right')
  start = np.minimum(start, stop - 1)

  def means(values):
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[stop] - total[start]) / (stop - start)

  return (
    np.maximum.accumulate(means(flops)),
    np.minimum.accumulate(loss[0] + means(loss - loss[0])),
  )


def _first(flops, loss, level) -> float:
  """FLOPs at which a falling curve first reaches `level`; NaN: never."""
  if loss[-1] > level:
    return np.nan
  after = int(np.argmax(loss <= level))
  if after == 0:
    return flops[0]
  before = after - 1
  share = (loss[before] - level) / (loss[before] - loss[after])
  return flops[before] + share * (flops[after] - flops[before])
