"""From one stage of a run to the next: growth, and stages with a mode.

A state in training is whole in most stages. In some modes a `frozen_base`
stands still beside it: while maps are learned, the state is theirs, and the
parameters of the old model stand aside; adapters train beside the parameters of
the model; while old layers are frozen, the state has the others alone. No
optimizer can move what it does not see.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from satjax import tree
from satjax.config.stages import Stage
from satjax.growth import apply, depth, learned
from satjax.model import decoder
from satjax.train import setup as setup_lib
from satjax.train import views
from satjax.train.setup import Setup
from satjax.train.state import TrainState
from satjax.tree import PyTree


def enter(
  setup: Setup,
  state: TrainState,
  frozen_base: PyTree,
  before: Stage,
  stage: Stage,
) -> tuple[TrainState, PyTree]:
  """What trains in `stage`, after `before` has ended.

  `state` is in training, with nothing left out of it. Returns the state that
  trains next, and what stands still beside it.
  """
  state = whole(setup, state, frozen_base, before)
  if before.mode == 'learn':
    params = setup_lib.placed(
      setup, learned.materialise, state.params, frozen_base
    )
    state = _with_fresh_moments(setup, state, params)
  if stage.operators and stage.mode != 'learn':
    key = _key(setup, stage)
    grow = functools.partial(apply.grow_tree, operators=stage.operators)
    if setup.config.growth.opt_state == 'reset':
      params = setup_lib.placed(setup, grow, state.params, key=key)
      state = _with_fresh_moments(setup, state, params)
    else:
      state = setup_lib.placed(setup, grow, state, key=key)
  return part(setup, state, stage)


def _with_fresh_moments(setup, state, params):
  opt_state = setup_lib.placed(setup, setup.tx.init, params)
  return state.replace(params=params, opt_state=opt_state)


def _key(setup, stage):
  key = jax.random.key(setup.config.train.seed)
  return jax.random.fold_in(jax.random.fold_in(key, 1), stage.start)


def part(
  setup: Setup, state: TrainState, stage: Stage
) -> tuple[TrainState, PyTree]:
  """Parts a whole state into what trains in a stage, and what stands still.

  What trains in place of the parameters begins here.
  """
  if stage.has_frozen_base:
    create = functools.partial(setup_lib.fresh_state, setup, stage)
    begun = setup_lib.placed(setup, create, _key(setup, stage))
    return begun.replace(step=state.step), state.params
  if stage.mode == 'frozen':
    return setup_lib.placed(setup, _part_of(stage), state)
  return state, None


def whole(
  setup: Setup, state: TrainState, frozen_base: PyTree, stage: Stage
) -> TrainState:
  """Inverse of `part`; maps and adapters stay what they are."""
  if stage.mode != 'frozen':
    return state
  return setup.place(_join(state, frozen_base, frozen=stage.frozen))


def forward_extra(stage: Stage, frozen_base: PyTree) -> PyTree:
  """What the forward pass gets of it."""
  if stage.mode == 'lora':
    return frozen_base, None
  return frozen_base.params if stage.mode == 'frozen' else frozen_base


def model_params(
  setup: Setup, state: TrainState, frozen_base: PyTree, stage: Stage
) -> PyTree:
  """The parameters of the model as it is now: what to evaluate or export."""
  if stage.mode == 'frozen':
    return whole(setup, state, frozen_base, stage).params
  return views.seen(stage, state.params, frozen_base, state.step)


def shapes(setup: Setup, stage: Stage) -> tuple[TrainState, PyTree]:
  """What `enter` returns, as shapes with shardings."""
  state = setup_lib.abstract_state(setup, stage)
  if stage.has_frozen_base:
    model = stage.base if stage.mode == 'learn' else stage.model
    init = functools.partial(decoder.init_params, model)
    return state, setup.place(jax.eval_shape(init, jax.random.key(0)))
  if stage.mode == 'frozen':
    return setup.place(jax.eval_shape(_part_of(stage), state))
  return state, None


def _part_of(stage):
  return functools.partial(_part, frozen=stage.frozen, trains=stage.trains)


def _part(state, *, frozen, trains):
  """Layers that train and leaves named in `trains`; and all the others.

  The second has None for what is no parameter and mirrors none.
  """

  def pick(node, stands_still):
    if not tree.is_params(node):
      return None if stands_still else node
    rows = _rows(frozen, stands_still)

    def take(path, x):
      is_stacked = depth.is_stacked(f'blocks/{path}', x.ndim)
      return jnp.take(x, rows, axis=0) if is_stacked else x

    others = {
      name: leaf
      for name, leaf in node.items()
      if name != 'blocks' and (name in trains) != stands_still
    }
    return {**others, 'blocks': tree.map_with_path(take, node['blocks'])}

  return tuple(
    jax.tree.map(
      functools.partial(pick, stands_still=stands_still),
      state,
      is_leaf=tree.is_params,
    )
    for stands_still in (False, True)
  )


@functools.partial(jax.jit, static_argnames='frozen')
def _join(active, base, *, frozen):
  places = np.argsort(
    np.concatenate([_rows(frozen, False), _rows(frozen, True)])
  )

  def join(node, other):
    if not tree.is_params(node):
      return node

    def merge(path, x, y):
      if not depth.is_stacked(f'blocks/{path}', x.ndim):
        return x
      return jnp.take(jnp.concatenate([x, y]), places, axis=0)

    blocks = tree.map_with_path(merge, node['blocks'], other['blocks'])
    return {**other, **node, 'blocks': blocks}

  return jax.tree.map(join, active, base, is_leaf=tree.is_params)


def _rows(frozen, stands_still):
  return np.flatnonzero(np.array(frozen) == stands_still)
