"""Tasks of lm-evaluation-harness, and our adaptor beside plain passes."""

import functools
import json
from pathlib import Path
import types

import jax
import numpy as np
import pytest

from satjax import cli, errors, sharding
from satjax.config.groups import MeshConfig
from satjax.data import tokenizers
from satjax.generation import generate
from satjax.interop import huggingface, lm_eval, lm_eval_tasks
from satjax.model import decoder
from tests import models
from tests.data import subword_samples
from tests.interop import lm_eval_samples

pytest.importorskip('lm_eval')

MODEL = models.make(vocab_size=258, num_layers=1)
PARAMS = models.make_params(MODEL)
TOKENIZER = tokenizers.ByteTokenizer()
LENGTH = 48  # that the model reads
LONG = 'the quick brown fox jumps over the lazy dog, and is off again'


def mesh_of(devices):
  shape = MeshConfig(data=-1, fsdp=1, tensor=1)
  return sharding.make_mesh(shape, jax.devices()[:devices])


def adaptor(batch_tokens=9999, **changes):
  how = {'max_length': LENGTH, 'mesh': mesh_of(1)} | changes
  lm = lm_eval.adaptor(MODEL, PARAMS, TOKENIZER, **how)
  lm._batch_tokens = batch_tokens
  return lm


def evaluate(tasks, folder, **options):
  lm = adaptor(max_length=96)
  return lm_eval_tasks.evaluate_tasks(lm, tasks, task_dir=folder, **options)


def requests(*arguments):
  """As much of the harness's requests as a model looks at."""
  return [types.SimpleNamespace(args=args) for args in arguments]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return lm_eval_samples.write(tmp_path_factory.mktemp('lm_eval') / 'tasks')


@functools.cache
def program():
  return jax.jit(functools.partial(decoder.apply, MODEL))


def plain(ids, last):
  """Log-probability of the `last` tokens, in one pass over one row."""
  tokens = np.zeros((1, LENGTH), np.int32)
  tokens[0, : len(ids) - 1] = ids[:-1]
  logits = np.asarray(program()(PARAMS, {'tokens': tokens}), np.float64)[0]
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  places = np.arange(len(ids) - 1 - last, len(ids) - 1)
  targets = np.array(ids[-last:])
  return logp[places, targets].sum(), all(logits[places].argmax(-1) == targets)


def random_requests():
  """Of all lengths; some differ in the last token, some are too long."""
  random = np.random.default_rng(0)
  found = []
  for number in range(40):
    context = random.integers(0, 256, random.integers(24, 70)).tolist()
    size = (1, 2, LENGTH)[number % 3] if number < 6 else random.integers(1, 9)
    ids = random.integers(0, 256, size).tolist()
    found.append((context, ids))
    if number % 5 == 0:
      found += [(context, ids[:-1] + [last]) for last in (3, 4)]
      # The same row of tokens, cut elsewhere.
      found.append((context + ids[:1], [*ids[1:], 5]))
  # Follows the model, so that something is greedy.
  ids = [65]
  for _ in range(4):
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(ids)] = ids
    logits = program()(PARAMS, {'tokens': tokens})
    ids.append(int(logits[0, len(ids) - 1].argmax()))
  return [*found, (ids[:1], ids[1:]), (ids[:3], ids[3:]), (ids[:1], ids[1:3])]


@pytest.mark.parametrize(('devices', 'batch_tokens'), [(1, 9999), (8, 400)])
def test_batches_score_as_one_row_does(devices, batch_tokens):
  asked = random_requests()
  lm = adaptor(mesh=mesh_of(devices), batch_tokens=batch_tokens)
  found = lm._score(asked, 'log-likelihoods')
  expected = [
    plain((context + ids)[-(LENGTH + 1) :], len(ids)) for context, ids in asked
  ]
  assert [pair[1] for pair in found] == [pair[1] for pair in expected]
  assert {pair[1] for pair in found} == {True, False}
  np.testing.assert_allclose(
    [pair[0] for pair in found], [pair[0] for pair in expected], rtol=1e-5
  )


def test_requests_that_differ_in_the_last_token_share_a_pass(monkeypatch):
  passes = []
  forward = lm_eval._forward
  monkeypatch.setattr(
    lm_eval, '_forward', lambda *a, **b: passes.append(a) or forward(*a, **b)
  )
  lm = adaptor(batch_tokens=LENGTH)  # a single row
  asked = [(list(range(40)), [1, last]) for last in range(64)]
  assert len(set(lm._score(asked, 'log-likelihoods'))) == 64
  assert len(passes) == 1


@pytest.mark.parametrize('devices', [1, 4])
def test_batches_hold_every_row_once_in_few_shapes(devices):
  lengths = np.random.default_rng(0).integers(1, 300, 500).tolist()
  lengths.sort(reverse=True)
  seen, shapes = [], set()
  for part, (rows, length) in lm_eval.batches(lengths, 4096, mesh_of(devices)):
    inside = lengths[part]
    seen += inside
    shapes.add((rows, length))
    assert len(inside) <= rows and rows % devices == 0
    assert max(inside) <= length and rows * length <= 4096
  assert seen == lengths
  assert len(shapes) <= 10


def test_a_padded_length_is_at_most_half_longer():
  for length in range(16, 3000):
    padded = generate.bucket(length)
    assert length <= padded <= 1.5 * length


def test_rolling_scores_every_token_once():
  texts = ['', 'a', 'b' * LENGTH, 'the quick brown fox ' * 7]
  found = adaptor().loglikelihood_rolling(requests(*[(t,) for t in texts]))
  for text, total in zip(texts, found):
    ids = TOKENIZER.encode(text).tolist()
    expected = 0.0
    for begin in range(0, len(ids), LENGTH):
      end = min(begin + LENGTH, len(ids))
      # The last window is full too, with what came before.
      window = ([TOKENIZER.bos_id] + ids)[max(0, end - LENGTH) : end + 1]
      expected += plain(window, end - begin)[0]
    assert total == pytest.approx(expected, rel=1e-5)


def test_what_has_no_context_follows_a_begin_of_text():
  (found,) = adaptor().loglikelihood(requests(('', 'abc')))
  ids = [TOKENIZER.bos_id, *b'abc']
  assert found[0] == pytest.approx(plain(ids, 3)[0], rel=1e-5)


@pytest.mark.parametrize('text', ['', 'x' * (LENGTH + 1)])
def test_refuses_continuations_that_can_not_be_scored(text):
  with pytest.raises(errors.DataError, match=f'from 1 to {LENGTH}'):
    adaptor().loglikelihood(requests(('a', text)))


def test_continues_as_generate_does():
  prompts = [
    '',
    'import ',
    'x' * 31,
    'def f(x):\n  return x + 1\n\nprint(f(1))',
  ]
  ids = [[*prompt.encode()] or [TOKENIZER.bos_id] for prompt in prompts]

  def plain(stop):
    options = generate.Options(max_tokens=12, stop=stop)
    mesh = mesh_of(1)  # and the shapes of the test below: compiled once
    with jax.sharding.set_mesh(mesh):
      placed = jax.device_put(PARAMS, sharding.tree_sharding(mesh, PARAMS))
      return generate.run(
        MODEL, placed, TOKENIZER, ids, options, mesh=mesh
      ).texts

  first, second, *_ = plain(())
  stop = [first[5:8], second[9]]
  expected = plain(stop)
  assert sorted(map(len, expected))[1] < 10
  asked = {'until': stop, 'max_gen_toks': 12, 'do_sample': False}
  lm = adaptor(mesh=mesh_of(8), batch_tokens=300)
  found = lm.generate_until(requests(*[(prompt, asked) for prompt in prompts]))
  assert found == expected
  assert len(set(found)) == 4


def test_all_ends_of_a_model_end_what_it_continues():
  asked = {'until': [], 'max_gen_toks': 12, 'do_sample': False}
  (text,) = adaptor().generate_until(requests(('import ', asked)))
  end = text.encode()[3]
  assert len(text) > 4 and end != TOKENIZER.eos_id
  lm = adaptor(end_ids=(TOKENIZER.eos_id, end))
  (found,) = lm.generate_until(requests(('import ', asked)))
  assert found == text[: text.index(chr(end))]


def test_generates_by_what_a_task_says():
  greedy = {'until': ['zq'], 'max_gen_toks': 12, 'do_sample': False}
  sampled = greedy | {'do_sample': True, 'temperature': 3.0}
  asked = requests(
    ('some text', greedy),
    ('some text', sampled),
    ('', greedy),
    (LONG, greedy),
  )
  lm = adaptor()
  first, other, empty, cut = lm.generate_until(asked)
  assert first != other
  ids = [[*b'some text'], [TOKENIZER.bos_id], [*LONG.encode()[12 - LENGTH :]]]
  options = generate.Options(max_tokens=12)
  alone = dict(lm._continue(dict(enumerate(ids)), options))
  assert [first, empty, cut] == [alone[i] for i in range(3)]


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    ({'num_beams': 4}, 'num_beams'),
    ({'max_gen_toks': LENGTH}, f'from 1 to {LENGTH - 1}'),
    ({}, 'asks for 256 new tokens'),
  ],
)
def test_refuses_what_it_can_not_generate(asked, message):
  with pytest.raises(errors.ConfigError, match=message):
    adaptor().generate_until(requests(('a', asked)))


def test_begins_texts_where_the_files_of_an_export_do(tmp_path):
  described = lm_eval_samples.begins()
  (tmp_path / 'begins.json').write_text(json.dumps(described))
  specs = subword_samples.write(tmp_path)
  specs['begins'] = f'hf:{tmp_path}/begins.json'
  begins = {}
  for kind, spec in specs.items():
    tokenizer = tokenizers.get_tokenizer(spec)
    encode, prefix = lm_eval.reader(tokenizer)
    other = {'byte': '<begin>', 'bytelevel': '<|endoftext|>'}
    assert tokenizer.token(prefix) == other.get(kind, '<s>')
    plain_ids = tokenizer.encode('import os').tolist()
    assert encode('import os', False) == plain_ids
    begins[kind] = encode('import os') == [prefix, *plain_ids]
    assert begins[kind] or encode('import os') == plain_ids
  assert {kind for kind, yes in begins.items() if yes} == {
    'llama',
    'sentencepiece',
    'begins',
  }
  encode, _ = lm_eval.reader(tokenizers.get_tokenizer(specs['begins']))
  assert encode('<s>import os') == encode('import os')


@pytest.mark.parametrize('begin', [None, '<|im_start|>'])
def test_a_begin_that_no_text_has_is_read_before_no_context(tmp_path, begin):
  """As of Qwen and SmolLM2: the end, or the begin that is only called so."""
  tokenizer = tokenizers.get_tokenizer(lm_eval_samples.named(tmp_path, begin))
  encode, prefix = lm_eval.reader(tokenizer)
  assert encode('import os') == tokenizer.encode('import os').tolist()
  assert tokenizer.token(prefix) == (begin or '<|im_end|>')


def test_three_kinds_of_tasks(folder):
  found = evaluate(lm_eval_samples.TASKS, folder)
  metrics = {name: {*values} for name, values in found['results'].items()}
  assert metrics == {
    'choices': {'acc', 'acc_stderr', 'acc_norm', 'acc_norm_stderr'},
    'letters': {'acc', 'acc_stderr'},
    'finish': {'exact_match', 'exact_match_stderr'},
    'pages': {'word_perplexity', 'bits_per_byte'},
  }
  assert found['num_examples'] == dict.fromkeys(lm_eval_samples.TASKS, 7)
  json.dumps(found, allow_nan=False)
  shown = lm_eval_tasks.render(found)
  assert len(shown.splitlines()) == 2 + 6


def test_counts_the_right_choices(folder):
  """`choices` has acc by hand: the likeliest ending, by sum of log-probs."""
  lm = adaptor(max_length=96)
  examples = [json.loads(line) for line in (folder / 'choices.jsonl').open()]
  pairs = [
    (e['text'], f' {choice}') for e in examples for choice in e['choices']
  ]
  scores = np.array(lm.loglikelihood(requests(*pairs)))[:, 0].reshape(-1, 3)
  sizes = np.array([[len(c) for c in e['choices']] for e in examples])
  answers = [e['answer'] for e in examples]
  found = evaluate(['choices'], folder)['results']['choices']
  assert found['acc'] == pytest.approx(np.mean(scores.argmax(1) == answers))
  right = (scores / sizes).argmax(1) == answers
  assert found['acc_norm'] == pytest.approx(np.mean(right))


def test_limit_and_examples_before(folder):
  found = evaluate(['pages', 'letters'], folder, limit=2, num_fewshot=1)
  assert found['num_examples'] == {'pages': 2, 'letters': 2}
  assert found['num_fewshot'] == {'pages': 1, 'letters': 1}
  with pytest.raises(errors.ConfigError, match='limit 0'):
    evaluate(['pages'], folder, limit=0)


def test_the_command_prints_one_object(folder, tmp_path, capsys):
  huggingface.save(
    tmp_path / 'model', MODEL, PARAMS, tokenizer=TOKENIZER, seq_len=96
  )
  code = cli.main(
    ['evaluate', f'--model={tmp_path}/model', '--tasks=choices,letters']
    + [f'--task_dir={folder}', '--limit=3', '--num_fewshot=1']
  )
  *lines, last = capsys.readouterr().out.splitlines()
  assert code == 0
  found = json.loads(last)
  assert found['model'] == f'{tmp_path}/model'
  assert found['num_examples'] == {'choices': 3, 'letters': 3}
  assert found['num_fewshot'] == {'choices': 1, 'letters': 1}
  options = {'limit': 3, 'num_fewshot': 1}
  expected = evaluate(['choices', 'letters'], folder, **options)
  assert found['tasks'] == expected['results']
  assert f'{found["tasks"]["letters"]["acc"]:.6g}' in lines[-1]


def test_options_of_tasks_need_tasks(capsys):
  assert cli.main(['evaluate', '--model=x', '--limit=3']) == 78
  assert '--limit needs --tasks' in capsys.readouterr().err


def test_gstack_is_the_mean_of_seven_and_wikitext(tmp_path):
  package = Path(pytest.importorskip('lm_eval').__file__).parent
  from lm_eval import tasks as library

  own = Path(lm_eval_tasks.__file__).parent / 'tasks'
  places = [
    own,
    *(
      package / 'tasks' / name
      for name in (
        'lambada',
        'arc',
        'logiqa',
        'piqa',
        'sciq',
        'winogrande',
        'wikitext',
      )
    ),
  ]
  stock = library.TaskManager(include_path=places, include_defaults=False)
  names = {*lm_eval_tasks._needed('gstack', stock.task_index)} - {'gstack'}
  assert len(names) == 8 and names <= {*stock.all_subtasks}
  # The group with tasks of our own behind its names.
  folder = lm_eval_samples.write(tmp_path / 'x', ['letters', 'pages'])
  for number, name in enumerate(sorted(names)):
    kind = 'pages' if name == 'wikitext' else 'letters'
    text = (folder / f'{kind}.yaml').read_text()
    text = text.replace(f'task: {kind}', f'task: {name}')
    text = text.replace(
      'test_split: test',
      f'test_split: test\nprocess_docs: !function rows.from_{number}',
    )
    (folder / f'{name}.yaml').write_text(text)
  (folder / 'rows.py').write_text(
    '\n'.join(
      f'def from_{n}(docs):\n  return docs.select(range({n % 3}, 7))\n'
      for n in range(8)
    )
  )
  results = evaluate(['gstack'], folder)['results']
  seven = [results[name]['acc'] for name in names - {'wikitext'}]
  assert results['gstack::mean']['acc'] == pytest.approx(np.mean(seven))
  assert {*results} == names | {'gstack::mean'}


BROKEN = {
  'file': ('{test: ', '{test: /no/such/'),
  'split': ('test_split: test', 'test_split: train'),
  'field': ('{{text}}', '{{body}}'),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_a_task_that_can_not_be_loaded_is_one_error(kind, tmp_path):
  folder = lm_eval_samples.write(tmp_path / 'tasks', ['letters'])
  file = folder / 'letters.yaml'
  file.write_text(file.read_text().replace(*BROKEN[kind]))
  with pytest.raises(errors.ConfigError, match='tasks letters cannot be load'):
    evaluate(['letters'], folder)


def test_a_folder_of_tasks_has_to_be_there(folder):
  with pytest.raises(errors.ConfigError, match='is no folder'):
    evaluate(['choices'], folder / 'none')


@pytest.mark.slow
def test_unknown_tasks_and_data_out_of_reach(folder):
  """Slow: the harness reads its 14,000 YAML files."""
  with pytest.raises(errors.ConfigError, match='did you mean letters'):
    evaluate(['choices', 'leters'], folder)
  with pytest.raises(errors.ConfigError, match='connect, or set HF_HOME'):
    evaluate(['arc_easy'], folder)


@pytest.mark.parametrize(
  'form', ['{}', '[{}]', '{{train: {}}}', '{{train: [{}]}}']
)
def test_data_files_lie_beside_the_yaml(tmp_path, monkeypatch, form):
  """From any folder, in folders below, and in groups; globs too."""
  inner = tmp_path / 'tasks' / 'inner'
  inner.mkdir(parents=True)
  (inner / 'a.json').write_text('{"text": "b", "rest": "c"}')
  (inner / 'own.yaml').write_text(
    'task: own\ndataset_path: json\noutput_type: loglikelihood\n'
    f'dataset_kwargs:\n  data_files: {form.format("a.js*")}\n'
    f'  cache_dir: {tmp_path}/cache\n'
    'test_split: train\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{rest}}"\n'
  )
  (inner / 'all.yaml').write_text('group: all\ntask: [own]\n')
  (tmp_path / 'other').mkdir()
  monkeypatch.chdir(tmp_path / 'other')
  (tmp_path / 'other' / 'a.json').write_text('{"wrong": 1}')
  for name in ('own', 'all'):
    found = evaluate([name], '../tasks', samples=tmp_path / 'samples.jsonl')
    assert found['num_examples']['own'] == 1
  (line,) = (tmp_path / 'samples.jsonl').read_text().splitlines()
  sample = json.loads(line)
  assert (sample['task'], sample['doc']) == ('own', {'text': 'b', 'rest': 'c'})
  assert {'acc', 'perplexity'} <= sample.keys()
