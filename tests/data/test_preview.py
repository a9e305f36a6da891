"""What is shown as learned is what the loss counts."""

import json
import re

import numpy as np
import pytest

from configs import sft_jsonl
from satjax import cli
from satjax.config.run import Config
from satjax.data import pipeline, preview, tokenizers

BYTE = tokenizers.ByteTokenizer()


@pytest.fixture
def source(tmp_path):
  lines = [
    json.dumps({'question': f'What is {i}?', 'answer': f'It is {i}.'})
    for i in range(60)
  ]
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  return f'jsonl:{tmp_path}/a.jsonl'


def pieces(text):
  """Text of the learned and of the other spans."""
  learned = [
    text.plain[span.start : span.end]
    for span in text.spans
    if 'green' in span.style
  ]
  others = [
    text.plain[span.start : span.end]
    for span in text.spans
    if 'green' not in span.style
  ]
  return learned, others


@pytest.mark.parametrize('packing', ['best_fit', 'concat_then_split'])
def test_learned_spans_are_the_answers(source, packing):
  values = sft_jsonl.get_config(source)
  values.data.seq_len, values.data.packing = 200, packing
  values.data.template = 'chatml'
  data = Config.from_dict(values).data
  batches = pipeline.make_batches(
    data, split='train', batch_size=1, tokenizer=BYTE, vocab_size=320
  )
  count = 0
  for step in range(len(batches.sources[0])):
    row = {name: v[0] for name, v in batches[step].items()}
    text = preview.render(row, BYTE)
    learned, others = pieces(text)
    count += sum(len(re.sub('<end>', '#', piece)) for piece in learned)
    count -= np.sum(row['weights'] > 0)
    if packing == 'best_fit':
      assert re.fullmatch(r'(It is \d+\.<end>)+', ''.join(learned))
      assert re.match(r'<begin><\|im_start\|>user\nWhat is', ''.join(others))
  # Nothing is shown that is not counted; a row that begins inside of an answer
  # can't show its first token as learned: the row before it did.
  assert abs(count) <= len(batches.sources[0])
  if packing == 'best_fit':
    assert count == 0


def test_preview_of_a_configuration(source, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  page = tmp_path / 'preview.html'
  run = ['preview', f'--config=configs/sft_jsonl.py:{source}', '--rows=1']
  run.append('--config.data.template=chatml')
  small = ['--config.data.seq_len=256', '--config.train.batch_size=2']
  assert cli.main([*run, *small, f'--out={page}']) == 0
  shown = capsys.readouterr().out
  assert '(train)' in shown and 'targets learned' in shown
  assert 'It is' in shown and '<|im_start|>' in shown
  html = page.read_text()
  assert '&lt;|im_start|&gt;' in html and 'It is' in html
  assert 'color' in html and 'http' not in html
  assert cli.main([*run, '--batch=-1']) == 78
  assert cli.main([*run, *small, '--json']) == 0
  (row,) = map(json.loads, capsys.readouterr().out.splitlines())
  assert set(row) == {'batch', 'row', 'ids', 'learned', 'text'}
  assert len(row['ids']) == len(row['learned'])
  learned = [n for n, yes in zip(row['ids'], row['learned']) if yes]
  assert re.fullmatch(r'(It is \d+\.)+', BYTE.decode(learned))
  assert row['text'].startswith('<begin><|im_start|>user\nWhat is')


def test_one_object_is_one_line_whatever_its_text(tmp_path, capsys):
  text = 'a\u2028b\x85c\x0c\x00"\\ \ud800 \U0001f600'
  line = json.dumps({'text': text})
  (tmp_path / 'a.jsonl').write_text(f'{line}\n' * 90)
  run = ['preview', '--config=configs/tiny.py', '--rows=2', '--json']
  settings = ('growth.hops=()', f'data.train=jsonl:{tmp_path}/a.jsonl')
  assert cli.main([*run, *(f'--config.{key}' for key in settings)]) == 0
  rows = list(map(json.loads, capsys.readouterr().out.splitlines()))
  assert len(rows) == 2
  assert text.replace('\ud800', '\ufffd' * 3) in rows[0]['text']


def test_a_preview_fits_a_narrow_screen(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '48')
  (tmp_path / 'a.jsonl').write_text('{"text": "one"}\n' * 90)
  page = tmp_path / 'preview.html'
  source = f'jsonl:{tmp_path}/[a].jsonl'  # no markup
  run = ['preview', '--config=configs/tiny.py', f'--out={page}']
  small = ('growth.hops=()', 'train.batch_size=8', f'data.train={source}')
  assert cli.main([*run, *(f'--config.{key}' for key in small)]) == 0
  shown = capsys.readouterr().out
  name, documents, tokens = shown.splitlines()[1:4]
  assert name == f'{source} (train)'
  assert re.fullmatch(r'  \d+ documents: 0 cut, 0 left out', documents)
  assert re.fullmatch(r'  \d+ tokens in \d+ rows', tokens)
  named = (str(tmp_path), '<begin>one')
  own = [x for x in shown.splitlines() if not any(n in x for n in named)]
  assert len(own) > 8 and max(map(len, own)) <= 48
  html = page.read_text()
  assert 'width=device-width' in html and 'white-space: pre-wrap' in html
