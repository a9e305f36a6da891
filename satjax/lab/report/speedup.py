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
  """Eq. 48 of Du et al. (2024) along a run: FLOPs scratch / FLOPs grown - 1.

  Both curves are smoothed alike, and made to fall by their running minimum.
  The loss at a share of the FLOPs from scratch is looked up, and the FLOPs at
  which each curve first came down to it are divided, so that a curve compared
  with itself gives exactly 0, however noisy it is.

  Smoothing: a point becomes the mean loss, at the mean FLOPs, of itself and
  the points up to `window` before it. The window is a share of the FLOPs of
  `scratch` for both curves, as their records may lie apart differently; the
  mean FLOPs keep the curves from lagging.

  Args:
    scratch: (FLOPs, loss) of the run from scratch; FLOPs so far, rising.
    grown: the same of the run that grew, after its last growth; its FLOPs
      include the base model's and, where growth was learned, those of learning.
    at: shares of the FLOPs of `scratch`.
    window: share of the FLOPs of `scratch` to average over; 0: as recorded.

  Returns:
    Speed-ups, float64 [shares]; NaN where `grown` never came down to the loss.
    Where its very first point is below the loss, growth may have been faster
    than is said.

  Raises:
    ValueError: curves too short, of unequal lengths, not finite or not sorted
      by FLOPs; a share or a window out of range.
  """
  shares = np.asarray(at, np.float64)
  fine = shares.ndim == 1 and ((shares > 0) & (shares <= 1)).all()
  if not fine or not 0 <= window < 1:
    raise ValueError(
      f'at {shares.tolist()}, window {window!r}: must be shares of the FLOPs of'
      ' scratch, above 0 and up to 1, and one from 0 to below 1; give some,'
      f' such as {SHARES} and 0.05'
    )
  flops, loss = _curve('scratch', scratch)
  other, other_loss = _curve('grown', grown)
  width, wanted = window * flops[-1], shares * flops[-1]
  flops, loss = _falling(flops, loss, width)
  other, other_loss = _falling(other, other_loss, width)
  levels = np.interp(wanted, flops, loss)
  ratios = [
    _first(flops, loss, level) / _first(other, other_loss, level)
    for level in levels
  ]
  return np.array(ratios) - 1


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


def _curve(name: str, curve: Curve) -> tuple[np.ndarray, np.ndarray]:
  """Checked FLOPs and losses, float64 [points]."""
  try:
    flops, loss = np.asarray(curve, np.float64)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{name}: must be FLOPs and losses, two lists of numbers of one length;'
      ' give a loss for each count of FLOPs'
    ) from error
  if flops.ndim != 1 or len(flops) < 2:
    raise ValueError(
      f'{name}: FLOPs of shape {flops.shape}; give a list of at least 2'
    )
  if not (np.isfinite(flops).all() and np.isfinite(loss).all()):
    raise ValueError(
      f'{name}: has numbers that are not finite; leave those points out'
    )
  if (flops <= 0).any() or (np.diff(flops) < 0).any():
    raise ValueError(
      f'{name}: FLOPs must be above 0 and never fall; give the FLOPs so far,'
      ' sorted, from the first step on'
    )
  return flops, loss
