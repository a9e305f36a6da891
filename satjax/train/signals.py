"""Being asked to stop: finish the step, save, and leave."""

from collections.abc import Iterator
import contextlib
import signal

import jax


@contextlib.contextmanager
def stop_signals() -> Iterator[dict[str, bool]]:
  """SIGTERM or SIGINT asks to stop after the step; a second ends at once.

  With several processes JAX listens for SIGTERM, so that all stop after the
  same step (`distributed.is_time_to_stop`); SIGINT is passed on as one.
  """
  stop = {'asked': False}
  old = {}
  several = jax.process_count() > 1

  def ask(number, frame):
    del frame
    stop['asked'] = True
    signal.signal(number, old[number])
    if several:
      signal.raise_signal(signal.SIGTERM)

  for number in (
    (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
  ):
    with contextlib.suppress(ValueError):  # Not in the main thread.
      old[number] = signal.signal(number, ask)
  try:
    yield stop
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
