"""Whatever users feed: a clear error or a rule, and no token gets lost."""

import json

import pytest

from satjax import errors
from satjax.data import pipeline, table, tokenizers
from satjax.data.encode import Encoder
from tests import models

BYTE = tokenizers.ByteTokenizer()
PAIR = json.dumps({'question': 'ab', 'answer': 'cd'}).encode()
TEXT = b'{"text": "abc"}'


def make(tmp_path, content, kind='text', **changes):
  """Batches of one file that is not held out."""
  (tmp_path / 'in.txt').write_bytes(content)
  data = models.make_data(
    train=(f'{kind}:{tmp_path}/in.txt',), held_out=1e-9, **changes
  )
  return pipeline.make_batches(
    data, split='train', batch_size=1, tokenizer=BYTE, vocab_size=258
  )


@pytest.mark.parametrize(
  'kind, content, text',
  [
    ('text', b'ab\r\ncd\r\nef\r\n', 'ab\ncd\nef\n'),
    ('text', b'ab\x00cd' * 3, 'ab\x00cd' * 3),
    ('text', b'caf\xe9 ol\xe9!', 'caf\ufffd ol\ufffd!'),
    ('text', b'\xef\xbb\xbfwith a mark', 'with a mark'),
    ('jsonl', TEXT * 1, 'abc'),
    ('jsonl', b'\n\n' + TEXT + b'\r\n\n{"text": ""}\n' + TEXT, 'abcabc'),
    ('jsonl', b'{"text": "a\\ud800b"}', 'a\ufffd\ufffd\ufffdb'),
  ],
)
def test_text_is_kept_by_rule(tmp_path, kind, content, text):
  batches = make(tmp_path, content, kind, seq_len=2)
  built = table.build_table(
    f'{kind}:{tmp_path}/in.txt', Encoder(BYTE), split='train', held_out=1e-9
  )
  assert BYTE.decode(built.tokens) == text
  (source,) = batches.sources
  assert len(source.table.tokens) == len(built.tokens)
  assert len(source) == (len(built.tokens) - 1) // 2


def test_ten_megabytes_in_one_line(tmp_path):
  line = json.dumps({'text': 'x' * 10_000_000}).encode()
  batches = make(tmp_path, line, 'jsonl', seq_len=1000)
  (source,) = batches.sources  # which cuts it into several documents
  assert len(source.table.tokens) - 2 * len(source.table.starts) == 10_000_000


@pytest.mark.parametrize(
  'kind, content, changes, message',
  [
    ('text', b'', {}, 'has no document'),
    ('jsonl', b'\n\n', {}, 'has no document'),
    ('text', b'abc', {'seq_len': 9}, '5 tokens in 1 doc.*data.seq_len.* = 10'),
    ('jsonl', b'abc\n', {}, 'in.txt, line 1: not JSON'),
    ('jsonl', b'{"a": 1}\n', {}, r"in.txt, line 1: .*keys are \['a'\]"),
    ('jsonl', TEXT, {'columns': ('body',)}, '"body" of data.columns are nee'),
    (
      'jsonl',
      b'{"messages": [{"role": "user", "content": "hello"}]}',
      {'template': 'chatml'},
      'line 1: 1 messages, none of them by an assistant',
    ),
    ('jsonl', PAIR * 2, {}, 'line 1: not JSON'),
    (
      'jsonl',
      PAIR,
      {'seq_len': 3, 'packing': 'best_fit'},
      'all of its 1 documents are longer than data.seq_len 3',
    ),
    (
      'jsonl',
      PAIR,
      {'seq_len': 3, 'packing': 'best_fit', 'too_long': 'drop'},
      'all of its 1 documents are longer than data.seq_len 3',
    ),
  ],
)
def test_what_can_not_be_used_is_refused(
  tmp_path, kind, content, changes, message
):
  with pytest.raises(errors.DataError, match=message):
    make(tmp_path, content, kind, **changes)


def test_one_record_is_enough(tmp_path):
  batches = make(tmp_path, PAIR, 'jsonl', seq_len=9, packing='best_fit')
  for step in (0, 1, 7):
    batch = batches[step]
    assert batch['segments'].tolist() == [[1, 1, 1, 1, 1, 0, 0, 0, 0]]
    assert batch['weights'].tolist() == [[0, 0, 1, 1, 1, 0, 0, 0, 0]]


def test_documents_shorter_than_the_context_share_rows(tmp_path):
  lines = b'\n'.join([PAIR] * 40)
  batches = make(tmp_path, lines, 'jsonl', seq_len=16, packing='best_fit')
  rows = [batches[step] for step in range(len(batches.sources[0]))]
  assert sum(row['weights'].sum() for row in rows) == 40 * 3
  assert sum((row['positions'] == 1).sum() for row in rows) == 40


def test_ids_outside_of_the_model_are_refused_when_they_are_read(tmp_path):
  (tmp_path / 'in.txt').write_bytes(b'zzzz')
  data = models.make_data(
    train=(f'text:{tmp_path}/in.txt',), seq_len=3, held_out=1e-9
  )
  batches = pipeline.make_batches(
    data, split='train', batch_size=1, tokenizer=BYTE, vocab_size=100
  )
  with pytest.raises(errors.DataError, match='token id 256 .* 0 to 99'):
    batches[0]
