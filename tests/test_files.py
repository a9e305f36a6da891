"""A file is there whole, old or new."""

import json

import pytest

from satjax import files


def test_json_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'x.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    files.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
  tmp_path, monkeypatch
):
  path = tmp_path / 'x'
  files.write(path, 'old')

  def full(number):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(files.os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    files.write(path, 'new')
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]
