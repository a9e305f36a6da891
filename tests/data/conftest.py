"""Small texts on disk."""

import pytest


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two sources: small letters in `a`, capitals in `b`."""
  root = tmp_path_factory.mktemp('text')
  for name, first in (('a', ord('a')), ('b', ord('A'))):
    (root / name).mkdir()
    for i in range(40):
      letter = chr(first + i % 26)
      (root / name / f'{i:02}.txt').write_text(f'{i:02}{letter}' * (i + 3))
  return root
