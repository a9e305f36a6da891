"""Long texts in pieces."""

from collections.abc import Iterable, Iterator

_MARKS = ('\n\n', '\n \n', '\n', ' ', '')  # '' is found at the end


def cut(blocks: Iterable[str], uncut: int, piece: int) -> Iterator[str]:
  """Cuts a long text where it hurts least; nothing is lost or added.

  Args:
    blocks: the text, in parts of any length.
    uncut: characters of a text that stays whole.
    piece: characters of a piece of a longer one, at most; not above `uncut`.
  """
  text, is_long = '', False
  for block in blocks:
    text += block
    is_long = is_long or len(text) > uncut
    start = 0
    while is_long and len(text) - start > piece:
      window = text[start : start + piece]
      mark = next(mark for mark in _MARKS if mark in window)
      size = window.rfind(mark) + len(mark)
      yield window[:size]
      start += size
    text = text[start:]
  if text:
    yield text
