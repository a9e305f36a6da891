"""What of a long work is done: whatever kills it, it goes on from there."""

from collections.abc import Sequence
import contextlib
import json
import os
import sqlite3
from typing import Any

from satjax import errors

_CACHE_KIB = 65536


class Journal(contextlib.AbstractContextManager):
  """A state, and a set of keys, that change together or not at all."""

  def __init__(self, path: str | os.PathLike):
    """Opens the file, or makes it.

    Raises:
      StorageError: somebody else has it open, or it is none.
    """
    self._path = path
    try:
      self._database = sqlite3.connect(path, isolation_level=None, timeout=0)
      run = self._database.execute
      run('PRAGMA locking_mode = EXCLUSIVE')
      run(f'PRAGMA cache_size = -{_CACHE_KIB}')
      run('BEGIN EXCLUSIVE')
      run('CREATE TABLE IF NOT EXISTS state (json TEXT)')
      run(
        'CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY) WITHOUT ROWID'
      )
    except sqlite3.Error as error:
      remedy = 'remove its folder, or name another one'
      if 'locked' in str(error):
        remedy = 'another satjax prepare writes there: wait for it'
      raise errors.StorageError(
        f'{path} cannot be opened ({error}); {remedy}'
      ) from error

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    """Forgets what was not committed; explains why something cannot be."""
    self._database.close()
    if isinstance(error, sqlite3.Error):
      raise errors.StorageError(
        f'{self._path} cannot be written ({error}); make room, and run the'
        ' same command again'
      ) from error

  def state(self) -> Any:
    """The state as last committed; None: never."""
    row = self._database.execute('SELECT json FROM state').fetchone()
    return row and json.loads(row[0])

  def add(self, keys: Sequence[bytes]) -> bool:
    """Adds keys, unless one of them is there: then none, and returns False."""
    places = ', '.join('?' * len(keys))
    query = f'SELECT 1 FROM seen WHERE key IN ({places}) LIMIT 1'
    if self._database.execute(query, keys).fetchone():
      return False
    self._database.executemany(
      'INSERT OR IGNORE INTO seen VALUES (?)', ((key,) for key in keys)
    )
    return True

  def commit(self, state: Any) -> None:
    """Keeps the state and all keys that were added, on disk."""
    run = self._database.execute
    run('DELETE FROM state')
    run('INSERT INTO state VALUES (?)', (json.dumps(state),))
    run('COMMIT')
    run('BEGIN EXCLUSIVE')
