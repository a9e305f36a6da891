"""A run that is killed around growth ends, bit for bit, as if it had not been.

The process ends at a chosen place without a word to anyone: what was being
written stays half written.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from satjax.train import metrics
from tests.train import helpers

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
STEP = 4 * 32  # tokens

PROGRAM = """
import os, sys
from satjax.config import file as config_file
from satjax.train import loop, window

path, workdir, place = sys.argv[1:]
what, _, step = place.rpartition(' ')
save, grow = loop._save, window.next_stage

def at(name, now):
  if (name, str(now)) == (what, step):
    os._exit(9)

def dying_save(run, kind='checkpoints'):
  at('before saving ' + kind, run.step)
  save(run, kind)
  at('while saving ' + kind, run.step)
  run.checkpoints.wait()
  at('after saving ' + kind, run.step)

def dying_growth(setup, window, now):
  at('before growing', now)
  grown = grow(setup, window, now)
  at('after growing', now)
  return grown

loop._save, window.next_stage = dying_save, dying_growth
loop.train(config_file.load(path, []), workdir)
"""


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


def start(config, workdir, cache, place='never 0'):
  path = workdir.parent / 'config.json'
  path.write_text(json.dumps(config.to_dict()))
  environment = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
  }
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, str(path), str(workdir), place],
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stderr


def outcome(workdir, step):
  """All that was measured but for the time, and the final fingerprints."""
  records = [
    {
      name: value
      for name, value in record.items()
      if not name.startswith(('time/', 'speed/'))
    }
    for record in metrics.read(workdir)
  ]
  saved = {}
  for folder in ('checkpoints', 'before_growth', 'after_growth'):
    for path in (workdir / folder).glob('[0-9]*/record/metadata'):
      found = json.loads(path.read_text())
      saved[folder, found['step']] = found['fingerprint']
  assert ('checkpoints', step) in saved
  return records, saved


def compare(config, places, tmp_path, cache):
  for name in ('whole', 'killed'):
    (tmp_path / name).mkdir()
  code, log = start(config, tmp_path / 'whole' / 'run', cache)
  assert code == 0, log
  workdir = tmp_path / 'killed' / 'run'
  for place in places:
    code, log = start(config, workdir, cache, place)
    assert code == 9, (place, log)
  code, log = start(config, workdir, cache)
  assert code == 0, log
  last = config.train.num_steps
  whole = outcome(tmp_path / 'whole' / 'run', last)
  killed = outcome(workdir, last)
  assert killed[0] == whole[0]
  assert killed[1].keys() >= whole[1].keys()
  for place, prints in whole[1].items():
    assert killed[1][place] == prints, place
  return whole[0]


def make_config(*hops, **overrides):
  small = {
    'model__embed_dim': 32,
    'model__num_heads': 2,
    'model__num_kv_heads': 2,
    'model__mlp_dim': 48,
    'train__log_every': 1,
    'train__eval_every': 0,
    'data__eval': (),
    'train__checkpoint_every': 4,
    'train__keep_checkpoints': 2,
    'data__train': ('stdlib:docs',),
  }
  return helpers.make_config(growth__hops=hops, **(small | overrides))


def places_of(step):
  return [
    f'{when} {what} {step}'
    for what, whens in (
      ('saving before_growth', ('before', 'while', 'after')),
      ('growing', ('before', 'after')),
      ('saving after_growth', ('before', 'while', 'after')),
    )
    for when in whens
  ]


def test_a_run_that_is_killed_around_growth_ends_as_if_it_had_not_been(
  tmp_path, cache
):
  config = make_config((6 * STEP, 'stack', 2), train__num_steps=10)
  places = ['while saving before_growth 6', 'after growing 6']
  places.append('after saving after_growth 6')
  records = compare(config, places, tmp_path, cache)
  (grown,) = [r for r in records if 'growth/loss_before' in r]
  assert grown['step'] == 6


@pytest.mark.parametrize('opt_state', ['grow', 'reset'])
def test_at_every_place(opt_state, tmp_path, cache):
  config = make_config(
    (6 * STEP, 'stack', 2), train__num_steps=20, growth__opt_state=opt_state
  )
  records = compare(config, places_of(6), tmp_path, cache)
  assert any('growth/steps_to_recover' in record for record in records)


@pytest.mark.parametrize(
  'spec, overrides',
  [
    (('stack', 2, {'freeze_tokens': 4 * STEP}), {}),
    (('random', {'factor': 2, 'ramp_tokens': 4 * STEP}), {}),
    (
      ('learn', {'factor': 2, 'width_factor': 2, 'steps': 4}),
      {'growth__opt_state': 'reset', 'growth__learning_rate': 'restart'},
    ),
    (((('zero', {'width_factor': 1.5}), ('length', 2)),), {}),
    (
      ('stack', 2),
      {
        'sparsity__head_rate': 0.5,
        'sparsity__channel_rate': 0.5,
        'sparsity__refresh_every': 3,
      },
    ),
  ],
)
def test_around_growth_and_inside_its_stage(spec, overrides, tmp_path, cache):
  config = make_config(
    (6 * STEP, *spec),
    train__num_steps=14,
    train__checkpoint_every=1,
    **overrides,
  )
  places = [
    'while saving after_growth 6',
    'after saving after_growth 6',
    'after saving checkpoints 8',
    'while saving checkpoints 9',
    'after saving checkpoints 10',
    'before saving checkpoints 12',
  ]
  compare(config, places, tmp_path, cache)


LAYERS = {'sparsity__layer_rate': 0.5, 'sparsity__refresh_every': 3}


@pytest.mark.parametrize(
  'hops, overrides',
  [
    (
      (),
      {
        'sparsity__head_rate': 0.5,
        'sparsity__channel_rate': 0.5,
        'sparsity__omitted_forward': 'skip',
      },
    ),
    (
      (),
      {
        'sparsity__omitted_forward': 'through',
        'sparsity__importance': {'layers': 'cyclic'},
        'sparsity__embed': 'rest',
        'sparsity__rest': 'host',
      },
    ),
    ((), {'sparsity__omitted_forward': 'exact', 'sparsity__omitted': 'frozen'}),
    ((), {'lora__rank': 2, 'sparsity__omitted_forward': {'layers': 'through'}}),
    (((6 * STEP, 'stack', 2),), {'sparsity__importance': 'uniform'}),
  ],
  ids=['skip', 'in turn, at the host', 'exact', 'adapters', 'with growth'],
)
def test_while_layers_are_left_out(hops, overrides, tmp_path, cache):
  config = make_config(
    *hops,
    model__num_layers=4,
    train__num_steps=14,
    train__checkpoint_every=1,
    **LAYERS,
    **overrides,
  )
  places = ['after saving checkpoints 4', 'while saving checkpoints 8']
  places.append('after saving checkpoints 10')
  records = compare(config, places, tmp_path, cache)
  kept = [r['sparsity/layers_kept'] for r in records if 'train/loss' in r]
  layers = records[-1]['model/num_layers']
  assert min(kept) == 2 and kept[-1] == layers
