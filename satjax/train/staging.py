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

from satjax.config.stages import Stage
from satjax.growth import apply, learned
from satjax.model import decoder
from satjax.sparsity import subnetwork
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
    how = setup.config.growth.opt_state
    options = {'operators': stage.operators, 'resets': how == 'reset_new'}
    grow = functools.partial(apply.grow_tree, **options)
    if how == 'reset':
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
    return _part(setup, state, stage)
  return state, None


def whole(
  setup: Setup, state: TrainState, frozen_base: PyTree, stage: Stage
) -> TrainState:
  """Inverse of `part`; maps and adapters stay what they are."""
  if stage.mode != 'frozen':
    return state
  return subnetwork.merge(
    state,
    frozen_base,
    *_parting(setup, stage),
    place=setup.place_leaf,
    home=setup.place_leaf,
  )


def forward_extra(stage: Stage, frozen_base: PyTree) -> PyTree:
  """What the forward pass gets of it."""
  if stage.mode == 'lora':
    return frozen_base, None
  if stage.mode != 'frozen':
    return frozen_base
  tables = frozen_base.tables.params if frozen_base.tables else {}
  return tables | {'blocks': frozen_base.layers.params['blocks']}


def shapes(setup: Setup, stage: Stage) -> tuple[TrainState, PyTree]:
  """What `enter` returns, as shapes with shardings."""
  state = setup_lib.abstract_state(setup, stage)
  if stage.has_frozen_base:
    model = stage.base if stage.mode == 'learn' else stage.model
    init = functools.partial(decoder.init_params, model)
    return state, setup.place(jax.eval_shape(init, jax.random.key(0)))
  if stage.mode == 'frozen':
    return _part(setup, state, stage, subnetwork.ahead)
  return state, None


def _part(setup, state, stage, call=subnetwork.run):
  """What trains while old layers are frozen: `subnetwork.split`."""
  aside = tuple(n for n in views.TABLES if n not in stage.trains)
  return subnetwork.split(
    state,
    *_parting(setup, stage),
    aside=[name for name in aside if name in state.params],
    place=setup.place_leaf,
    park=setup.place_leaf,
    call=call,
  )


def _parting(setup, stage):
  """The layers that train first, and how many these are."""
  order = np.argsort(stage.frozen, kind='stable').astype(np.int32)
  stack = subnetwork.Stack(0, stage.frozen.count(False), ())
  return setup.replicate({'layers': jnp.array(order)}), (stack,)
