"""Keys of documents: one that shares a key with another one is a duplicate.

exact  the same words; white space does not count.
near   most of the same runs of five words, whatever their case: MinHash
       (Broder, 1997) in bands (Leskovec et al., Mining of Massive Datasets,
       3.4). Of pairs whose runs agree to 0.8 (Jaccard) 2 of 5 are found, at 0.9
       9 of 10.
"""

from collections.abc import Callable
import hashlib
import zlib

import numpy as np

from satjax import errors
from satjax.data.documents import Document

Keys = Callable[[Document], list[bytes]]
RULES = ('keep', 'exact', 'near')
_RUN = 5  # words
_THRESHOLD = 0.8
_NUM_HASHES = 128
_RUNS_AT_A_TIME = 4096  # times `_NUM_HASHES` numbers of 4 bytes
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def finder(rule: str) -> Keys | None:
  """What gives the keys of a document; None: all are kept.

  Raises:
    ConfigError: the library that it needs is missing.
  """
  return {'keep': lambda: None, 'exact': lambda: _exact, 'near': _near}[rule]()


def _exact(document: Document) -> list[bytes]:
  return [_hash(' '.join(_words(document)))]


def _near() -> Keys:
  try:
    import datasketch
  except ImportError:
    raise errors.ConfigError(
      '--duplicates=near needs the library datasketch, which is not installed;'
      " run: pip install -e '.[data]'"
    ) from None
  # Runs are hashed before, much faster than one by one.
  empty = datasketch.MinHash(_NUM_HASHES, hashfunc=lambda number: number)
  bands = datasketch.MinHashLSH(_THRESHOLD, _NUM_HASHES)

  def keys(document: Document) -> list[bytes]:
    sketch = empty.copy()
    hashes = _runs(_words(document))
    for first in range(0, len(hashes), _RUNS_AT_A_TIME):
      sketch.update_batch(hashes[first : first + _RUNS_AT_A_TIME].tolist())
    parts = sketch.digest()[: bands.b * bands.r].reshape(bands.b, bands.r)
    return [_hash(f'{i}/{part.tolist()}') for i, part in enumerate(parts)]

  return keys


def _words(document: Document) -> list[str]:
  texts = [turn.content for turn in document.messages] or [document.text]
  # Who said what counts: no word has a zero.
  return '\0 '.join(texts).split()


def _runs(words: list[str]) -> np.ndarray:
  """uint32 hashes of all different runs of words."""
  data = (word.lower().encode('utf-8', 'surrogatepass') for word in words)
  hashes = np.fromiter(map(zlib.crc32, data), np.uint64, len(words))
  size = min(_RUN, len(words))
  runs = np.zeros(len(words) - max(0, size - 1), np.uint64)
  for i in range(size):  # of polynomials, modulo 2**64
    runs = runs * _FACTOR + hashes[i : i + len(runs)]
  return np.unique((runs * _FACTOR >> np.uint64(32)).astype(np.uint32))


def _hash(text: str) -> bytes:
  data = text.encode('utf-8', 'surrogatepass')
  return hashlib.blake2b(data, digest_size=16).digest()
