"""'auto' and shares of a run become numbers, by how the run begins."""

import dataclasses

import pytest

from satjax.config import defaults
from satjax.config.run import Config
from tests.config.test_run import refusal, with_values

AUTO = {
  f'optimizer.{key}': 'auto'
  for key in (
    *('schedule', 'peak_lr', 'end_lr', 'warmup_steps', 'decay_steps'),
    'weight_decay',
  )
}
FROM = {'model.init_from': 'some/model'}


def optimizer(changes):
  return Config.from_dict(with_values(AUTO | changes)).optimizer


@pytest.mark.parametrize(
  'changes, schedule, peak, warmup, decay, weight_decay',
  [
    ({}, 'cosine', 1e-3, 50, 0, 0.1),
    (FROM, 'wsd', 8e-5, 100, 200, 0.0),
    (FROM | {'model.embed_dim': 1152}, 'wsd', 4e-5, 100, 200, 0.0),
    ({'lora.rank': 4}, 'wsd', 1.28e-3, 100, 200, 0.0),
    (FROM | {'lora.rank': 4}, 'wsd', 1.28e-3, 100, 200, 0.0),
    (
      {'lora.rank': 4, 'model.embed_dim': 4096},
      *('wsd', 1.8e-4, 100, 200, 0.0),
    ),
  ],
)
def test_how_a_run_begins_chooses(
  changes, schedule, peak, warmup, decay, weight_decay
):
  found = optimizer(changes)
  assert found.schedule == schedule and found.peak_lr == peak
  assert found.end_lr == pytest.approx(peak / 10)
  assert (found.warmup_steps, found.decay_steps) == (warmup, decay)
  assert found.weight_decay == weight_decay


def test_what_is_given_stands_and_the_rest_follows():
  found = optimizer(FROM | {'optimizer.peak_lr': 3e-4, 'train.num_steps': 30})
  assert (found.peak_lr, found.end_lr) == (3e-4, pytest.approx(3e-5))
  assert (found.warmup_steps, found.decay_steps) == (3, 6)
  found = optimizer({'optimizer.schedule': 'constant'})
  assert found.end_lr == found.peak_lr and not found.decay_steps


@pytest.mark.parametrize('start', [{}, FROM])
@pytest.mark.parametrize('steps', [1, 2, 3, 7, 30, 99])
def test_no_default_refuses_a_short_run(start, steps):
  config = with_values(AUTO | start | {'train.num_steps': steps})
  found = Config.from_dict(config).optimizer
  assert found.warmup_steps + found.decay_steps <= steps
  assert found.schedule == 'cosine' or found.decay_steps


@pytest.mark.parametrize(
  'steps, warmup, decay, every',
  [(1000, 70, 300, 250), (10, 0, 3, 2), (1, 0, 1, 1)],
)
def test_shares_are_whole_steps(steps, warmup, decay, every):
  config = Config.from_dict(
    with_values(
      {
        'train.num_steps': steps,
        'train.eval_every': 0.25,
        'train.checkpoint_every': 0.25,
        'optimizer.schedule': 'wsd',
        'optimizer.warmup_steps': 0.07,
        'optimizer.decay_steps': 0.3,
      }
    )
  )
  found = config.optimizer
  assert (found.warmup_steps, found.decay_steps) == (warmup, decay)
  assert config.train.eval_every == config.train.checkpoint_every == every


@pytest.mark.parametrize('value', [1.5, -0.5, -1.0, 'half'])
def test_what_is_no_share_is_refused(value):
  said = refusal(with_values({'train.eval_every': value}))
  assert 'or a share of the run between 0 and 1' in said


@pytest.mark.parametrize(
  'steps, given, rungs', [(20, 8, 6), (1000, 8, 8), (10, 4, 3)]
)
def test_a_short_run_has_as_many_rungs_as_fit(steps, given, rungs):
  changes = {'train.num_steps': steps, 'sparsity.rungs': given}
  values = with_values(AUTO | changes | {'sparsity.head_rate': 0.5})
  config = Config.from_dict(values)
  assert config.sparsity.rungs == rungs
  said = defaults.said(values, config)
  assert said == [] if rungs == given else 'rungs' in said[0]
  dense = Config.from_dict(with_values(AUTO | changes))
  assert dense.sparsity.rungs == given


def test_a_run_goes_on_with_what_it_began_with():
  began = Config.from_dict(
    with_values({'optimizer.warmup_steps': 7, 'optimizer.weight_decay': 0.3})
  )
  values = with_values(
    AUTO
    | FROM
    | {
      'train.eval_every': 0.1,
      'train.num_steps': 3000,
      'optimizer.peak_lr': 1e-4,
      'optimizer.end_lr': 1e-5,
    }
  )
  found = Config.from_dict(defaults.as_begun(values, began))
  assert found.optimizer == dataclasses.replace(
    began.optimizer, peak_lr=1e-4, end_lr=1e-5
  )
  assert (found.train.num_steps, found.train.eval_every) == (3000, 250)


def test_a_peak_of_another_run_brings_an_end_of_its_own():
  began = Config.from_dict(with_values(AUTO | FROM))
  for peak, end in ((1e-6, 1e-7), (began.optimizer.peak_lr, 8e-6)):
    values = with_values(AUTO | FROM | {'optimizer.peak_lr': peak})
    found = Config.from_dict(defaults.as_begun(values, began)).optimizer
    assert (found.peak_lr, found.end_lr) == (peak, pytest.approx(end))


@pytest.mark.parametrize('steps, decay', [(1000, 150), (3000, 600)])
def test_a_run_of_another_length_decays_at_its_own_end(steps, decay):
  wsd = {'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 150}
  began = Config.from_dict(with_values(wsd | {'train.num_steps': 1000}))
  values = with_values(AUTO | FROM | {'train.num_steps': steps})
  found = Config.from_dict(defaults.as_begun(values, began)).optimizer
  assert (found.schedule, found.decay_steps) == ('wsd', decay)


def test_a_model_that_goes_on_is_told_what_was_chosen_and_why():
  values = with_values(AUTO | FROM | {'optimizer.weight_decay': 0.1})
  (said,) = defaults.said(values, Config.from_dict(values))
  for part in ('some/model', 'forgetting', 'peak_lr 8e-05', 'warmup_steps 100'):
    assert part in said
  assert 'weight_decay' not in said
  for nothing in (with_values(AUTO), Config.from_dict(values).to_dict()):
    assert not defaults.said(nothing, Config.from_dict(nothing))


NEURONS = {'sparsity.head_rate': 0.5, 'sparsity.channel_rate': 0.5}
LAYERS = {'sparsity.layer_rate': 0.5}


@pytest.mark.parametrize(
  'changes, given, forward, skipped',
  [
    (NEURONS | {'lora.rank': 2}, 'auto', 'skip', 'heads, mlp'),
    (
      NEURONS | LAYERS | {'lora.rank': 2},
      *({'layers': 'exact'}, ('skip', 'skip', 'exact'), 'heads, mlp'),
    ),
    (
      NEURONS | {'sparsity.rescale': 'energy'},
      *({'mlp': 'skip'}, 'skip', 'heads'),
    ),
    (LAYERS | {'sparsity.rescale': 'energy'}, 'auto', 'exact', ''),
    (NEURONS, {'heads': 'exact'}, 'exact', ''),
  ],
)
def test_axes_left_open_that_skip_are_said(changes, given, forward, skipped):
  values = with_values(changes | {'sparsity.omitted_forward': given})
  config = Config.from_dict(values)
  if not isinstance(forward, str):
    forward = tuple(zip(('heads', 'mlp', 'layers'), forward))
  assert config.sparsity.omitted_forward == forward
  said = ' '.join(defaults.said(values, config))
  assert (f"'auto' of {skipped} becomes 'skip'" in said) == bool(skipped)
