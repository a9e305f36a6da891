"""What a run will do, from its configuration alone."""

import pytest

from configs import growth, schedules, tiny
from satjax import errors
from satjax.config import stages
from satjax.config.run import Config
from satjax.lab.plan import growth as plan_growth
from satjax.lab.plan import stretches
from satjax.lab.plan import topology as plan_topology
from satjax.train import phases


def make_config(**sparsity):
  config = tiny.get_config()
  config.sparsity.update(sparsity)
  return Config.from_dict(config)


def test_the_stretches_of_the_tiny_run():
  result = stretches.plan(make_config())
  found = [(s.start, s.stop, s.phase.num_layers) for s in result.stretches]
  assert found == [(0, 30, 2), (30, 45, 4), (45, 60, 4)]
  assert result.stretches[-1].speedup == 1
  rows = stretches.render(result).splitlines()
  assert rows[2].startswith('| 0 to 30 | 2 | 64 | all | 2 | 64 | 50.0% |')
  assert rows[3].startswith('| 30 to 45 | 4 | 64 | all | 3 | 96 | 25.0% |')


def test_rungs_show_the_layers_that_they_keep():
  config = tiny.get_config()
  config.model.num_layers = 8
  config.growth.hops = ()
  config.sparsity.update(head_rate=0.0, channel_rate=0.0, layer_rate=0.5)
  config = Config.from_dict(config)
  found = stretches.plan(config).stretches
  depths = [stretches.depth(s.phase) for s in found]
  assert depths == ['4 of 8', '6 of 8', '8']
  assert plan_topology.describe(found[0].phase).endswith(', 4 of 8 layers')
  assert '| 0 to 30 | 4 of 8 | 64 |' in stretches.render(stretches.plan(config))


def test_a_dense_plan_promises_no_speed():
  text = 'as fast as dense'
  assert text in stretches.render(stretches.plan(make_config()))
  dense = make_config(head_rate=0.0, channel_rate=0.0)
  assert text not in stretches.render(stretches.plan(dense))


def test_the_whole_run_adds_up():
  config = make_config()
  result = stretches.plan(config)
  steps = range(config.train.num_steps)
  executed = sum(phases.step_flops(config, step) for step in steps)
  assert result.flops == pytest.approx(executed)
  shares = [(s.stop - s.start) * s.flops for s in result.stretches]
  speedups = [s.speedup for s in result.stretches]
  dense = sum(a * b for a, b in zip(shares, speedups))
  assert result.speedup == pytest.approx(dense / executed)
  assert 1 < result.speedup < max(speedups)


@pytest.mark.parametrize('name', growth.GROWTH)
def test_every_growth_has_a_plan(name):
  config = Config.from_dict(growth.get_config(name))
  result = stretches.plan(config)
  assert result.stretches[-1].stop == config.train.num_steps
  assert len(result.growth) == len(config.growth.hops)
  for line in result.growth:
    assert line in stretches.render(result)
  last = stages.stages(config)[-1].model
  target = growth.get_config('scratch').model
  if name in ('direct', 'aki', 'zero_width', 'random_width', 'learn_width'):
    target.num_layers = 2
  for key in ('num_layers', 'embed_dim', 'num_heads', 'mlp_dim'):
    assert getattr(last, key) == target[key]


@pytest.mark.parametrize('name', schedules.SCHEDULES)
def test_every_schedule_has_a_plan(name):
  config = Config.from_dict(schedules.get_config(name))
  result = stretches.plan(config)
  assert result.stretches[0].start == 0
  assert result.stretches[-1].stop == config.train.num_steps
  assert (result.speedup == 1) == (name == 'linear')  # masked: no FLOPs saved
  assert result.stretches[-1].phase.is_sparse == (
    name in ('constant', 'reversed')
  )
  table = stretches.render(result).splitlines()
  assert 5 <= len(table) <= 30


def test_no_steps_and_no_rungs_are_lost_in_a_short_run():
  result = stretches.plan(make_config(rungs=15, split=0.75))
  assert [s.stop - s.start for s in result.stretches][:2] == [30, 15]
  assert sum(s.stop - s.start for s in result.stretches) == 60


def cells(text):
  """Cells of a Markdown table by the first of each line."""
  lines = [line.strip('| ').split(' | ') for line in text.splitlines()]
  return {first: rest for first, *rest in lines}


def test_the_growth_of_7b_on_300b_tokens():
  text = plan_growth.render(plan_growth.plan(7e9, 300e9))
  table = cells(text)
  assert table['before growth'] == ['1.75B', '20.48B']
  assert table['from scratch'] == ['7B', '300B']
  assert text.count('\nWarning: ') == 2  # size and FLOPs


def test_a_plan_within_what_was_published_has_no_warning():
  assert 'Warning' not in plan_growth.render(plan_growth.plan(1.1e9, 100e9))


def test_another_factor_and_a_small_model_are_planned_with_warnings():
  text = plan_growth.render(plan_growth.plan(10e6, 1e9, 2))
  assert cells(text)['before growth'] == ['5M', '100M']
  for said in ('10% of these', 'factor 2'):
    assert said in text


@pytest.mark.parametrize('sizes', [(None, None), (7e9, None), (None, 2e12)])
def test_a_growth_plan_needs_size_and_tokens(sizes):
  with pytest.raises(errors.ConfigError, match='--params=N and --tokens=N'):
    plan_growth.plan(*sizes)
