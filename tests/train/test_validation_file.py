"""A validation file of its own is evaluated whole, and a run says so."""

import json

import jax
import pytest

from satjax import cli
from satjax.config.run import Config
from satjax.train import loop
from tests.train.test_loop import small


@pytest.fixture
def files(tmp_path, monkeypatch):
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda: one)
  monkeypatch.chdir(tmp_path)
  for name, count in (('train', 90), ('valid', 12)):
    texts = (
      f'{name} {number}: ' + 'to be or not ' * 9 for number in range(count)
    )
    lines = ''.join(json.dumps({'text': text}) + '\n' for text in texts)
    (tmp_path / f'{name}.jsonl').write_text(lines)
  return tmp_path


@pytest.mark.parametrize(('batches', 'left'), [(16, 0), (2, 81)])
def test_a_file_that_is_not_trained_on_is_read_whole(
  files, capsys, batches, left
):
  values = small(num_steps=2, eval_every=0, eval_batches=batches).to_dict()
  values['data'] |= {
    'train': ('jsonl:train.jsonl',),
    'eval': ('jsonl:valid.jsonl',),
    'held_out': 0.0,
  }
  records = loop.train(Config.from_dict(values), files / 'run')
  err = capsys.readouterr().err
  found = records[-1]['eval/jsonl:valid.jsonl/loss']
  assert cli.main(['evaluate', '--workdir=run']) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  whole = result['eval']['jsonl:valid.jsonl']
  assert whole['documents'] == whole['of_documents'] == 12
  said = 'jsonl:valid.jsonl: evaluated on 12 of 12 documents,'
  if left:
    assert f'{left} rows left out (train.eval_batches)' in err
  else:
    assert f'{said} {whole["tokens"]:,} tokens\n' in err
    assert found == pytest.approx(whole['loss'], rel=1e-6)
