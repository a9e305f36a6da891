"""Sources are read in chunks: nothing is lost, and they are always the same."""

from collections import Counter
import itertools
import json
import pickle
import random

import pytest

from satjax import errors
from satjax.data import chunks, readers, sources


def read(source, columns=()):
  return list(sources.documents(source, columns))


def chunked(source, size):
  """Documents of each chunk, as other processes get them, and the chunks."""
  some = list(sources.find(source).chunks(size))
  sent = [pickle.loads(pickle.dumps(chunk)) for chunk in some]
  return [list(chunk.documents(Counter())) for chunk in sent], some


def write_jsonl(path, values):
  path.write_text(''.join(json.dumps(value) + '\n' for value in values))


def pieces_of_whole(text):
  """The rule for long texts, said of a whole one."""
  start = 0
  while len(text) > 65536 and len(text) - start > 8192:
    window = text[start : start + 8192]
    marks = ('\n\n', '\n \n', '\n', ' ', '')
    mark = next(mark for mark in marks if mark in window)
    piece = window[: window.rfind(mark) + len(mark)]
    yield piece
    start += len(piece)
  if start < len(text):
    yield text[start:]


UNITS = [b'a', b'\r', b'\n', b'\r\n', b' ', '\u00e9\u4e2d\U0001f600'.encode()]
UNITS += [
  b'\xff',
  b'\xe4\xb8',
  b'\xef\xbb\xbf',
  b'\x00',
  b'\n\n',
  b'word ' * 99,
]


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('block', [1, 7, 4096])
def test_text_is_read_in_blocks_as_if_it_were_whole(
  tmp_path, monkeypatch, seed, block
):
  monkeypatch.setattr(readers, '_BLOCK_BYTES', block)
  draw = random.Random(seed)
  units = draw.choices(UNITS, k=draw.choice([0, 1, 3, 30, 900]))
  data = b''.join(units)
  (tmp_path / 'a').write_bytes(data)
  whole = data.decode('utf-8-sig', errors='replace').replace('\r\n', '\n')
  found = [d.text for d in read(f'text:{tmp_path}/a')]
  assert found == list(pieces_of_whole(whole))


@pytest.mark.parametrize('uncut, piece', [(0, 1), (5, 5), (9, 4)])
def test_cutting_does_not_depend_on_the_blocks(uncut, piece):
  text = 'ab c\n\nd e\nfgh  i' * 3
  for size in range(1, len(text)):
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    found = list(chunks.cut(blocks, uncut, piece))
    assert found == list(chunks.cut([text], uncut, piece))
    assert ''.join(found) == text
    assert max(map(len, found)) <= piece


@pytest.fixture
def many(tmp_path):
  """Sources of several files, by kind, some of them with nothing."""
  from pyarrow import Table, parquet

  for i, size in enumerate((3, 0, 90_000, 0, 20_000)):
    (tmp_path / f'{i}.txt').write_text('one two\n' * (size // 8))
    values = [{'text': 'x' * (j % 9) + str(j)} for j in range(size // 1000)]
    write_jsonl(tmp_path / f'{i}.jsonl', [*values, {'text': ''}])
    table = Table.from_pylist([*values, {'text': ''}])
    parquet.write_table(table, tmp_path / f'{i}.parquet', row_group_size=7)
  return tmp_path


@pytest.mark.parametrize(
  'kind, ext',
  [
    ('text', 'txt'),
    ('jsonl', 'jsonl'),
    ('parquet', 'parquet'),
  ],
)
def test_chunks_are_the_whole_and_the_same_again(many, kind, ext):
  source = f'{kind}:{many}/*.{ext}'
  whole = read(source)
  assert len(whole) > 9
  found, some = chunked(source, size=300)
  assert len(some) > 9
  assert list(itertools.chain(*found)) == whole
  size = sources.find(source).size
  done = [chunk.done for chunk in some]
  assert done == sorted(done)
  assert done[-1] == size
  again, after = chunked(source, size=300)
  assert again == found
  assert [chunk.done for chunk in after] == done


def test_chunks_of_the_library():
  source = 'stdlib:docstrings'
  found, some = chunked(source, size=300_000)
  assert len(some) > 2
  assert list(itertools.chain(*found)) == read(source)
  assert some[-1].done == sources.find(source).size


def test_files_tell_themselves_apart_by_names_and_sizes(tmp_path):
  (tmp_path / 'a').write_text('one')
  before = sources.find(f'text:{tmp_path}/*')
  assert sources.find(f'text:{tmp_path}/?').identity == before.identity
  (tmp_path / 'a').write_text('four')
  longer = sources.find(f'text:{tmp_path}/*')
  (tmp_path / 'a').rename(tmp_path / 'b')
  renamed = sources.find(f'text:{tmp_path}/*')
  assert len({before.identity, longer.identity, renamed.identity}) == 3


def test_empty_documents_are_counted(many):
  counts = {}
  for kind, ext in (
    ('text', 'txt'),
    ('jsonl', 'jsonl'),
    ('parquet', 'parquet'),
  ):
    counts[kind] = Counter()
    found = sources.find(f'{kind}:{many}/*.{ext}')
    for chunk in found.chunks(300):
      list(chunk.documents(counts[kind]))
  assert counts == {
    'text': {'empty': 3},  # of 3 bytes not one line
    'jsonl': {'empty': 5},
    'parquet': {'empty': 5},
  }


def test_line_of_ten_megabytes(tmp_path):
  text = 'word ' * 2_000_000
  write_jsonl(tmp_path / 'a', [{'text': 'x'}, {'text': text}, {'text': 'y'}])
  first, *pieces, last = read(f'jsonl:{tmp_path}/a')
  assert (first.text, last.text, last.id) == ('x', 'y', 'a#3')
  assert ''.join(piece.text for piece in pieces) == text
  assert len(pieces) == 10
  assert [piece.id for piece in pieces[:2]] == ['a#2/0', 'a#2/1']
  assert {piece.group for piece in pieces} == {'a#2'}


def test_line_that_is_too_long_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, '_MAX_LINE_BYTES', 3000)
  write_jsonl(tmp_path / 'a', [{'text': 'x' * 2900}, {'text': 'y' * 4000}])
  some = sources.find(f'jsonl:{tmp_path}/a').chunks(500)
  assert next(some).volume == 2913
  with pytest.raises(
    errors.DataError, match='a, line 2: longer than 3,000 byt'
  ):
    next(some)


def test_conversation_that_is_too_long_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(chunks, 'MAX_CHARS', 10)
  write_jsonl(tmp_path / 'a', [{'prompt': 'x' * 8, 'answer': 'yyy'}])
  with pytest.raises(errors.DataError, match='a, line 1: .* of 11 characters'):
    read(f'jsonl:{tmp_path}/a')


@pytest.fixture
def parquet_file(tmp_path):
  def write(columns, types=None):
    import pyarrow
    from pyarrow import parquet

    arrays = {
      name: pyarrow.array(values, type=(types or {}).get(name))
      for name, values in columns.items()
    }
    parquet.write_table(pyarrow.table(arrays), tmp_path / 'a.parquet')
    return f'parquet:{tmp_path}/*.parquet'

  return write


def test_parquet_reads_the_usual_fields_and_those_named(parquet_file):
  turns = [{'role': 'user', 'content': 'q'}]
  turns += [{'role': 'assistant', 'content': 'a'}]
  columns = {'text': ['a', 'b\u00e9'], 'q': ['c', 'd'], 'n': [1, 2]}
  source = parquet_file(columns | {'turns': [turns, turns]})
  assert [(d.id, d.text) for d in read(source)] == [
    ('a.parquet#0', 'a'),
    ('a.parquet#1', 'b\u00e9'),
  ]
  pairs = read(source, ('q', 'text'))
  said = [[message.content for message in d.messages] for d in pairs]
  assert said == [['c', 'a'], ['d', 'b\u00e9']]
  chats = read(source, ('turns',))
  assert [len(d.messages) for d in chats] == [2, 2]


def test_parquet_text_may_be_binary_large_or_a_dictionary(parquet_file):
  import pyarrow

  for kind in (
    pyarrow.binary(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
  ):
    value = b'a' if kind == pyarrow.binary() else 'a'
    source = parquet_file({'text': [value, value]}, {'text': kind})
    assert [d.text for d in read(source, ('text',))] == ['a', 'a']


def test_parquet_text_that_is_not_utf8(parquet_file):
  import pyarrow

  data = pyarrow.array([b'a\xff'], pyarrow.binary())
  text = pyarrow.Array.from_buffers(pyarrow.string(), 1, data.buffers())
  assert read(parquet_file({'text': text}))[0].text == 'a\ufffd'


@pytest.mark.parametrize(
  'columns, message',
  [
    (('no',), 'has no column no; data.columns may name n, text'),
    (('n',), 'row 0: .*its "n" is a int'),
  ],
)
def test_parquet_without_the_columns(parquet_file, columns, message):
  source = parquet_file({'n': [1], 'text': ['a']})
  with pytest.raises(errors.DataError, match=message):
    read(source, columns)


def test_parquet_without_any_usual_field(parquet_file):
  source = parquet_file({'words': ['a'], 'n': [1]})
  with pytest.raises(
    errors.DataError, match=r"row 0: .*its keys are \['words'"
  ):
    read(source)
  with pytest.raises(
    errors.DataError, match='has no column of text; .* name n'
  ):
    read(parquet_file({'n': [1]}))


def test_file_that_is_no_parquet(tmp_path):
  (tmp_path / 'a.parquet').write_bytes(b'PAR1 no, it is not PAR1')
  with pytest.raises(errors.DataError, match='a.parquet is no Parquet file'):
    read(f'parquet:{tmp_path}/*.parquet')
