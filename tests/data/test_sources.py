"""Every form of a source: what it yields, and how it refuses."""

import json
import os
import subprocess
import sys

import pytest

from satjax import errors
from satjax.data import chunks, sources, stdlib


def read(source):
  return list(sources.documents(source))


def texts(source):
  """Identifiers and texts of documents that are no pairs."""
  documents = read(source)
  assert not any(document.messages or document.group for document in documents)
  return [(document.id, document.text) for document in documents]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  'source', ['stdlib:code', 'stdlib:docs', 'stdlib:docstrings']
)
def test_stdlib_is_large_ordered_and_free_of_tests(source):
  documents = read(source)
  ids = [document.id for document in documents]
  assert sum(map(chunks.num_chars, documents)) > 1_000_000
  paths = [id.partition('#')[0] for id in ids]
  assert paths == sorted(paths)
  assert len(set(ids)) == len(ids)
  parts = {part for path in paths for part in path.split('/')}
  assert not parts & {'test', 'tests', 'idle_test', 'site-packages'}
  assert all(chunks.num_chars(document) for document in documents)
  assert read(source) == documents


def test_stdlib_code_is_the_file():
  code = dict(texts('stdlib:code'))
  with open(json.decoder.__file__, encoding='utf-8') as file:
    assert code['json/decoder.py'] == file.read()


def test_stdlib_docs_are_what_help_shows():
  docs = dict(texts('stdlib:docs'))
  text = docs['json/__init__.py']
  assert text.startswith('# json\n\nJSON (JavaScript Object Notation)')
  assert '# json.dumps\n\nSerialize ``obj`` to a JSON formatted' in text
  decoder = docs['json/decoder.py']
  assert '# json.decoder.JSONDecoder.raw_decode\n\nDecode a JSON' in decoder
  assert 'The "with" statement' in docs['pydoc_data/topics.py#with']


def test_stdlib_is_read_without_importing_it():
  """Nor are jax, flax and grain, so that a command starts at once."""
  program = (
    'import sys; from satjax.data import sources, table;'
    "list(sources.documents('stdlib:docs'));"
    "bad = {'jax', 'flax', 'grain', 'antigravity', 'turtle', 'idlelib'};"
    'print(bad & set(sys.modules))'
  )
  run = [sys.executable, '-c', program]
  result = subprocess.run(run, capture_output=True, text=True, check=True)
  assert result.stdout == 'set()\n'


def test_docstrings_inside_if_and_try_are_found():
  tree = stdlib.ast.parse(
    '"""Top."""\n'
    'if True:\n  def f():\n    """F."""\n    def hidden():\n      """No."""\n'
    'else:\n  async def g():\n    """G."""\n'
    'try:\n  pass\n'
    'except E:\n  class C:\n    """C."""\n    def m(self):\n      """M."""\n'
  )
  assert list(stdlib.sections(tree, 'x')) == [
    ('x', 'Top.'),
    ('x.f', 'F.'),
    ('x.g', 'G.'),
    ('x.C', 'C.'),
    ('x.C.m', 'M.'),
  ]


def test_text_is_sorted_by_path_and_named_below_the_glob(folder):
  for name in ('b/z.txt', 'a.txt', 'b/a.txt', 'B.txt', 'b/no.md'):
    path = folder / 'books' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
  expected = [
    ('B.txt#0', 'B.txt'),
    ('a.txt#0', 'a.txt'),
    ('b/a.txt#0', 'b/a.txt'),
    ('b/z.txt#0', 'b/z.txt'),
  ]
  assert texts('text:books/**/*.txt') == expected
  assert texts(f'text:{folder}/books/**/*.txt') == expected
  assert texts('text:books/a.txt') == [('a.txt#0', 'a.txt')]


def test_home_is_expanded(folder, monkeypatch):
  monkeypatch.setenv('HOME', str(folder))
  (folder / 'a.txt').write_text('x')
  assert texts('text:~/*.txt') == [('a.txt#0', 'x')]


def test_adversarial_text(folder):
  (folder / 'a').write_bytes(b'')
  (folder / 'b').write_bytes(b'one\r\ntwo\rthree\r\n')
  (folder / 'c').write_bytes(b'\xef\xbb\xbfbom \x00 nul \xff\xfe')
  assert texts('text:?') == [
    ('b#0', 'one\ntwo\rthree\n'),
    ('c#0', 'bom \x00 nul \ufffd\ufffd'),
  ]


@pytest.mark.parametrize(
  'unit', ['line\n\n', 'line\n \n', 'line\n', 'word ', 'x', 'é' * 9000 + '\n\n']
)
def test_long_text_is_cut_and_conserved(folder, unit):
  text = unit * (1_000_000 // len(unit.encode()))
  (folder / 'long').write_text(text, encoding='utf-8', newline='')
  pieces = [document.text for document in read('text:long')]
  assert ''.join(pieces) == text
  assert max(map(len, pieces)) <= 8192
  if len(unit) < 8192:
    assert all(piece.endswith(unit) for piece in pieces)
    assert len(pieces) <= len(text) / (8192 - len(unit)) + 1


def test_short_text_is_not_cut(folder):
  text = 'line\n\n' * 10_000
  (folder / 'a').write_text(text)
  assert texts('text:a') == [('a#0', text)]


def test_jsonl_reads_the_text_field(folder):
  lines = ['{"text": "a\\u2028\u2028b", "id": 1}', '', '  \r', '{"text": ""}']
  lines += ['{"text": "\\ud800 lone"}\r', '{"text": "last"}']
  data = '\n'.join(lines).encode()
  (folder / 'a.jsonl').write_bytes(b'\xef\xbb\xbf' + data)
  assert texts('jsonl:*.jsonl') == [
    ('a.jsonl#1', 'a\u2028\u2028b'),
    ('a.jsonl#5', '\ud800 lone'),
    ('a.jsonl#6', 'last'),
  ]


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"text": ', 'line 2: not JSON'),
    ('[' * 100_000, 'line 2: not JSON'),
    ('{"q": 1, "answer": 2}', r"line 2: .*its keys are \['answer', 'q'\]"),
    ('{"prompt": "only"}', r"line 2: .*its keys are \['prompt'\]"),
    ('{"text": 3}', 'line 2: .*its "text" is a int'),
    ('{"prompt": ["a"], "answer": 2}', "line 2, message 1: 'a' is no mess"),
    ('{"prompt": {"a": 1}, "answer": 2}', 'line 2: .*its "prompt" is a dict'),
    ('{"prompt": "a", "answer": 2}', 'line 2: .*its "answer" is a int'),
    ('["text"]', 'line 2: .*it is a list'),
  ],
)
def test_bad_jsonl_names_file_and_line(folder, line, message):
  (folder / 'a.jsonl').write_text(f'{{"text": "good"}}\n{line}\n')
  documents = sources.documents('jsonl:a.jsonl')
  assert next(documents).text == 'good'
  with pytest.raises(errors.DataError, match=f'a.jsonl, {message}'):
    next(documents)


@pytest.mark.parametrize(
  'source', ['', 'wiki', 'stdlib', 'stdlib:x', 'text:', 'text', 'tfds:']
)
def test_unknown_source_lists_the_forms(source):
  with pytest.raises(errors.ConfigError) as caught:
    sources.documents(source)
  message = str(caught.value)
  assert repr(source) in message
  for form in sources.FORMS:
    assert form in message


def test_glob_without_match_says_where_it_looked(folder):
  with pytest.raises(errors.DataError, match='matches no file') as caught:
    sources.documents('text:*.txt')
  assert os.getcwd() in str(caught.value)


def test_folder_is_answered_with_a_glob(folder):
  (folder / 'books').mkdir()
  with pytest.raises(errors.DataError, match=r'text:books/\*\*/\*'):
    sources.documents('text:books/')


def test_unreadable_file_is_named(folder):
  (folder / 'a.txt').write_text('x')
  documents = sources.documents('text:*.txt')
  (folder / 'a.txt').unlink()
  with pytest.raises(errors.DataError, match='a.txt cannot be read'):
    next(documents)


def test_missing_stdlib_is_explained(folder, monkeypatch):
  monkeypatch.setattr(
    stdlib.sysconfig, 'get_paths', lambda: {'stdlib': str(folder)}
  )
  with pytest.raises(errors.DataError, match='no library sources'):
    sources.documents('stdlib:docs')
