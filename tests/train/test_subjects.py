"""How text is read that a model directory is evaluated on."""

import dataclasses
import json

import pytest

from satjax import errors
from satjax.config import history
from satjax.data import tokenizers
from satjax.interop import models as interop
from satjax.train import subjects
from tests import models

MODEL = interop.Model(models.make(vocab_size=258), None)
BYTE = tokenizers.ByteTokenizer()


def remembered(folder, **changes):
  data = dataclasses.asdict(models.make_data(seq_len=16, test=0.25))
  del data['tokenizer']
  values = {
    'version': history.VERSION,
    'model': {'dtype': 'bfloat16'},
    'data': data,
  }
  (folder / subjects.NAME).write_text(json.dumps(values | changes))


def test_an_export_is_read_as_its_run(tmp_path):
  foreign = subjects.of_model(tmp_path, MODEL, BYTE, 'chatml')
  assert (foreign.data.seq_len, foreign.data.template) == (256, 'chatml')
  assert foreign.stage.model.dtype == 'float32'
  remembered(tmp_path)
  found = subjects.of_model(tmp_path, MODEL, BYTE, 'chatml')
  assert found.data == models.make_data(seq_len=16, test=0.25)
  assert found.stage.seq_len == 16
  assert found.stage.model == dataclasses.replace(
    MODEL.config, dtype='bfloat16'
  )


def test_batches_have_as_many_rows_as_those_of_the_run(tmp_path, monkeypatch):
  seen = []

  def evaluator(data, *, max_rows, **_):
    seen.append(max_rows)
    raise errors.DataError('enough')

  monkeypatch.setattr(subjects.evaluation, 'Evaluator', evaluator)
  # Exports of earlier versions do not say.
  for more in ({'batch_size': 3}, {}):
    remembered(tmp_path, **more)
    subject = subjects.of_model(tmp_path, MODEL, BYTE)
    for count in (5, None):
      with pytest.raises(errors.DataError, match='enough'):
        subjects.evaluate(subject, sources=['stdlib:docs'], max_batches=count)
  assert seen == [15, None, 40, None]


def test_rows_beyond_the_context_of_the_model_are_named(
  tmp_path, monkeypatch, capsys
):
  def evaluator(data, **_):
    raise errors.DataError('enough')

  monkeypatch.setattr(subjects.evaluation, 'Evaluator', evaluator)
  (tmp_path / 'config.json').write_text('{"max_position_embeddings": 64}')
  subject = subjects.of_model(tmp_path, MODEL, BYTE)
  for length in (64, 65):
    with pytest.raises(errors.DataError, match='enough'):
      subjects.evaluate(subject, sources=['stdlib:docs'], seq_len=length)
    said = capsys.readouterr().err
    assert ('65 tokens: the model reads 64 at once' in said) == (length == 65)


@pytest.mark.parametrize(
  'changes',
  [
    {'data': {'seq_len': 16}},
    {'data': 3},
    {'model': 3},
    {'batch_size': 'x'},
  ],
)
def test_what_an_export_says_is_checked(tmp_path, changes):
  remembered(tmp_path, **changes)
  with pytest.raises(errors.DataError, match='satjax.json'):
    subjects.of_model(tmp_path, MODEL, BYTE)
  (tmp_path / subjects.NAME).write_text('[')
  with pytest.raises(errors.DataError, match='satjax.json is damaged'):
    subjects.of_model(tmp_path, MODEL, BYTE)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'held_out': 0.0}, 'held_out 0.0; allowed: above 0'),
    ({'held_out': 0.5, 'split': 'test'}, "no share of split 'test'"),
    ({'packing': 'loose'}, "packing = 'loose'"),
    ({}, 'data.eval is empty'),
    ({'split': 'test', 'sources': ['stdlib:docs']}, 'data.test above 0'),
  ],
)
def test_changes_are_checked(tmp_path, options, message):
  subject = subjects.of_model(tmp_path, MODEL, BYTE)
  data = dataclasses.replace(subject.data, eval=())
  subject = dataclasses.replace(subject, data=data)
  with pytest.raises(errors.ConfigError, match=message):
    subjects.evaluate(subject, **options)
