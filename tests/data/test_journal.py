"""A state and its keys change together or not at all."""

import subprocess
import sys

import pytest

from satjax import errors
from satjax.data.journal import Journal

A, B, C = b'a' * 16, b'b' * 16, b'c' * 16


def test_what_was_not_committed_is_forgotten(tmp_path):
  with Journal(tmp_path / 'j') as journal:
    assert journal.state() is None
    assert journal.add([A])
    journal.commit({'n': 1})
    assert journal.add([B])
    assert not journal.add([B])
  with Journal(tmp_path / 'j') as journal:
    assert journal.state() == {'n': 1}
    assert not journal.add([A])
    assert journal.add([B])
    journal.commit({'n': 2})
  with Journal(tmp_path / 'j') as journal:
    assert journal.state() == {'n': 2}
    assert not journal.add([B])


def test_a_known_key_keeps_the_others_out(tmp_path):
  with Journal(tmp_path / 'j') as journal:
    assert journal.add([A, B, B])
    assert not journal.add([C, B])
    assert journal.add([C])


def test_killed_between_commits(tmp_path):
  program = (
    'import os, sys; from satjax.data.journal import Journal\n'
    'journal = Journal(sys.argv[1])\n'
    'for i in range(10**5):\n'  # more than the cache holds
    '  journal.add([i.to_bytes(16, "big")])\n'
    '  if i == 10: journal.commit(i)\n'
    'os.kill(os.getpid(), 9)\n'
  )
  run = [sys.executable, '-c', program, str(tmp_path / 'j')]
  assert subprocess.run(run).returncode == -9
  with Journal(tmp_path / 'j') as journal:
    assert journal.state() == 10
    assert not journal.add([(10).to_bytes(16, 'big')])
    assert journal.add([(11).to_bytes(16, 'big')])


def test_only_one_at_a_time(tmp_path):
  with (
    Journal(tmp_path / 'j'),
    pytest.raises(errors.StorageError, match='another satjax prepare'),
  ):
    Journal(tmp_path / 'j')


def test_file_that_is_no_journal(tmp_path):
  (tmp_path / 'j').write_bytes(b'no database' * 999)
  with pytest.raises(errors.StorageError, match='cannot be opened'):
    Journal(tmp_path / 'j')


def test_full_disk_is_explained(tmp_path):
  with (
    pytest.raises(errors.StorageError, match='make room'),
    Journal(tmp_path / 'j') as journal,
  ):
    journal.commit(1)
    journal._database.execute('PRAGMA max_page_count = 4')
    journal.commit('x' * 10**5)
  with Journal(tmp_path / 'j') as journal:
    assert journal.state() == 1
