"""Commands as a user types them, in this process and in one of their own."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from satjax import cli
from satjax.data import tokenizers
from satjax.generation import generate
from satjax.interop import models, small_files
from satjax.train import subjects
from tests import options

ROOT = pathlib.Path(__file__).parents[1]
QUICK = (
  '--config=configs/tiny.py',
  '--config.model.scan=False',
  '--config.sparsity.head_rate=0.0',
  '--config.sparsity.channel_rate=0.0',
  '--config.train.num_steps=6',
  '--config.train.batch_size=8',
  '--config.growth.hops=()',
  '--config.optimizer.warmup_steps=2',
  '--config.train.eval_every=0',
  '--config.data.test=0.1',
)


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('cli') / 'run'
  os.chdir(ROOT)
  assert cli.main(['train', *QUICK, f'--workdir={path}']) == 0
  return path


@pytest.fixture(scope='module')
def model_dir(workdir):
  out = workdir.parent / 'model'
  assert cli.main(['export', f'--workdir={workdir}', f'--out={out}']) == 0
  return out


def test_evaluate_ends_with_one_json_object(workdir, capsys):
  command = ['evaluate', f'--workdir={workdir}', '--batches=2']
  assert cli.main(command) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  values = result['eval']['stdlib:code']
  assert result['step'] == 6
  assert values['perplexity'] == pytest.approx(np.exp(values['loss']))
  assert values['bits_per_byte'] == pytest.approx(
    values['loss'] / np.log(2), rel=1e-2
  )


def test_the_test_split_is_logged_and_read_again(workdir, model_dir, capsys):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  (logged,) = [
    r for r in map(json.loads, lines) if 'test/stdlib:code/loss' in r
  ]
  assert logged['step'] == 6
  losses = {}
  for split, name in (('held_out', 'eval'), ('test', 'test')):
    command = ['evaluate', f'--workdir={workdir}', f'--split={split}']
    # As many as while training.
    assert cli.main([*command, '--batches=4']) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result) == {'step', name}
    losses[split] = result[name]['stdlib:code']['loss']
    assert losses[split] == pytest.approx(
      logged[f'{name}/stdlib:code/loss'], rel=1e-6
    )
  assert losses['test'] != losses['held_out']
  command = ['evaluate', f'--model={model_dir}', '--split=test', '--batches=4']
  assert cli.main(command) == 0  # the export remembers
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  loss = result['test']['stdlib:code']['loss']
  assert loss == pytest.approx(losses['test'], rel=1e-5)


def test_a_run_and_its_export_have_the_same_loss(workdir, model_dir, capsys):
  found = []
  for what in (f'--workdir={workdir}', f'--model={model_dir}'):
    assert cli.main(['evaluate', what, '--batches=4']) == 0
    found.append(json.loads(capsys.readouterr().out.splitlines()[-1])['eval'])
  run, exported = found
  assert exported['stdlib:code'] == pytest.approx(run['stdlib:code'], rel=1e-5)


def test_tasks_meet_a_run_as_its_export(workdir, model_dir, monkeypatch):
  of_base = small_files.Settings({'max_position_embeddings': 4096})
  for base, length in ((small_files.Settings(), 64), (of_base, 4096)):
    monkeypatch.setattr(small_files, 'base_of', lambda *_, base=base: base)
    assert subjects.of_run(workdir).max_length == length
  byte = tokenizers.ByteTokenizer()
  model = models.load(model_dir, byte)
  exported = subjects.of_model(model_dir, model, byte)
  assert exported.max_length == 64
  assert exported.end_ids == subjects.of_run(workdir).end_ids != ()


def test_chats_are_read_as_the_model_directory_says(workdir, tmp_path, capsys):
  """One that satjax did not export, and no --template."""
  out, chats = tmp_path / 'model', tmp_path / 'chats.jsonl'
  assert cli.main(['export', f'--workdir={workdir}', f'--out={out}']) == 0
  (out / 'satjax.json').unlink()
  turns = ('user', 'What is x?'), ('assistant', 'A letter.')
  messages = [{'role': role, 'content': text} for role, text in turns]
  chats.write_text(json.dumps({'messages': messages}))
  options = f'--model={out}', f'--data=jsonl:{chats}'
  found = evaluated(capsys, *options)
  assert found == evaluated(capsys, *options, '--template=auto')
  assert found['tokens'] == len('A letter.') + 1


def evaluated(capsys, *options):
  assert cli.main(['evaluate', *options]) == 0
  *lines, last = capsys.readouterr().out.splitlines()
  ((source, values),) = json.loads(last)['eval'].items()
  read = f'{values["documents"]} of {values["of_documents"]} documents'
  assert lines[-1].startswith(source) and read in lines[-1]
  return values


def test_a_file_of_its_own_is_read_whole(workdir, model_dir, tmp_path, capsys):
  texts = [f'{i} is a number. ' * (i % 9 + 1) for i in range(12)]
  rows = [json.dumps({'text': text}) for text in texts]
  (tmp_path / 'own.jsonl').write_text('\n'.join(rows))
  options = [f'--data=jsonl:{tmp_path}/own.jsonl', '--packing=best_fit']
  file = tmp_path / 'scores.jsonl'
  found = [
    evaluated(capsys, what, *options, f'--log_samples={file}')
    for what in (f'--workdir={workdir}', f'--model={model_dir}')
  ]
  assert found[0] == pytest.approx(found[1], rel=1e-5)
  assert found[0]['documents'] == found[0]['of_documents'] == 12
  assert found[0]['tokens'] == sum(len(text) + 1 for text in texts)
  scores = list(map(json.loads, file.read_text().splitlines()))
  assert {s['document'] for s in scores} == {
    f'own.jsonl#{i}' for i in range(1, 13)
  }
  assert [s['tokens'] for s in scores] == [len(text) + 1 for text in texts]
  nats = sum(s['loss'] * s['tokens'] for s in scores)
  assert nats / found[0]['tokens'] == pytest.approx(found[0]['loss'], rel=1e-6)
  # Documents by themselves do not depend on each other, nor on the scores.
  (tmp_path / 'own.jsonl').write_text(rows[4])
  alone = evaluated(capsys, f'--model={model_dir}', *options)
  assert alone['loss'] == pytest.approx(scores[4]['loss'], rel=1e-5)


def test_how_much_is_read_can_be_asked_for(workdir, tmp_path, capsys):
  for i in range(40):
    (tmp_path / f'{i}.txt').write_text(f'text {i} ' * 9)
  run = [f'--workdir={workdir}', f'--data=text:{tmp_path}/*.txt']
  whole, half, short = (
    evaluated(capsys, *run, *more)
    for more in ([], ['--held_out=0.5'], ['--seq_len=16', '--batches=1'])
  )
  assert whole['documents'] == 40 and 5 < half['documents'] < 35
  assert short['tokens'] < whole['tokens'] / 5
  for option, message in (
    ('--held_out=0', 'held_out 0.0; allowed: above 0'),
    ('--seq_len=1', 'seq_len = 1; allowed: from 2'),
    ('--batches=0', 'batches 0 must be at least 1'),
    ('--batches=-1', 'batches -1 must be at least 1'),
    ('--tasks=piqa', '--data is of text'),
  ):
    assert cli.main(['evaluate', *run, option]) == 78
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('temperature', ['0', '0.8'])
def test_generate_continues_and_repeats_itself(
  workdir, model_dir, capsys, temperature
):
  texts = []
  for source in (f'--workdir={workdir}', f'--model={model_dir}'):
    options = ['--prompt=import ', '--max_tokens=12', '--seed=3']
    code = cli.main(
      ['generate', source, *options, f'--temperature={temperature}']
    )
    assert code == 0
    texts.append(capsys.readouterr().out)
  assert texts[0].startswith('import ') and len(texts[0]) > len('import \n')
  assert texts[0] == texts[1]


def test_generate_continues_several_prompts_up_to_a_stop(workdir, capsys):
  run = ['generate', f'--workdir={workdir}', '--max_tokens=12']
  run += ['--temperature=0.9', '--top_p=0.95']
  assert cli.main([*run, '--prompt=import ', '--prompt=x']) == 0
  both = capsys.readouterr().out
  assert cli.main([*run, '--prompt=import ']) == 0
  first = capsys.readouterr().out
  assert both.startswith(first + '\n' + 'x')
  cut = first[len('import ') + 2 : len('import ') + 4]
  stop = [f'--stop={cut}', '--stop=no such']
  assert cli.main([*run, '--prompt=import ', *stop]) == 0
  text = capsys.readouterr().out[len('import ') : -1]
  assert cut not in text and first[len('import ') :].startswith(text)
  assert cli.main([*run, '--stop=']) == 78
  assert 'none of them empty' in capsys.readouterr().err


def test_an_export_is_asked_as_its_run_and_says_what_it_is(
  workdir, model_dir, capsys
):
  texts = []
  for source in (f'--workdir={workdir}', f'--model={model_dir}'):
    chat = ['--chat', '--prompt=What is x?', '--max_tokens=12']
    assert cli.main(['generate', source, *chat]) == 0
    texts.append(capsys.readouterr().out)
  assert texts[0] == texts[1] and texts[0].strip()
  card = (model_dir / 'README.md').read_text()
  for said in ('library_name: transformers', 'stdlib:code', '6 of 6 steps'):
    assert said in card
  assert '| chat template | auto |' not in card
  assert '| eval stdlib:code |' in card and str(workdir) not in card
  out = workdir.parent / 'bare'
  command = ['export', f'--workdir={workdir}', f'--out={out}', '--no_card']
  assert cli.main(command) == 0
  assert not (out / 'README.md').exists()
  (model_dir / 'README.md').write_text('edited')
  assert cli.main(['inspect', f'--model={model_dir}']) == 0


def test_a_chat_is_told_of_an_answer_of_nothing(model_dir, capsys, monkeypatch):
  """Its first token is no end; then it may be white space, and that alone."""
  asked = ['generate', f'--model={model_dir}', '--chat', '--prompt=What is x?']
  real, how = generate.run, []

  def blank(*task):
    how.append(task[4])
    return dataclasses.replace(real(*task), texts=['\n'])

  assert cli.main([*asked, '--max_tokens=3']) == 0
  assert 'an answer is empty' not in capsys.readouterr().err
  monkeypatch.setattr(generate, 'run', blank)
  assert cli.main([*asked, '--max_tokens=3']) == 0
  assert 'an answer is empty' in capsys.readouterr().err
  assert how[0].is_answer


def test_training_goes_on_from_a_model_directory(model_dir, tmp_path, capsys):
  given = [
    *QUICK,
    f'--config.model.init_from={model_dir}',
    '--config.model.num_layers=7',
    '--config.lora.alpha=8',
  ]
  assert cli.main(['train', *given, f'--workdir={tmp_path}']) == 0
  error = capsys.readouterr().err
  assert 'model.num_layers 7 has no effect' in error and 'sets it to 2' in error
  assert 'lora.alpha 8.0 has no effect: lora.rank is 0' in error
  assert 'forgetting' in error and 'peak_lr 8e-05' in error
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['model']['num_layers'] == 2  # the directory says
  first = json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[0])
  assert first['train/loss'] < 6.1  # a fresh model starts at 6.2


def test_the_record_of_a_run_is_its_configuration(workdir, capsys):
  config = workdir / 'config.json'
  before = config.read_text()
  code = cli.main(['train', f'--config={config}', f'--workdir={workdir}'])
  assert code == 0 and config.read_text() == before
  change = '--config.train.seed=7'
  again = ['train', f'--config={config}', change, f'--workdir={workdir}']
  assert cli.main(again) == 78
  assert 'config.train.seed: 0 -> 7' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.train.num_step=3', 'did you mean config.train.num_steps?'),
    ('--config.trian.num_steps=3', 'did you mean config.train?'),
    (
      '--config.train.num_steps=abc',
      "'abc' is a str; allowed: int, at least 1",
    ),
    ('--config.train.num_steps=0', '= 0; allowed: at least 1'),
    ('--config.train.num_steps', 'write --config.train.num_steps=VALUE'),
    ('--config.optimizer.peak_lr=nan', 'nan is a float; allowed: float'),
    ('--config.model.tied=maybe', 'allowed: bool, True | False'),
    ('--config.model.vocab_size=100', 'below the 258 tokens'),
    ('--config.data.train=tape:x', 'tape:x'),
    ('--config.mesh.fsdp=3', 'config.mesh'),
    ('--config.train.batch_size=9', 'evenly'),
    ('--config.model=tiny', 'a group of keys; set them one by one'),
    ('--config=nowhere.py', 'no such file'),
  ],
)
def test_a_bad_setting_exits_with_78_and_says_what_is_allowed(
  argument, message, tmp_path, capsys
):
  given = options.changed(QUICK, argument)
  code = cli.main(['train', *given, f'--workdir={tmp_path}'])
  error = capsys.readouterr().err
  assert code == 78
  assert message in error
  assert 'Traceback' not in error


@pytest.mark.parametrize(
  ('again', 'message'),
  [
    ('--config.train.batch_size=8', 'train.batch_size is given twice'),
    ('--config=configs/base.py', '--config is given 2 times'),
  ],
)
def test_what_is_given_twice_is_refused(again, message, tmp_path, capsys):
  code = cli.main(['train', *QUICK, again, f'--workdir={tmp_path}'])
  assert code == 78
  assert message in capsys.readouterr().err


def test_an_override_apart_from_its_value_is_explained(capsys):
  command = ['plan', '--config=configs/tiny.py', '--config.train.num_steps']
  assert cli.main([*command, '100']) == 78
  error = capsys.readouterr().err
  assert 'write --config.train.num_steps=VALUE, joined' in error


@pytest.mark.parametrize(
  'text, said',
  [
    ('x = 1 / 0', 'line 3 with ZeroDivisionError'),
    ('import json; json.loads("{")', 'line 3 with JSONDecodeError'),
    ('x = (', 'line 3 with SyntaxError'),
    ('get_config = lambda: int("a")', 'line 3 with ValueError'),
    ('get_config = lambda: {}', 'get_config() gives a dict'),
    ('get_config = lambda: None', 'get_config() gives a NoneType'),
  ],
)
def test_a_config_file_that_fails_names_its_line(text, said, tmp_path, capsys):
  file = tmp_path / 'broken.py'
  file.write_text(f'from configs import base\n\n{text}\n')
  code = cli.main(['train', f'--config={file}', f'--workdir={tmp_path}'])
  assert code == 78
  assert said in capsys.readouterr().err


def test_a_configuration_is_python_or_json(tmp_path, capsys):
  assert cli.main(['plan', '--config=README.md']) == 78
  assert 'no such file, .py or .json' in capsys.readouterr().err
  (tmp_path / 'deep.json').write_text('[' * 200_000)
  assert cli.main(['plan', f'--config={tmp_path / "deep.json"}']) == 78


def test_a_run_that_never_began_does_not_claim_its_folder(tmp_path, capsys):
  train = ['train', *QUICK, f'--workdir={tmp_path}']
  for change, said in (
    ('--config.data.train=text:nothing*', 'nothing*'),
    ('--config.data.train=text:nowhere*', 'nowhere*'),
  ):
    assert cli.main([*train, change]) in (65, 78)
    assert (tmp_path / 'config.json').exists()
    error = capsys.readouterr().err
    assert said in error and 'other settings' not in error


def test_damaged_and_missing_inputs_have_their_exit_codes(tmp_path, capsys):
  train = ['train', *QUICK]
  assert cli.main(
    [*train, '--config.data.train=text:nothing*', f'--workdir={tmp_path / "a"}']
  ) in (65, 78)
  (tmp_path / 'file').write_text('')
  assert cli.main([*train, f'--workdir={tmp_path / "file"}']) == 74
  assert cli.main(['evaluate', f'--workdir={tmp_path / "none"}']) == 78
  assert cli.main(['evaluate', f'--model={tmp_path / "none"}']) == 65
  assert cli.main(['evaluate']) == 78
  assert 'Traceback' not in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(workdir, capsys):
  assert cli.main(['generate', f'--workdir={workdir}', '--step=4']) == 65
  assert 'no checkpoint of step 4' in capsys.readouterr().err


@pytest.mark.parametrize(
  'command',
  ['', 'train', 'evaluate', 'generate', 'export', 'grow', 'bench', 'plan'],
)
def test_help_explains_every_option(command, capsys):
  with pytest.raises(SystemExit) as caught:
    cli.main([*command.split(), '--help'])
  assert caught.value.code == 0
  text = capsys.readouterr().out
  assert 'exit codes' in text
  if command:
    assert f'satjax {command}' in text and '--' in text


def test_growth_is_planned_without_a_configuration(capsys, recwarn):
  assert cli.main(['plan', '--params=7e9', '--tokens=2e12']) == 0
  out, error = capsys.readouterr()
  assert '11.11B' in out and 'In our runs' in out and 'Warning: ' in out
  assert not error and not recwarn.list
  code = cli.main(['plan', '--params=7e9', '--tokens=3e11', '--factor=2'])
  assert code == 0 and '3.5B' in capsys.readouterr().out


@pytest.mark.parametrize(
  'arguments',
  [
    (),
    ('--params=7e9',),
    ('--tokens=2e12',),
    ('--factor=4',),
    ('--params=-7e9', '--tokens=2e12'),
    ('--params=7e9', '--tokens=nan'),
    ('--params=7e9', '--tokens=2e12', '--factor=1'),
    ('--params=7e9', '--tokens=2e12', '--config=configs/tiny.py'),
    ('--params=7e9', '--tokens=2e12', '--config.train.num_steps=3'),
    ('--factor=4', '--config=configs/tiny.py'),
    ('--params=7e9', '--tokens=2e12', '--topology=v5e:4x4'),
    ('--params=7e9', '--tokens=2e12', '--out=x.json'),
  ],
)
def test_a_plan_without_enough_or_with_too_much_exits_with_78(
  arguments, capsys
):
  assert cli.main(['plan', *arguments]) == 78
  out, error = capsys.readouterr()
  assert not out and error.startswith('satjax: ')
  if len(arguments) < 2:
    assert '--config=FILE' in error and '--params=N and --tokens=N' in error


def test_a_model_directory_grows_offline(model_dir, tmp_path, capsys):
  grow = ['grow', f'--model={model_dir}', f'--out={tmp_path / "deep"}']
  assert cli.main([*grow, '--layer_map=0,1,0,1']) == 0
  out = capsys.readouterr().out
  assert '| num_layers | 2 | 4 |' in out and '| 2 | 0 | new |' in out
  assert 'Largest change of a logit: ' in out
  options = ('--operator=stack', '--factor=3', '--probe=off')
  assert cli.main([*grow, *options]) == 0
  out = capsys.readouterr().out
  assert '| num_layers | 2 | 6 |' in out and 'logit' not in out
  for *wrong, said in (
    ('name --operator=NAME',),
    ('--operator=stack', 'needs one of factor and num_layers'),
    ('--operator=stack', '--factor=1.2', 'cannot grow to 2.4'),
    ('--operator=stack', '--width_factor=2', "no option 'width_factor'"),
    ('--layer_map=0,x', '--layer_map=0,x; allowed: '),
    ('--layer_map=0,2', 'layers 0 to 1'),
    ('--operator=learn', '--factor=2', 'trains its maps'),
  ):
    assert cli.main([*grow, *wrong]) == 78
    out, error = capsys.readouterr()
    assert said in error and not out, wrong
  again = ['grow', f'--model={tmp_path / "deep"}', f'--out={tmp_path / "deep"}']
  assert cli.main([*again, '--operator=stack', '--factor=2']) == 78
  assert 'choose another' in capsys.readouterr().err


def test_the_public_functions_from_a_plain_script(model_dir, tmp_path):
  """Those of the README, in a process that knows nothing of the tests."""
  script = f"""
import optax, satjax, jax, numpy as np
model = satjax.load({str(model_dir)!r})
logits = model.apply(model.params, [[1, 2, 3]])
assert logits.shape == (1, 3, 320) and logits.dtype == np.float32
deep = satjax.grow_depth(model.params, layer_map=(0, 1, 0, 1))
assert model.apply(deep, [[1, 2, 3]]).shape == (1, 3, 320)
ladder = satjax.Ladder(rate=0.5, split=2 / 3, rungs=4, num_steps=90)
assert ladder.omission_rate(0) == 0.5 and ladder.omission_rate(89) == 0.0
tx = satjax.lors(optax.adamw(3e-4), ladder=ladder)
state = tx.init(model.params)
grads = jax.tree.map(np.ones_like, model.params)
updates, state = tx.update(grads, state, model.params)
moved = np.any(np.asarray(updates['blocks']['mlp']['up']) != 0, axis=-1)
assert moved.mean() == 0.5, moved.mean()
satjax.save(model, {str(tmp_path / 'out')!r})
again = satjax.load({str(tmp_path / 'out')!r})
jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
"""
  subprocess.run([sys.executable, '-c', script], check=True, cwd=tmp_path)


@pytest.mark.parametrize('text', ['Event loop is closed', 'another'])
def test_what_is_left_of_a_save_that_failed_is_not_reported(text, monkeypatch):
  told = []
  monkeypatch.setattr(sys, '__unraisablehook__', told.append)
  cli._report(types.SimpleNamespace(exc_value=RuntimeError(text)))
  assert len(told) == (text == 'another')
