"""What workers do: a base, and a base that neurons are cut off."""

import jax
import numpy as np
import pytest

from experiments import scenarios
from satjax import tree
from satjax.config.run import Config
from satjax.interop import models
from satjax.lab.experiment import runs, tasks
from satjax.model import decoder
from satjax.train import metrics, saved

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  scenario = scenarios.cpt('smoke')
  values = scenario.base.to_dict()
  values['train'] |= {'num_steps': 2}
  values['optimizer'] |= {'warmup_steps': 1}
  config = Config.from_dict(values)
  made = runs.Base(config, tmp_path_factory.mktemp('base'))
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
  pruned = runs.Base(base.config, base.path, prune=0.5)
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
