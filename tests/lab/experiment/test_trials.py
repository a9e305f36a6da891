"""Trials: shared between experiments, of equal cost where asked."""

import dataclasses

import pytest

from experiments import arms, scenarios
from satjax.lab.experiment import spec, trials


def make_trial(workdir, arm, scenario=None, rate=1e-3, seed=0):
  scenario = scenario or scenarios.cpt('cpu')
  return trials.make_trial(workdir, scenario, arm, rate, seed)


def test_equal_arms_of_two_experiments_share_a_folder(tmp_path):
  one = make_trial(tmp_path, spec.Arm('SAT', scenarios.SAT))
  other = make_trial(
    tmp_path, spec.Arm('rate 0.5', scenarios.rates(0.5), label={'rate': 0.5})
  )
  assert one.path == other.path
  assert one.path != make_trial(tmp_path, spec.Arm('dense', {})).path


@pytest.mark.parametrize(
  'change', [{'rate': 2e-3}, {'seed': 1}, {'arm': spec.Arm('', {}, prune=0.5)}]
)
def test_what_changes_the_run_changes_the_folder(tmp_path, change):
  plain = {'arm': spec.Arm('', {})}
  assert (
    make_trial(tmp_path, **plain).path
    != make_trial(tmp_path, **plain | change).path
  )


def test_the_folder_does_not_depend_on_where_the_workdir_is(tmp_path):
  arm = spec.Arm('', {})
  here, there = make_trial(tmp_path / 'a', arm), make_trial(tmp_path / 'b', arm)
  assert here.path.name == there.path.name


def test_a_length_scales_schedule_and_evaluations(tmp_path):
  scenario = scenarios.small_data('cpu')
  scenario.config.optimizer.update({'schedule': 'wsd', 'decay_steps': 0.2})
  whole = make_trial(tmp_path, spec.Arm('', {}), scenario).config
  half = make_trial(tmp_path, spec.Arm('', {}, length=0.5), scenario).config
  for read in (
    lambda c: c.train.num_steps,
    lambda c: c.train.eval_every,
    lambda c: c.optimizer.warmup_steps,
    lambda c: c.optimizer.decay_steps,
  ):
    assert abs(read(half) - read(whole) / 2) <= 0.5


def test_the_rate_of_the_search_scales_the_whole_schedule(tmp_path):
  config = make_trial(tmp_path, spec.Arm('', {}), rate=3e-3).config
  assert config.optimizer.peak_lr == pytest.approx(3e-3)
  assert config.optimizer.end_lr == pytest.approx(3e-4)


def test_equal_flops_is_within_a_step_of_the_budget(tmp_path):
  scenario = scenarios.growth('cpu')
  budget = make_trial(tmp_path, spec.Arm('', {}), scenario).flops
  grown = spec.Arm('', arms.deepen(scenario), equal='flops')
  run = make_trial(tmp_path, grown, scenario)
  train = run.config.train
  longer = dataclasses.replace(train, num_steps=train.num_steps + 1)
  longer = dataclasses.replace(run.config, train=longer)
  assert run.flops <= budget < trials.total_flops(longer)
  # The base was cheaper, so that more steps are left than from scratch.
  assert train.num_steps > scenario.config.train.num_steps


@pytest.mark.parametrize('changes', [{}, scenarios.SAT])
def test_total_flops_is_the_sum_over_steps(tmp_path, changes):
  from satjax.train import phases

  scenario = scenarios.growth('smoke')
  hops = arms.deepen(scenario)
  config = make_trial(tmp_path, spec.Arm('', hops | changes), scenario).config
  steps = range(config.train.num_steps)
  assert trials.total_flops(config) == pytest.approx(
    sum(phases.step_flops(config, step) for step in steps), rel=1e-12
  )


def test_a_pruned_base_is_natively_small(tmp_path):
  run = make_trial(tmp_path, spec.Arm('', {}, prune=0.5))
  model = run.config.model
  assert (model.num_heads, model.num_kv_heads, model.mlp_dim) == (4, 4, 256)
  assert run.base.path == make_trial(tmp_path, spec.Arm('', {})).base.path
  assert run.final_config.model.init_from == str(run.base.model)


def test_a_run_is_done_by_its_last_test_loss_or_its_failure(tmp_path):
  run = make_trial(tmp_path, spec.Arm('', {}))
  assert not run.is_done
  run.path.mkdir(parents=True)
  last = run.config.train.num_steps
  lines = run.path / 'metrics.jsonl'
  lines.write_text(f'{{"step": {last}, "train/loss": 2.0}}\n')
  assert not run.is_done
  with lines.open('a') as file:
    losses = '"eval/stdlib:code/loss": 2.1, "test/stdlib:code/loss": 2.0'
    file.write(f'{{"step": {last}, {losses}}}\n')
  assert run.is_done and run.failure is None
  lines.unlink()
  (run.path / 'failed.json').write_text('{"reason": "not finite"}')
  assert run.is_done and run.failure == 'not finite'


def test_what_a_scenario_leaves_open_is_chosen_for_each_arm(tmp_path):
  scenario = scenarios.cpt('cpu')
  scenario.config.sparsity.omitted_forward = 'auto'
  for changes, how in (({}, 'exact'), ({'sparsity.rescale': 'energy'}, 'skip')):
    arm = spec.Arm('', scenarios.SAT | changes)
    found = make_trial(tmp_path, arm, scenario).config.sparsity
    assert found.omitted_forward == how
