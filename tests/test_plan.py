"""What a run will do, from its configuration alone."""

import pytest

from configs import schedules, tiny
from satjax import config as config_lib
from satjax import plan
from satjax.train import phases


def make_config(**sparsity):
  config = tiny.get_config()
  config.sparsity.update(sparsity)
  return config_lib.Config.from_dict(config)


def test_the_stretches_of_the_tiny_run():
  result = plan.plan(make_config())
  found = [(s.start, s.stop, s.num_layers, s.heads) for s in result.stretches]
  assert found == [(0, 30, 2, 2.0), (30, 45, 4, 3.0), (45, 60, 4, 4.0)]
  rates = [s.omission_rate for s in result.stretches]
  assert rates == pytest.approx([0.5, 0.25, 0.0])
  assert result.stretches[-1].speedup == 1


def test_the_whole_run_adds_up():
  config = make_config()
  result = plan.plan(config)
  steps = range(config.train.num_steps)
  executed = sum(phases.step_flops(config, step) for step in steps)
  assert result.flops == pytest.approx(executed)
  shares = [(s.stop - s.start) * s.flops for s in result.stretches]
  speedups = [s.speedup for s in result.stretches]
  dense = sum(a * b for a, b in zip(shares, speedups))
  assert result.speedup == pytest.approx(dense / executed)
  assert 1 < result.speedup < max(speedups)


@pytest.mark.parametrize('name', schedules.SCHEDULES)
def test_every_schedule_has_a_plan(name):
  config = config_lib.Config.from_dict(schedules.get_config(name))
  result = plan.plan(config)
  assert result.stretches[0].start == 0
  assert result.stretches[-1].stop == config.train.num_steps
  assert (result.speedup == 1) == (name == 'linear')  # masked: no FLOPs saved
  ends_sparse = result.stretches[-1].omission_rate > 0
  assert ends_sparse == (name in ('constant', 'reversed'))
  table = plan.render(result).splitlines()
  assert 5 <= len(table) <= 30


def test_no_steps_and_no_rungs_are_lost_in_a_short_run():
  result = plan.plan(make_config(rungs=15, split=0.75))
  assert [s.stop - s.start for s in result.stretches][:2] == [30, 15]
  assert sum(s.stop - s.start for s in result.stretches) == 60
