"""What is parked and does not stand still: steps without a gradient."""

from collections.abc import Callable
import functools

import jax.numpy as jnp

from satjax import tree
from satjax.sparsity.subnetwork import Parked
from satjax.train import step as step_lib
from satjax.train.setup import Setup
from satjax.train.state import TrainState


def moved_on(setup: Setup, parked: Parked, count: int) -> Parked:
  """What is parked, `count` steps later.

  With `rest` 'host' one parameter and its moments at a time, so that the device
  never holds all of them.
  """

  def move(state: TrainState) -> TrainState:
    how = {'tx': setup.tx, 'schedule': setup.schedule}
    later = step_lib.replay(setup.place(state), count, **how)
    return tree.map_with_path(setup.park_leaf, later)

  if setup.config.sparsity.rest == 'host':
    move = functools.partial(_one_by_one, move)
  return parked.each(move)


def _one_by_one(fn: Callable[[TrainState], TrainState], state: TrainState):
  """`fn` of a state, one parameter and its moments at a time.

  For what treats every number by itself. Scalars, such as step counts, go along
  with each, as copies: `fn` may use up what it is given.
  """
  names = {tree.param_of(path) for path in tree.flatten(state)} - {None}
  found = {}
  for name in sorted(names):

    def pick(path, leaf, name=name):
      own = tree.param_of(path)
      if own is None:
        return jnp.copy(leaf)
      return leaf if own == name else None

    found |= tree.flatten(fn(tree.map_with_path(pick, state)))
  return tree.map_with_path(lambda path, _: found[path], state)
