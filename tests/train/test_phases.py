"""The shapes of a run, step by step, as a person would work them out."""

import dataclasses
import itertools
import math

import pytest

from configs import tiny
from satjax import flops
from satjax.config import stages
from satjax.config.run import Config
from satjax.sparsity.subnetwork import Stack
from satjax.train import phases
from satjax.train.phases import Phase


def make_config(**changes):
  """configs/tiny.py with `group__key=value` changed."""
  values = tiny.get_config().to_dict()
  for name, value in changes.items():
    group, key = name.split('__')
    assert key in values[group]
    values[group][key] = value
  return Config.from_dict(values)


# 60 steps of 256 tokens; 2 layers, 4 heads, 128 channels in tiles of 16; rates
# 0.5, 0.25 and 0 from steps 0, 30 and 45; growth to 4 layers after 30 steps.
def make_phase(rung, *layers, is_sparse=True):
  """From (heads, key/value heads, channels) of each layer; all take part."""
  found = stages.stages(make_config())
  stage = next(s for s in found if s.model.num_layers == len(layers))
  omitted = (0,) * len(list(itertools.groupby(layers)))
  layers = tuple(flops.Layer(*layer) for layer in layers)
  return Phase(stage, rung, layers, omitted, is_sparse)


FIRST = make_phase(0, *[(2, 2, 64)] * 2)
SECOND = make_phase(1, *[(3, 3, 96)] * 4)
THIRD = make_phase(2, *[(4, 4, 128)] * 4, is_sparse=False)


@pytest.mark.parametrize(
  'step, phase',
  [
    (0, FIRST),
    (29, FIRST),
    (30, SECOND),
    (44, SECOND),
    (45, THIRD),
    (59, THIRD),
  ],
)
def test_phases_of_the_tiny_run(step, phase):
  assert phases.phase_at(make_config(), step) == phase


def test_phases_follow_each_other():
  config = make_config()
  assert phases.next_phase(config, 0) == SECOND
  assert phases.next_phase(config, 29) == SECOND
  assert phases.next_phase(config, 30) == THIRD
  assert phases.next_phase(config, 45) is None
  assert phases.next_phase(config, 59) is None


def test_a_phase_beyond_the_run_is_not_next():
  # The last rung would begin after the last step.
  config = make_config(sparsity__split=1.0, growth__hops=())
  assert phases.next_phase(config, 0) is None


def test_what_a_phase_keeps_by_unit():
  assert SECOND.kept == {
    'heads': (3,) * 4,
    'mlp': (96,) * 4,
    'layers': ((4,) * 4, (0,) * 4),  # all 4 of the one run of equal layers
  }
  uneven = make_phase(0, (4, 4, 128), (2, 2, 96))
  assert uneven.mean_kept == {'heads': 3.0, 'mlp': 112.0, 'layers': 2}


@pytest.mark.parametrize(
  'at_tokens, step',
  [(1, 1), (255, 1), (256, 1), (257, 2), (7679, 30), (7680, 30), (7681, 31)],
)
def test_a_growth_waits_for_the_end_of_its_step(at_tokens, step):
  config = make_config(growth__hops=((at_tokens, 'stack', 3),))
  assert [stage.start for stage in stages.stages(config)] == [0, step]
  assert phases.phase_at(config, step - 1).num_layers == 2
  assert phases.phase_at(config, step).num_layers == 6


def test_growths_multiply():
  config = make_config(growth__hops=((2560, 'stack', 2), (5120, 'stack', 3)))
  layers = [phases.phase_at(config, s).num_layers for s in (9, 10, 19, 20)]
  assert layers == [2, 4, 4, 12]


@pytest.mark.parametrize(
  'hops',
  [
    (),
    ((2560, 'stack', 2), (5120, 'stack', 3)),
    ((1, 'stack', 2), (300, 'stack', 1), (700, 'stack', 3)),
  ],
)
def test_the_depth_is_what_the_growths_make_of_it(hops):
  config = make_config(growth__hops=hops)
  for step in range(config.train.num_steps):
    factors = [factor for at, _, factor in hops if at <= 256 * step]
    layers = phases.phase_at(config, step).num_layers
    assert layers == config.model.num_layers * math.prod(factors)


def test_windows_of_the_tiny_run():
  config = make_config()
  # Every fourth step, and where a phase begins.
  expected = sorted({*range(0, 60, 4), 30, 45})
  found = [s for s in range(60) if phases.starts_window(config, s)]
  assert found == expected


def test_without_sparsity_nothing_is_left_out():
  config = make_config(
    sparsity__head_rate=0.0, sparsity__channel_rate=0.0, growth__hops=()
  )
  kinds = {phases.phase_at(config, step) for step in range(60)}
  assert kinds == {make_phase(0, *[(4, 4, 128)] * 2, is_sparse=False)}


def test_units_have_their_own_rates():
  config = make_config(sparsity__head_rate=0.0, sparsity__channel_rate=0.75)
  found = [phases.phase_at(config, step) for step in (0, 30, 45)]
  # 0.625 of 128 channels are 80 kept, five tiles.
  assert [(p.layers[0].heads, p.layers[0].channels) for p in found] == [
    (4, 32),
    (4, 80),
    (4, 128),
  ]
  assert [p.is_sparse for p in found] == [True, True, False]


def test_grouped_queries_keep_whole_multiples_of_their_groups():
  config = make_config(model__num_kv_heads=2)
  found = [phases.phase_at(config, step).layers[0] for step in (0, 30, 45)]
  # A rung at 0.25 of 4 heads in 2 groups would be 1.5 of each.
  assert [layer.heads for layer in found] == [2, 4, 4]
  assert [layer.kv_heads for layer in found] == [2, 2, 2]


def test_whole_groups_go_with_their_key_and_value():
  config = make_config(model__num_kv_heads=2, sparsity__granularity='group')
  found = [phases.phase_at(config, step).layers[0] for step in (0, 45)]
  assert [(x.heads, x.kv_heads) for x in found] == [(2, 1), (4, 2)]


def test_rounding_may_leave_a_rung_dense():
  config = make_config(sparsity__channel_multiple=64, sparsity__head_rate=0.0)
  found = [phases.phase_at(config, step) for step in (0, 30)]
  assert [p.layers[0].channels for p in found] == [64, 128]
  assert [p.is_sparse for p in found] == [True, False]


def test_layers_have_their_own_rates():
  config = make_config(
    sparsity__layer_scale=(0.0, 1.0), growth__hops=(), sparsity__rungs=1
  )
  phase = phases.phase_at(config, 0)
  assert phase.kept['heads'] == (4, 2)
  assert phase.kept['mlp'] == (128, 64)
  assert phases.stacks(phase) == (
    Stack(0, 1, ()),
    Stack(1, 2, (('heads', 2), ('kv_heads', 2), ('mlp', 64))),
  )
  assert len(phases.stacks(phases.phase_at(config, 59))) == 1


def layers_config(**changes):
  """6 layers: half of them left out at first, then fewer, then none."""
  changes = {
    'model__num_layers': 6,
    'sparsity__layer_rate': 0.5,
    'sparsity__head_rate': 0.0,
    'sparsity__channel_rate': 0.0,
    'growth__hops': (),
  } | changes
  return make_config(**changes)


def test_layers_take_part_by_the_same_ladder():
  config = layers_config()
  found = [phases.phase_at(config, step) for step in (0, 30, 45)]
  assert [phase.omitted for phase in found] == [(3,), (2,), (0,)]
  assert [phase.mean_kept['layers'] for phase in found] == [3, 4, 6]
  assert [phase.is_sparse for phase in found] == [True, True, False]
  assert [phases.stacks(phase) for phase in found] == [
    (Stack(0, 3, ()),),
    (Stack(0, 4, ()),),
    (Stack(0, 6, ()),),
  ]
  assert phases.resting(found[0]) == ((0, 3),)
  said = phases.describe(found[0])
  assert (said['sparsity/layers_kept'], said['model/num_layers']) == (3, 6)
  assert said['sparsity/omission_rate'] == 0.5


def test_runs_of_equal_layers_share_what_is_left_out():
  # Dense at both ends: 4 layers between them, of half the heads.
  config = layers_config(
    sparsity__dense_layers=(1, 1),
    sparsity__head_rate=0.5,
  )
  phase = phases.phase_at(config, 0)
  assert phase.omitted == (0, 2, 0)
  assert phase.kept['layers'] == ((1, 2, 2, 2, 2, 1), (0, 1, 1, 1, 1, 2))
  half = (('heads', 2), ('kv_heads', 2))
  assert phases.stacks(phase) == (
    Stack(0, 1, ()),
    Stack(1, 3, half),
    Stack(3, 4, ()),
  )
  assert phases.resting(phase) == ((0, 0), (0, 2), (2, 2))
  assert phase.mean_kept == {'heads': 3.0, 'mlp': 128.0, 'layers': 4}


def test_layers_cost_as_many_passes_as_they_take():
  def costs(how, **changes):
    forward = {'sparsity__omitted_forward': how}
    return phases.step_flops(layers_config(**forward, **changes), 0)

  whole = phases.step_flops(layers_config(), 59)
  skip, exact, through = map(costs, ('skip', 'exact', 'through'))
  small = layers_config(model__num_layers=3, sparsity__layer_rate=0.0)
  assert skip == phases.step_flops(small, 0)
  layers = (whole - skip) / 3  # the 3 passes of the 3 layers left out
  assert exact == pytest.approx(skip + layers)
  # Scores are multiplied by no weights: all of their backward pass stays.
  scores = 256 * 3 * 2 * 2 * 4 * 16 * 32
  assert through == pytest.approx(skip + 2 * layers + scores)
  # No gradient of tables, and of 3 at rest below, among and above 3 that train
  # a quarter in the mean needs none.
  head = 256 * 2 * 64 * 320
  rests = costs('through', sparsity__embed='rest')
  assert rests == pytest.approx(through - head - (layers + scores) / 4)


def test_layers_at_both_ends_stay_dense_also_after_a_growth():
  config = make_config(
    model__num_layers=3,
    sparsity__dense_layers=(1, 1),
    growth__hops=((2560, 'stack', 2),),
  )
  heads = [phases.phase_at(config, step).kept['heads'] for step in (0, 10)]
  assert heads == [(4, 2, 4), (4, 2, 2, 2, 2, 4)]


def test_a_linear_descent_is_a_phase_every_step():
  config = make_config(
    sparsity__shape='linear', sparsity__execution='masked', growth__hops=()
  )
  channels = [phases.phase_at(config, s).kept['mlp'][0] for s in range(60)]
  assert channels[:30] == [64] * 30
  assert channels[30:] == sorted(channels[30:])
  assert channels[-1] == 128
  assert len(set(channels)) == 5  # in multiples of 16


def test_ladders_come_from_the_config():
  by_unit = phases.ladders(make_config(sparsity__channel_rate=0.25))
  assert by_unit['heads'].rate == 0.5
  assert by_unit['mlp'].rate == 0.25
  for ladder in by_unit.values():
    assert ladder.boundaries == (30, 45)


@pytest.mark.parametrize(
  'kv_heads, phase, rate',
  [
    (4, FIRST, 0.5),
    (4, SECOND, 0.25),
    (4, THIRD, 0.0),
    # Of 4 x 2 x 16 + 3 x 128 rows, 2 heads are 64 and 64 channels are 192.
    (2, FIRST, 0.5),
    (2, make_phase(0, *[(2, 2, 128)] * 2), 64 / 512),
    (4, make_phase(0, *[(4, 4, 64)] * 2), 192 / 640),
    (4, make_phase(0, (4, 4, 128), (2, 2, 64)), 0.25),
  ],
)
def test_omission_rate_is_the_share_of_the_weights(kv_heads, phase, rate):
  config = make_config(model__num_kv_heads=kv_heads)
  stage = stages.stages(config)[0]
  phase = dataclasses.replace(phase, stage=stage)
  assert phases.omission_rate(phase) == pytest.approx(rate, abs=1e-12)


def test_flops_of_a_dense_step_are_those_of_its_tokens():
  config = make_config(
    sparsity__head_rate=0.0, sparsity__channel_rate=0.0, growth__hops=()
  )
  expected = 256 * flops.train_flops_per_token(config.model, 64)
  assert phases.step_flops(config, 0) == expected
  assert phases.step_flops(config, 59) == expected


def test_flops_of_a_step_are_those_of_its_phase():
  config = make_config(sparsity__omitted_forward='skip')
  for step, phase in ((29, FIRST), (30, SECOND), (45, THIRD)):
    expected = 256 * flops.train_flops_per_token(config.model, 64, phase.layers)
    assert phases.step_flops(config, step) == expected


def test_masked_execution_earns_nothing():
  masked = make_config(sparsity__execution='masked', growth__hops=())
  dense = make_config(
    sparsity__head_rate=0.0, sparsity__channel_rate=0.0, growth__hops=()
  )
  assert phases.step_flops(masked, 0) == phases.step_flops(dense, 0)


def test_an_exact_forward_pass_is_paid_for():
  steps = [
    phases.step_flops(
      make_config(sparsity__omitted_forward=forward, growth__hops=()), 0
    )
    for forward in ('skip', 'mean', 'exact')
  ]
  dense = phases.step_flops(make_config(growth__hops=()), 59)
  assert steps[0] == steps[1]
  assert steps[2] == pytest.approx(dense / 3 + 2 * steps[0] / 3)


def test_gradients_through_what_rests_are_paid_for():
  exact, through, whole = (
    phases.step_flops(
      make_config(sparsity__omitted_forward=forward, growth__hops=()), step
    )
    for forward, step in (('exact', 0), ('through', 0), ('skip', 59))
  )
  assert exact < through < whole
