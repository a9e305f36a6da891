"""What workers do: a base, and a base that neurons are cut off."""

import jax
import numpy as np
import pytest

from experiments import arms, scenarios
from satjax import tree
from satjax.config.run import Config
from satjax.interop import models
from satjax.lab.experiment import disk, spec, tasks, trials
from satjax.model import decoder
from satjax.train import checkpoint, metrics, saved

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  scenario = scenarios.cpt('smoke')
  values = scenario.base.to_dict()
  values['train'] |= {'num_steps': 2}
  values['optimizer'] |= {'warmup_steps': 1}
  config = Config.from_dict(values)
  made = trials.Base(config, tmp_path_factory.mktemp('base'))
  tasks.make_base(made)
  return made


def test_a_base_is_what_its_run_ended_with(base):
  params = tree.flatten(models.load(base.model).params)
  trained = tree.flatten(saved.restore(base.path).params)
  assert params.keys() == trained.keys()
  for path, leaf in trained.items():
    np.testing.assert_array_equal(params[path], leaf, path)


def test_a_base_is_made_once(base):
  before = metrics.read(base.path)
  tasks.make_base(base)
  assert metrics.read(base.path) == before


def test_a_pruned_base_is_the_base_without_its_least_neurons(base):
  pruned = trials.Base(base.config, base.path, prune=0.5)
  tasks.make_pruned(pruned)
  small, whole = models.load(pruned.model), models.load(base.model)
  model = base.config.model
  assert small.config.num_heads == model.num_heads // 2
  assert small.config.mlp_dim == model.mlp_dim // 2
  tokens = np.arange(48, dtype=np.int32).reshape(2, 24)
  expected = decoder.apply(
    whole.config, _without(whole.params, small.params), {'tokens': tokens}
  )
  found = small.apply(small.params, tokens)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_grown_trial_takes_no_more_disk_than_was_said(tmp_path, monkeypatch):
  scenario, sizes = scenarios.growth('smoke'), []
  overrides = arms.deepen(scenario, 'learn', steps=2)
  overrides |= {'train.checkpoint_every': 4}
  arm = spec.Arm('', overrides, equal='flops')
  trial = trials.make_trial(tmp_path, scenario, arm, 1e-3, 0)
  need = disk.needed([trial], 1)

  def size():
    found = (p.stat() for p in trial.path.rglob('*') if p.is_file())
    return sum(512 * of.st_blocks for of in found)

  def give_back(path):
    assert all((path / kind).is_dir() for kind in checkpoint.KINDS)
    sizes.append(size())
    disk_give_back(path)

  disk_give_back = disk.give_back
  monkeypatch.setattr(disk, 'give_back', give_back)
  tasks.train(trial)
  assert trial.is_done
  assert need.peak > sizes[0] > 2 * size()
  assert need.lasting > size()


def _without(whole, small):
  """Zeros in place of every row of the whole model that the other lacks."""
  kept = tree.flatten(small)

  def mask(path, leaf):
    if leaf.shape == kept[path].shape:
      return leaf
    rows = np.array(leaf)
    for layer, some in enumerate(np.asarray(kept[path])):
      for row, values in enumerate(rows[layer]):
        if not any(np.array_equal(values, other) for other in some):
          rows[layer, row] = 0
    return rows

  return jax.tree.map(np.asarray, tree.map_with_path(mask, whole))
