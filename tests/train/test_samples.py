"""What a model says along a run, which it does not change."""

import json
import shutil

import jax
import pytest

from satjax.config.run import Config
from satjax.generation import generate
from satjax.train import loop, saved
from tests.train.test_loop import losses, read_record, small

PROMPTS = ('def ', 'import')


@pytest.fixture(scope='module', autouse=True)
def one_device():
  one = jax.devices()[:1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda: one)
    yield


def make(prompts=PROMPTS, data=None, **train):
  """With a window of `sparsity` open at every evaluation."""
  options = {'num_steps': 6, 'eval_every': 2, 'checkpoint_every': 3}
  values = small(rate=0.5, **options).to_dict()
  values['train'] |= {'sample_prompts': prompts, 'sample_tokens': 8}
  values['train'] |= train
  values['sparsity'] |= {'omitted': 'decayed', 'omitted_forward': 'skip'}
  values['sparsity'] |= {'refresh_every': 3, 'split': 1.0}
  values['data'] |= data or {}
  return Config.from_dict(values)


def samples(folder):
  lines = (folder / 'samples.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('samples')
  loop.train(make(), folder)
  return folder


def test_each_evaluation_has_a_line_a_prompt(run):
  found = samples(run)
  expected = [(step, prompt) for step in (0, 2, 4, 6) for prompt in PROMPTS]
  assert [(r['step'], r['prompt']) for r in found] == expected
  assert all(r['text'] for r in found)


def test_texts_are_those_of_the_saved_model(run):
  model = saved.restore(run).model
  tokenizer = saved.restore(run).tokenizer
  how = generate.Options(max_tokens=8, end_ids=model.end_ids)
  task = model.config, model.params, tokenizer, PROMPTS, how
  expected = generate.run(*task).texts
  assert [r['text'] for r in samples(run)[-2:]] == expected


def test_a_run_is_the_same_without(run, tmp_path):
  loop.train(make(()), tmp_path)
  assert not (tmp_path / 'samples.jsonl').exists()
  assert losses(tmp_path) == losses(run)
  ends = [read_record(f / 'checkpoints' / '6') for f in (tmp_path, run)]
  assert ends[0]['fingerprint'] == ends[1]['fingerprint']


def test_a_run_that_goes_on_says_nothing_twice(run, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(run, folder)
  shutil.rmtree(folder / 'checkpoints' / '6')
  with (folder / 'samples.jsonl').open('a') as file:
    file.write('{"step": 6, "prom')  # a kill tears a line
  loop.train(make(), folder)
  assert samples(folder) == samples(run)
  loop.train(make(), folder)  # finished
  assert samples(folder) == samples(run)


def test_a_prompt_of_a_run_on_chats_is_what_a_user_says(
  tmp_path, monkeypatch, capsys
):
  chats = tmp_path / 'chats.jsonl'
  one = {'prompt': 'Who are you?', 'answer': 'A model.' * 9}
  lines = (json.dumps(one | {'id': n}) + '\n' for n in range(200))
  chats.write_text(''.join(lines))
  seen, start = [], generate.start

  def watched(model, params, tokenizer, ids, options, *rest):
    seen.append((tokenizer.decode(ids[0]), options))
    return start(model, params, tokenizer, ids, options, *rest)

  monkeypatch.setattr(generate, 'start', watched)
  data = {'train': (f'jsonl:{chats}',), 'template': 'alpaca', 'seq_len': 64}
  config = make(('Who?',), data, num_steps=2, eval_every=0)
  loop.train(config, tmp_path / 'run')
  ((prompt, options),) = seen
  assert prompt.endswith('### Instruction:\nWho?\n\n### Response:\n')
  assert options.is_answer
  ((line),) = samples(tmp_path / 'run')
  assert line['prompt'] == 'Who?'
  shown = capsys.readouterr().err
  assert f"step 2  'Who?': {line['text']!r}" in shown.replace('\n', '')
