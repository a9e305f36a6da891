"""What is parked beside a sub-network, and counts or moves though it rests.

The forward pass gets constants that stand for what is left out, neurons and
layers that count (`omitted_forward`), and tables of words that rest. What does
not stand still takes steps without a gradient.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.model import lora, resting
from satjax.sparsity import subnetwork
from satjax.train import phases, views
from satjax.train import step as step_lib
from satjax.train.phases import Phase
from satjax.train.setup import Setup
from satjax.train.state import TrainState
from satjax.tree import PyTree


def forward_extra(
  setup: Setup,
  phase: Phase,
  order: Mapping[str, jax.Array],
  parked: subnetwork.Parked,
  constants: PyTree,
  resting_base: PyTree = None,
  call: Callable[..., Any] = subnetwork.run,
) -> PyTree:
  """The `extra` of the plain view.

  Args:
    setup: of the run.
    phase: which sub-network.
    order: of `subnetwork.orders`.
    parked: of `subnetwork.split`.
    constants: of `refresh.Chosen`.
    resting_base: what the parked layers' adapters belong to; None: they are
      layers themselves.
    call: of `subnetwork.split`.
  """
  stacks = phases.stacks(phase)
  parts = [{} for _ in stacks]
  numbers = order.get('layers')
  for part, stack in zip(parts, stacks):
    found = call(_some_layers, constants, numbers, stack.start, stack.stop)
    part |= setup.replicate(found)
  for part, rows in zip(parts, tree.stacks(parked.rows.params)):
    _add_rows(setup.config.sparsity, part, rows)
  if numbers is not None:
    weights = parked.layers.params
    if resting_base is not None:
      weights = call(_scaled, weights, phase.stage.lora.scale)
      weights = lora.attach(weights, resting_base, None)
    _add_layers(setup, parts, phase, numbers, weights['blocks'], call)
  extra = tuple(parts) if len(parts) > 1 else parts[0]
  if not any(parts):
    extra = None
  if parked.tables is not None:
    return views.Beside(parked.tables.params, extra)
  return extra


@functools.partial(jax.jit, static_argnums=(2, 3))
def _some_layers(values, numbers, start, stop):
  """Of some layers, counted in `numbers`; None: as they lie."""
  if numbers is None:
    return jax.tree.map(lambda x: x[start:stop], values)
  return jax.tree.map(lambda x: x[numbers[start:stop]], values)


@functools.partial(jax.jit, static_argnums=1)
def _scaled(adapters, scale):
  """Adapters with their factor, so that they may be attached as they are."""

  def one(path, x):
    return scale * x if path.endswith('/columns') else x

  return tree.map_with_path(one, adapters)


def _add_rows(sparsity, part, rows):
  """Neurons that count though they rest."""
  for axis, path in tree.WRITES.items():
    name, how = path.split('/')[1], sparsity.forward(axis)
    if how not in resting.HOW:
      continue
    own = {n: x for n, x in rows[name].items() if x is not None}
    if own:
      part.setdefault(name, {})[how] = own


def _add_layers(setup, parts, phase, numbers, weights, call):
  """Numbers of the layers that train, and those that count though they rest."""
  how = setup.config.sparsity.forward('layers')
  count = phases.stacks(phase)[-1].stop
  for part, stack, (first, stop) in zip(
    parts, phases.stacks(phase), phases.resting(phase)
  ):
    part['layers'], others, before = setup.replicate(
      call(_places, numbers, count, stack.start, stack.stop, first, stop)
    )
    if how in resting.HOW and stop > first:
      own = weights
      if stop - first < sum(phase.omitted):  # all of them stay what they are
        own = call(_some_layers, weights, None, first, stop)
      part[how] = {'weights': own, 'layers': others, 'before': before}


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _places(numbers, count, start, stop, first, last):
  """Numbers of the layers that train, and that rest, and how these lie."""
  training = numbers[start:stop]
  below = training - jnp.arange(start, stop, dtype=training.dtype)
  others = numbers[count + first : count + last]
  return training, others, jnp.clip(below - first, 0, last - first)


def moved_on(
  setup: Setup, parked: subnetwork.Parked, count: int
) -> subnetwork.Parked:
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
