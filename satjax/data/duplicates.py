"""Keys of documents: one that shares a key with another one is a duplicate.

exact  the same words; white space does not count.
near   most of the same runs of five words, whatever their case: MinHash
       (Broder, 1997) in bands (Leskovec et al., Mining of Massive Datasets,
       3.4). Of pairs whose runs agree to 0.8 (Jaccard) 2 of 5 are found, at 0.9
       9 of 10.
"""

from collections.abc import Callable
import hashlib

from satjax import errors
from satjax.data.documents import Document

Keys = Callable[[Document], list[bytes]]
RULES = ('keep', 'exact', 'near')
_RUN = 5  # words
_THRESHOLD = 0.8
_NUM_HASHES = 128
_RUNS_AT_A_TIME = 4096  # times `_NUM_HASHES` numbers of 4 bytes


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
  empty = datasketch.MinHash(_NUM_HASHES)
  bands = datasketch.MinHashLSH(_THRESHOLD, _NUM_HASHES)

  def keys(document: Document) -> list[bytes]:
    sketch = empty.copy()
    runs = _runs(_words(document))
    for first in range(0, len(runs), _RUNS_AT_A_TIME):
      sketch.update_batch(runs[first : first + _RUNS_AT_A_TIME])
    parts = sketch.digest()[: bands.b * bands.r].reshape(bands.b, bands.r)
    return [_hash(f'{i}/{part.tolist()}') for i, part in enumerate(parts)]

  return keys


def _words(document: Document) -> list[str]:
  # Who said what counts: no word has a zero.
  return '\0 '.join(document.texts).split()


def _runs(words: list[str]) -> list[bytes]:
  """All different runs of words, in small letters."""
  words = [word.lower() for word in words]
  first = range(max(1, len(words) - _RUN + 1))
  runs = {' '.join(words[i : i + _RUN]) for i in first}
  return [run.encode('utf-8', 'surrogatepass') for run in runs]


def _hash(text: str) -> bytes:
  data = text.encode('utf-8', 'surrogatepass')
  return hashlib.blake2b(data, digest_size=16).digest()
