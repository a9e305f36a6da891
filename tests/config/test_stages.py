"""Growth in a run, as far as the configuration decides it."""

import pytest

from configs import base
from satjax import errors
from satjax.config import stages
from satjax.config.run import Config

STEP = 2048  # tokens of a step of configs/base.py, 8 rows of 256


def make(*hops, **changes):
  values = base.get_config().to_dict()
  values['growth']['hops'] = hops
  for name, value in changes.items():
    group, key = name.split('__')
    assert key in values[group]
    values[group][key] = value
  return Config.from_dict(values)


def of(*hops, **changes):
  return stages.stages(make(*hops, **changes))


def test_without_growth_there_is_one_stage():
  (stage,) = of()
  assert (stage.start, stage.mode, stage.operators) == (0, 'all', ())
  assert (stage.seq_len, stage.batch_size) == (256, 8)


@pytest.mark.parametrize(
  'hop, model',
  [
    ((STEP, 'stack', 2), {'num_layers': 12}),
    ((STEP, 'stack', {'num_layers': 9}), {'num_layers': 9}),
    ((STEP, 'interpolate', 2), {'num_layers': 12}),
    ((STEP, 'partial', '12-34*3-56'), {'num_layers': 10}),
    ((STEP, 'gradual', 2), {'num_layers': 8}),
    ((STEP, 'midas', 2), {'num_layers': 8}),
    ((STEP, 'solar', 2), {'num_layers': 8}),
    ((STEP, 'llama_pro', 3), {'num_layers': 8}),
    ((STEP, 'map', (0, 1, 2, 3, 4, 5, 5)), {'num_layers': 7}),
    ((STEP, 'zero', 2), {'num_layers': 12}),
    ((STEP, 'direct', 2), {'embed_dim': 512, 'num_heads': 16, 'mlp_dim': 1536}),
    ((STEP, 'zero', {'embed_dim': 320}), {'embed_dim': 320, 'norm_eps': 8e-6}),
    ((STEP, 'length', {'factor': 2, 'rope_theta': 2e4}), {'rope_theta': 2e4}),
    (
      (STEP, (('direct', {'mlp_dim': 1024}), ('stack', 2))),
      {'mlp_dim': 1024, 'num_layers': 12},
    ),
  ],
)
def test_a_hop_opens_a_stage_with_the_grown_model(hop, model):
  first, second = of(hop)
  assert second.start == 1
  assert second.base == first.model
  assert second.mode == 'all'
  assert second.operators
  for key, value in model.items():
    assert getattr(second.model, key) == pytest.approx(value)


def test_a_stage_of_its_own_ends_by_itself():
  first, ramp, then = of(
    (STEP, 'random', {'factor': 2, 'ramp_tokens': 10 * STEP})
  )
  assert (ramp.start, ramp.mode, ramp.length) == (1, 'ramp', 10)
  assert (then.start, then.mode, then.operators) == (11, 'all', ())
  assert then.model == ramp.model != first.model


def test_maps_are_learned_in_steps_of_the_run():
  _, learn, then = of(
    (STEP, 'learn', {'factor': 2, 'steps': 7}), growth__opt_state='reset'
  )
  assert (learn.mode, learn.start, then.start) == ('learn', 1, 8)
  assert stages.restarts(
    make((STEP, 'learn', {'factor': 2, 'steps': 7}), growth__opt_state='reset')
  ) == (8,)


def test_longer_rows_are_no_new_model_to_warm_up():
  hops = (STEP, 'length', 2), (2 * STEP, 'stack', 2)
  both = (STEP, (('length', 2), ('stack', 2)))
  assert stages.restarts(make(*hops)) == (2,)
  assert stages.restarts(make(both)) == (1,)


def test_old_layers_freeze_for_some_tokens():
  freeze = {'freeze_tokens': 3 * STEP}
  _, frozen, then = of((STEP, 'stack', 2, freeze))
  assert frozen.frozen == (True,) * 6 + (False,) * 6
  assert frozen.trains == ('final_norm', 'unembed')
  assert then.start == 4
  assert then.frozen == (False,) * 12
  _, frozen, _ = of((STEP, 'llama_pro', 3, {**freeze, 'trains': 'new'}))
  assert frozen.frozen == (True, True, True, False) * 2
  assert frozen.trains == ()
  _, frozen, _ = of((STEP, 'stack', 2, freeze), model__tied=True)
  assert frozen.trains == ('final_norm',)


def test_a_stage_may_last_until_the_end():
  found = of((STEP, 'stack', 2, {'freeze_tokens': 10**9}))
  assert [stage.mode for stage in found] == ['all', 'frozen']


def test_a_run_may_grow_what_it_starts_from():
  first, second = of((0, 'llama_pro', 3, {'freeze_tokens': 5 * STEP}))[:2]
  assert (first.start, second.start) == (0, 0)
  assert stages.stage_at(make((0, 'stack', 2)), 0).model.num_layers == 12


def test_longer_rows_are_fewer():
  _, second = of((STEP, 'length', 2))
  assert (second.seq_len, second.batch_size) == (512, 4)


def test_options_may_be_written_as_pairs():
  pairs = (STEP, 'direct', (('mlp_dim', 1024), ('split', 'uneven')))
  mapping = (STEP, 'direct', {'mlp_dim': 1024, 'split': 'uneven'})
  assert of(pairs) == of(mapping)
  again = Config.from_dict(make(mapping).to_dict())
  assert again == make(mapping)


@pytest.mark.parametrize(
  'hop, said',
  [
    (1000, ['1000', 'at_tokens, operator, target']),
    ((STEP, 'stack'), ["(2048, 'stack')", 'at_tokens, operator, target']),
    ((1e3, 'stack', 2), ['1000.0']),
    ((True, 'stack', 2), ['True']),
    ((-1, 'stack', 2), ['at_tokens = -1', 'at least 0']),
    ((STEP, 'stack', 2, 3), ['3', 'freeze_tokens']),
    ((STEP, 'stack', 2, {'freeze': 1}), ['freeze', 'freeze_tokens']),
    ((STEP, 'stack', 2, {'freeze_tokens': -1}), ['-1', 'at least 0']),
    (
      (STEP, 'stack', 2, {'freeze_tokens': 1, 'trains': 'old'}),
      ["'old'", "'new'"],
    ),
    ((STEP, 'stack', True), ['factor = True', 'from 1 to below 1001']),
    ((STEP, 'stack', 0), ['factor = 0', 'from 1 to below 1001']),
    ((STEP, 'stack', 1.3), ['7.8', 'whole']),
    ((STEP, 'stack', {'num_layers': 3}), ['3', 'smaller']),
    ((STEP, 'width', 2), ["'width'", 'stack']),
    ((STEP, 'map', (0, 6)), ['layer 6', '0 to 5']),
    ((STEP, 'random', 2), ['ramp_tokens']),
    ((STEP, 'direct', 2, {'freeze_tokens': 9}), ['freeze_tokens', 'depth']),
    ((STEP, 'learn', 2), ["'grow'", "'reset'"]),
    ((STEP, 'length', 3), ['3', '8']),
    ((STEP, (('learn', 2), ('stack', 2))), ["'learn'", 'hops']),
  ],
)
def test_growth_that_can_not_work_is_refused(hop, said):
  with pytest.raises(errors.ConfigError) as caught:
    make(hop)
  text = str(caught.value)
  assert 'config.growth' in text
  for part in said:
    assert part in text


def test_a_wider_model_has_no_new_layers():
  said = refusal((STEP, 'direct', 2), growth__opt_state='reset_new')
  assert "'reset_new' is about new layers" in said


def refusal(*hops, **changes):
  with pytest.raises(errors.ConfigError) as caught:
    make(*hops, **changes)
  return str(caught.value)


def test_a_hop_inside_a_stage_of_its_own_is_refused():
  ramp = (STEP, 'random', {'factor': 2, 'ramp_tokens': 10 * STEP})
  assert 'step 5' in refusal(ramp, (5 * STEP, 'stack', 2))
  endless = (STEP, 'stack', 2, {'freeze_tokens': 10**9})
  assert 'frozen' in refusal(endless, (5 * STEP, 'stack', 2))


def test_sparsity_waits_for_the_end_of_such_a_stage():
  hop = (STEP, 'stack', 2, {'freeze_tokens': 99 * STEP})
  sparse = {'sparsity__head_rate': 0.5}
  assert 'warm_start 0.1' in refusal(hop, **sparse)
  assert make(hop, **sparse, sparsity__warm_start=0.1)


def test_rates_must_fit_every_model_of_the_run():
  hop = (STEP, 'direct', {'mlp_dim': 800})
  said = refusal(hop, sparsity__channel_rate=0.5, sparsity__shards=3)
  assert '800' in said


def test_a_schedule_that_restarts_must_fit():
  hop = (990 * STEP, 'stack', 2)
  said = refusal(hop, growth__learning_rate='restart')
  assert 'warmup_steps 50' in said
  assert '10 steps' in said


@pytest.mark.parametrize('name', ['adamw', 'adafactor'])
def test_factored_moments_can_not_follow_width(name):
  hop, keys = (STEP, 'direct', 2), {'optimizer__name': name}
  assert make(hop, growth__opt_state='reset', **keys)
  if name == 'adafactor':
    assert 'adafactor' in refusal(hop, **keys)
    assert 'frozen' not in refusal(hop, **keys)
    freeze = (STEP, 'stack', 2, {'freeze_tokens': 9})
    assert 'parted' in refusal(freeze, **keys)
