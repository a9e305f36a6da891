"""The checkpoints of the lowest held-out loss stay beside the newest."""

import json
import pathlib
import shlex
import shutil

import jax
import pytest

from satjax import cli, errors
from satjax.config.run import Config
from satjax.train import checkpoint, evaluation, loop, saved
from tests.train.test_checkpoint import make_state
from tests.train.test_loop import read_record, small

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = ('stdlib:code', 'stdlib:docstrings')
LOSSES = {1: 4.0, 2: 1.0, 3: 3.0, 4: None, 5: 2.0, 6: 9.0}


@pytest.fixture(scope='module', autouse=True)
def one_device():
  one = jax.devices()[:1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda: one)
    yield


def save(manager, steps):
  left = []
  for step in steps:
    record = {'held_out_loss': LOSSES[step]}
    manager.save(step, make_state(step), record)
    manager.wait()
    left.append(manager.steps())
  return left


def test_the_lowest_losses_and_the_newest_stay(tmp_path):
  manager = checkpoint.Checkpoints(tmp_path, 1, (), 2)
  assert save(manager, (1, 2, 3)) == [[1], [1, 2], [2, 3]]
  manager.close()
  # A step without a loss is no candidate, and losses outlive the process.
  again = checkpoint.Checkpoints(tmp_path, 1, (), 2)
  assert save(again, (4, 5, 6)) == [[2, 3, 4], [2, 5], [2, 5, 6]]
  assert again.best() == 2
  assert again.furthest_first()[0][0] == 6
  again.close()


def test_a_damaged_record_is_no_candidate_and_the_folder_opens(tmp_path):
  manager = checkpoint.Checkpoints(tmp_path, 3)
  save(manager, (1, 2, 3))
  manager.close()
  path = tmp_path / 'checkpoints' / '2' / 'record' / 'metadata'
  text = path.read_text()
  for damaged in (text.replace('1.0', '0.5'), text[:20]):
    assert damaged != text
    path.write_text(damaged)
    reader = checkpoint.Checkpoints(tmp_path)
    assert reader.best() == 3
    reader.close()
  shutil.rmtree(path.parent)
  again = checkpoint.Checkpoints(tmp_path, 1, (), 1)
  assert save(again, (5,)) == [[5]]
  again.close()


def test_sources_count_alike():
  assert evaluation.mean_of_sources({'a': 1.0, 'b': 4.0}) == 2.5
  assert evaluation.mean_of_sources({'a': 1.0, 'b': float('nan')}) is None


def make(**train):
  values = small(num_steps=8, eval_every=2, checkpoint_every=1).to_dict()
  values['train'] |= {'eval_batches': 1, 'keep_checkpoints': 1, 'keep_best': 2}
  values['train'] |= train
  values['data'] |= {'eval': SOURCES}
  values['optimizer'] |= {'peak_lr': 0.03, 'end_lr': 0.03}
  return Config.from_dict(values)


def kept(folder):
  return {int(p.name) for p in (folder / 'checkpoints').iterdir()}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Eight steps at a rate that goes astray, and the mean losses by step."""
  folder = tmp_path_factory.mktemp('best')
  records = loop.train(make(), folder)
  names = [f'eval/{source}/loss' for source in SOURCES]
  means = {
    r['step']: sum(r[name] for name in names) / 2
    for r in records
    if names[0] in r and r['step']
  }
  assert [*means] == [2, 4, 6, 8]
  return folder, means


def test_a_run_keeps_them(run):
  folder, means = run
  best = sorted(means, key=means.get)[:2]
  assert kept(folder) == {*best, 8}
  for step in kept(folder):
    record = read_record(folder / 'checkpoints' / str(step))
    assert record['held_out_loss'] == means[step]


def test_commands_take_the_best(run, tmp_path, capsys):
  folder, means = run
  best = min(means, key=means.get)
  assert saved.restore(folder, 'best').step == best
  name, text = f'--workdir={folder}', tmp_path / 'text.txt'
  text.write_text('to be or not to be\n')
  data = f'--data=text:{text}'
  assert cli.main(['evaluate', name, data, '--step=best']) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1])['step'] == best
  assert cli.main(['generate', name, '--step=best', '--max_tokens=2']) == 0
  out = f'--out={tmp_path / "model"}'
  assert cli.main(['export', name, '--step=best', out]) == 0
  assert f'wrote step {best} of' in capsys.readouterr().out


def test_a_run_goes_on_from_the_furthest_and_ends_alike(run, tmp_path):
  folder, means = run
  copy = tmp_path / 'run'
  shutil.copytree(folder, copy)
  # As a kill after the last of the best was saved leaves it.
  shutil.rmtree(copy / 'checkpoints' / '8')
  assert saved.restore(copy).step == max(kept(copy)) < 8
  loop.train(make(), copy)
  assert kept(copy) == kept(folder)
  ends = [read_record(f / 'checkpoints' / '8') for f in (copy, folder)]
  assert ends[0]['fingerprint'] == ends[1]['fingerprint']
  assert ends[0]['held_out_loss'] == means[8]


def test_without_a_loss_none_is_the_best(run, monkeypatch):
  monkeypatch.setattr(checkpoint.Checkpoints, 'best', lambda self: None)
  with pytest.raises(errors.DataError, match='name one by its step'):
    saved.restore(run[0], 'best')


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'eval_every': 3, 'checkpoint_every': 4},
      'do not meet before num_steps 8',
    ),
    ({'eval_every': 0}, 'one number below it for both'),
    ({'checkpoint_every': 8, 'eval_every': 8}, 'do not meet'),
  ],
)
def test_losses_and_checkpoints_that_never_meet_are_refused(changes, said):
  with pytest.raises(errors.ConfigError, match=said) as caught:
    make(**changes)
  assert caught.value.exit_code == 78


def test_nothing_to_compare_by_is_refused():
  values = make().to_dict()
  values['data'] |= {'eval': ()}
  with pytest.raises(errors.ConfigError, match=r'data\.eval is \(\)'):
    Config.from_dict(values)


@pytest.mark.slow
def test_the_page_keeps_the_best(tmp_path, monkeypatch, capsys):
  page = (ROOT / 'docs' / 'evaluate.md').read_text()
  block = next(b for b in page.split('```') if 'keep_best=2' in b)
  first, second = block.replace('\\\n', '').strip().splitlines()
  (tmp_path / 'books').mkdir()
  for number in range(3):
    text = f'It was book {number} of the three. ' * 300
    (tmp_path / 'books' / f'{number}.txt').write_text(text)
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  monkeypatch.chdir(tmp_path)
  assert cli.main(shlex.split(first)[1:]) == 0
  shown = capsys.readouterr().err
  assert 'text:books/0*.txt: evaluated on 1 of 1 documents' in shown
  assert "step 60  'It was ': " in shown
  assert cli.main(shlex.split(second)[1:]) == 0
  assert 2 <= len(kept(tmp_path / 'runs' / 'validated')) <= 4
