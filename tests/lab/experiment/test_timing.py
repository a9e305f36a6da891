"""Seconds of a run, from cells that were timed in turns."""

import pathlib

import numpy as np
import pytest

from experiments import arms, scenarios
from satjax.lab.bench import table
from satjax.lab.experiment import spec, timing, trials
from satjax.train import phases


def make_config(overrides, scale='smoke', **how):
  scenario = scenarios.cpt(scale)
  arm = spec.Arm('', overrides, **how)
  return trials.make_trial(pathlib.Path(), scenario, arm, 1e-3, 0).config


def test_dense_runs_have_one_cell_whatever_else_they_do():
  plain = make_config({})
  cells = timing.cells(plain)
  assert len(cells) == plain.train.num_steps
  assert len({cell.key for cell in cells}) == 1
  other = timing.cells(make_config({}, length=0.5))
  assert other[0].key == cells[0].key


def test_sparse_runs_have_a_cell_a_rung_and_one_for_refreshes():
  changes = {'sparsity.split': 0.5, 'sparsity.rungs': 2}
  config = make_config(scenarios.SAT | changes | {'sparsity.refresh_every': 4})
  cells = timing.cells(config)
  steps = [cell for cell in cells if not cell.is_refresh]
  assert len(steps) == config.train.num_steps == 16
  # At 0 and 4; the first rung begins at 8, and at 12 everything is dense.
  assert len(cells) - len(steps) == 3
  assert len({cell.key for cell in steps}) == 3
  assert steps[-1].key == timing.cells(make_config({}))[0].key


def test_importance_changes_refreshes_and_not_steps():
  def keys(importance, is_refresh):
    changes = {'sparsity.importance': importance}
    cells = timing.cells(make_config(scenarios.SAT | changes))
    return {cell.key for cell in cells if cell.is_refresh == is_refresh}

  assert keys('maxip', False) == keys('magnitude', False)
  assert keys('maxip', True) != keys('magnitude', True)


@pytest.mark.parametrize(
  'changes',
  [
    {'sparsity.omitted_forward': 'exact'},
    {'sparsity.omitted_forward': 'mean'},
    {'sparsity.dense_layers': (1, 0)},
    {'sparsity.head_rate': 0.25},
  ],
)
def test_what_changes_the_program_changes_the_cell(changes):
  first = timing.cells(make_config(scenarios.SAT))[1]
  assert timing.cells(make_config(scenarios.SAT | changes))[1].key != first.key


def test_layers_that_are_left_out_have_cells_too():
  changes = {
    'sparsity.layer_rate': 0.5,
    'sparsity.importance': {'layers': 'cyclic'},
    'sparsity.omitted_forward': {'layers': 'through'},
    'sparsity.embed': 'rest',
    'sparsity.split': 0.5,
    'sparsity.rungs': 1,
  }
  steps, refreshes = (
    [c for c in timing.cells(make_config(changes)) if c.is_refresh == is_one]
    for is_one in (False, True)
  )
  assert steps[-1].key == timing.cells(make_config({}))[0].key
  first = steps[0].config
  assert phases.phase_at(first, 0).omitted == (1,)
  assert first.sparsity.metric('layers') == 'uniform'
  assert refreshes[0].config.sparsity.metric('layers') == 'cyclic'


def grown(operator='stack', **options):
  scenario = scenarios.growth('smoke')
  arm = spec.Arm('', arms.deepen(scenario, operator, share=0.5, **options))
  return trials.make_trial(pathlib.Path(), scenario, arm, 1e-3, 0).config


def test_runs_that_grow_have_a_cell_a_model():
  config = grown()
  first, *_, last = timing.cells(config)
  assert first.config.model.num_layers * scenarios.FACTOR == 4
  assert last.config.model.num_layers == 4
  scratch = scenarios.growth('smoke')
  own = trials.make_trial(
    pathlib.Path(), scratch, spec.Arm('', {}), 1e-3, 0
  ).config
  assert last.key == timing.dense_cell(own).key != first.key
  steps = [cell.config.model.num_layers for cell in timing.cells(config)]
  hop = config.growth.hops[0][0] // config.tokens_per_step
  assert steps == [1] * hop + [4] * (config.train.num_steps - hop)


def test_stages_with_a_program_of_their_own_have_no_seconds():
  assert timing.cells(grown('random', ramp_tokens=512)) is None


def test_seconds_are_the_sum_of_steps_and_refreshes():
  config = make_config(scenarios.SAT | {'sparsity.split': 1.0})
  cells = timing.cells(config)
  ratios = {
    cell.key: {'median': 0.25 if cell.is_refresh else 0.5} for cell in cells
  }
  timed = {'cells': ratios, 'dense_seconds': 2.0}
  found = timing.seconds(config, timed)
  # A refresh before the first of every two steps: 0.5 s, then 1 s and 1 s.
  assert found == pytest.approx(sum([1.5, 1.0] * 8))


def test_new_cells_join_old_ones_which_stay():
  old = {'dense_seconds': 2.0, 'noise': 0.1, 'cells': {'a': 1, 'b': 2}}
  new = {'dense_seconds': 3.0, 'noise': 0.2, 'cells': {'a': 5, 'c': 6}}
  found = timing.merge(old, new)
  assert found['cells'] == {'a': 1, 'b': 2, 'c': 6}
  assert (found['dense_seconds'], found['noise']) == (2.0, 0.2)
  assert timing.merge(None, new) == new


def test_noise_is_that_of_a_median():
  rng = np.random.default_rng(0)
  of_one = rng.normal(1.0, 0.1, (2000, 9))
  medians = np.median(of_one, axis=1)
  found = [timing.noise(table.spread(own), 9) for own in of_one]
  assert np.median(found) == pytest.approx(np.std(medians), rel=0.3)
  assert timing.noise(table.spread(np.full(9, 1.2)), 9) == pytest.approx(0.2)


@pytest.mark.slow
def test_cells_are_timed_in_turns():
  config = make_config(scenarios.SAT)
  cells = {cell.key: cell for cell in timing.cells(config)[:2]}
  found = timing.measure(make_config({}), [*cells.values()], 2, 1)
  dense = timing.cells(make_config({}))[0].key
  assert found['cells'].keys() == {*cells, dense}
  assert found['cells'][dense]['median'] == 1.0
  assert all(cell['median'] > 0 for cell in found['cells'].values())
  assert found['dense_seconds'] > 0 and found['cores'] >= 1


@pytest.mark.parametrize('rate', [0.125, 0.25, 0.375, 0.75])
def test_a_cell_keeps_what_its_rung_keeps(rate):
  """A rung of a rate such as 1/8 is no whole number of heads."""
  config = make_config(scenarios.rates(rate), 'cpu')
  kept = {
    phases.phase_at(cell.config, 0).layers for cell in timing.cells(config)
  }
  steps = range(config.train.num_steps)
  assert kept == {phases.phase_at(config, step).layers for step in steps}
