"""Being asked to stop: finish the step, save, and leave."""

from collections.abc import Iterator
import contextlib
import signal


@contextlib.contextmanager
def stop_signals() -> Iterator[dict[str, bool]]:
  """SIGTERM or SIGINT asks to stop after the step; a second ends at once."""
  stop = {'asked': False}
  old = {}

  def ask(number, frame):
    del frame
    stop['asked'] = True
    signal.signal(number, old[number])

  for number in (signal.SIGTERM, signal.SIGINT):
    with contextlib.suppress(ValueError):  # Not in the main thread.
      old[number] = signal.signal(number, ask)
  try:
    yield stop
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
