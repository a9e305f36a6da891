"""Prompts are read and answers are learned, wherever a row ends."""

import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from satjax import errors
from satjax.data import pipeline, sources, table, tokenizers
from satjax.data import rows as rows_lib
from satjax.data.documents import Document, Message
from satjax.data.encode import Encoded, Encoder
from satjax.train import loss
from tests import models

BYTE = tokenizers.ByteTokenizer()
BOS, EOS = 256, 257


def make(*documents):
  """A table of (prompt, text) pairs of ids."""
  encoded = [
    Encoded(
      np.array([BOS, *prompt, *text, EOS], np.uint16),
      np.repeat([False, True], [1 + len(prompt), len(text) + 1]),
    )
    for prompt, text in documents
  ]
  return table.join(encoded, 'made up (train)', EOS)


def first_trained(built):
  """Where the loss begins to count, for each document."""
  trained = np.flatnonzero(built.is_trained)
  return trained[np.searchsorted(trained, built.starts)].tolist()


def write(path, *records):
  path.parent.mkdir(exist_ok=True)
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return f'jsonl:{path}'


def pair(prompt, answer):
  return {'prompt': prompt, 'answer': answer}


def turns(prompt, answer):
  return Message('user', prompt), Message('assistant', answer)


def settings(*train, seq_len=8, held_out=0.2):
  return models.make_data(train=train, seq_len=seq_len, held_out=held_out)


OPTIONS = {'tokenizer': BYTE, 'vocab_size': 258}


def test_row_of_a_pair_between_plain_documents():
  made = make(([], [1]), ([2, 3], [4, 5]), ([], [6]))
  (row,) = rows_lib.rows(made, 11)
  expected = {
    'tokens': [BOS, 1, EOS, BOS, 2, 3, 4, 5, EOS, BOS, 6],
    'targets': [1, EOS, BOS, 2, 3, 4, 5, EOS, BOS, 6, EOS],
    'positions': [0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1],
    'segments': [1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3],
    'weights': [1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1],
  }
  assert {key: value.tolist() for key, value in row.items()} == expected
  assert row['weights'].dtype == np.float32


def test_prompt_cut_by_the_end_of_a_row():
  rows = rows_lib.rows(make(([1, 2, 3], [4]), ([5], [6])), 3)
  assert [row['targets'].tolist() for row in rows] == [
    [1, 2, 3],
    [4, EOS, BOS],
    [5, 6, EOS],
  ]
  assert [row['weights'].tolist() for row in rows] == [
    [0, 0, 0],
    [1, 1, 0],
    [0, 1, 1],
  ]
  # The first id of an answer is foretold by the last of its prompt.
  assert rows[1]['tokens'].tolist() == [3, 4, EOS]


def test_answer_cut_by_the_end_of_a_row():
  rows = rows_lib.rows(make(([1], [2, 3, 4])), 2)
  assert [row['weights'].tolist() for row in rows] == [[0, 1], [1, 1]]


@hypothesis.given(
  st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9
  ),
  st.integers(2, 9),
)
def test_weights_agree_with_a_token_by_token_oracle(lengths, seq_len):
  """Ids below 100 are of prompts, others of texts."""
  made = make(*(([1] * prompt, [100] * (1 + text)) for prompt, text in lengths))
  scored = [
    [float(100 <= target != BOS) for target in part]
    for part in (
      made.tokens[at + 1 : at + 1 + seq_len]
      for at in range(0, len(made.tokens) - seq_len, seq_len)
    )
  ]
  hypothesis.assume(any(map(any, scored)))
  found = [row['weights'].tolist() for row in rows_lib.rows(made, seq_len)]
  assert found == scored


def test_pairs_without_prompts_are_plain_documents(tmp_path):
  """Same arrays, same fingerprint, and no array for prompts."""
  words = [f'{i} words' for i in range(20)]
  plain, pairs = (
    table.build_table(source, Encoder(BYTE), split='train', held_out=0.2)
    for source in (
      write(tmp_path / 'one' / 'a', *({'text': word} for word in words)),
      write(tmp_path / 'two' / 'a', *(pair('', word) for word in words)),
    )
  )
  assert plain.is_trained is None and pairs.is_trained is None
  assert plain.fingerprint == pairs.fingerprint
  np.testing.assert_array_equal(plain.tokens, pairs.tokens)


def test_table_of_a_file_that_mixes_both_forms(tmp_path):
  source = write(
    tmp_path / 'a.jsonl',
    pair('é?', 'yes'),
    {'text': 'plain', 'prompt': 'a field of its own'},
    pair('nothing follows', ''),
    pair('q', 'no') | {'id': 7},
  )
  assert list(sources.documents(source)) == [
    Document('a.jsonl#1', messages=turns('é?', 'yes')),
    Document('a.jsonl#2', 'plain'),
    Document('a.jsonl#4', messages=turns('q', 'no')),
  ]
  built = table.build_table(source, Encoder(BYTE), split='train', held_out=1e-9)
  assert built.starts.tolist() == [0, 9, 16]
  assert first_trained(built) == [5, 10, 19]
  for start, answer, text in zip(
    built.starts, first_trained(built), ('é?\n', '', 'q\n'), strict=True
  ):
    assert BYTE.decode(built.tokens[start:answer]) == text


def test_fingerprint_sees_what_is_scored(tmp_path):
  """The same tokens, cut at another place."""
  prints, arrays = set(), []
  for name, cut in (('a', 0), ('b', 1), ('c', 2)):
    source = write(tmp_path / f'{name}.jsonl', pair('text'[:cut], 'text'[cut:]))
    built = table.build_table(
      source, Encoder(BYTE, 'bare'), split='train', held_out=1e-9
    )
    arrays.append(built.tokens.tolist())
    batches = pipeline.make_batches(
      settings(source, seq_len=2, held_out=1e-9),
      split='train',
      batch_size=1,
      **OPTIONS,
    )
    prints |= {built.fingerprint, batches.fingerprint}
  assert arrays[0] == arrays[1] == arrays[2]
  assert len(prints) == 6


def test_wrong_id_of_a_prompt_is_refused(tmp_path):
  class Wrong(tokenizers.ByteTokenizer):
    def encode(self, text):
      return super().encode(text) + (1000 if 'prompt' in text else 0)

  source = write(tmp_path / 'a.jsonl', pair('prompt', 'answer'))
  with pytest.raises(errors.DataError, match=r"'a.jsonl#1'.*ids from 1010"):
    table.build_table(source, Encoder(Wrong()), split='train', held_out=1e-9)


def test_mixture_with_a_plain_source(folder, tmp_path):
  """Prompts are of digits, answers of capitals, plain text has both."""
  pairs = write(
    tmp_path / 'a.jsonl', *(pair('12345', 'ABCDEFG') for _ in range(60))
  )
  plain = f'text:{folder}/a/*'
  batches = pipeline.make_batches(
    settings(pairs, (plain, 2)), split='train', batch_size=6, **OPTIONS
  )
  again = pipeline.make_batches(
    settings(pairs, (plain, 2)), split='train', batch_size=6, **OPTIONS
  )
  seen = set()
  for step in range(30):
    batch = batches[step]
    for key, value in again[step].items():
      np.testing.assert_array_equal(batch[key], value)
    for tokens, targets, weights in zip(
      batch['tokens'], batch['targets'], batch['weights']
    ):
      ids = np.append(tokens, targets)
      is_plain = bool(((ids >= ord('a')) & (ids <= ord('z'))).any())
      seen.add(is_plain)
      unscored = targets == BOS
      if not is_plain:
        unscored |= (targets >= ord('0')) & (targets <= ord('9'))
      np.testing.assert_array_equal(weights, 1 - unscored)
  assert seen == {False, True}


def test_held_out_loss_counts_answers_only(tmp_path):
  """Every id has a price of its own, whatever stands before it."""
  pairs = [(f'<{i}>', 'abc'[: 1 + i % 3]) for i in range(50)]
  source = write(tmp_path / 'a.jsonl', *(pair(*both) for both in pairs))
  batches = pipeline.eval_batches(
    settings(source, seq_len=5),
    source,
    batch_size=4,
    max_rows=4000,
    **OPTIONS,
  )
  logits = -np.square(np.arange(258, dtype=np.float32) - 98) / 1e4
  nats = np.log(np.exp(logits).sum()) - logits
  held_out = [
    document
    for document in sources.documents(source)
    if table.split_of(document.id, 0.2) == 'held_out'
  ]
  targets = [
    id for d in held_out for id in [*d.messages[-1].content.encode(), EOS]
  ]
  num_tokens = sum(
    sum(len(m.content) for m in d.messages) + 2 for d in held_out
  )
  assert (num_tokens - 1) % 5  # what fills no row is there all the same
  total = sum(
    float(loss.cross_entropy_sum(np.broadcast_to(logits, (4, 5, 258)), batch))
    for batch in batches
  )
  weight = sum(batch['weights'].sum() for batch in batches)
  assert weight == len(targets)
  assert total == pytest.approx(sum(nats[targets]), rel=1e-5)


def test_rows_of_a_prompt_alone_are_refused(tmp_path):
  source = write(tmp_path / 'a.jsonl', pair('long ' * 10, 'x'))
  built = table.build_table(source, Encoder(BYTE), split='train', held_out=1e-9)
  assert len(built.tokens) == 53
  with pytest.raises(errors.DataError, match='no answer falls into its 1 row'):
    rows_lib.rows(built, 40)
  assert len(rows_lib.rows(built, 51)) == 1  # its last target is the answer


def test_evaluating_prompts_alone_is_refused(tmp_path):
  source = write(tmp_path / 'a.jsonl', pair('long ' * 10, 'x'))
  with pytest.raises(errors.DataError, match='2 rows .* no token of an answer'):
    pipeline.eval_batches(
      settings(source, seq_len=4, held_out=1 - 1e-9),
      source,
      batch_size=1,
      max_rows=2,
      **OPTIONS,
    )
