"""SAT windows: a few steps on one selection, then the rows return.

`turnover` says when; here is how.

`Window.state` is what the train step runs on. In compact execution it is a
smaller state, and the rows that take no part rest beside it; in masked
execution it is the full state, with the selection as a mask inside the
optimizer state.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.config import stages
from satjax.config.stages import Stage
from satjax.sparsity import lors, subnetwork
from satjax.train import phases, refresh, staging, views
from satjax.train import step as step_lib
from satjax.train.phases import Phase
from satjax.train.setup import Setup
from satjax.train.state import TrainState
from satjax.tree import PyTree


@dataclasses.dataclass
class Window:
  """A state in training.

  Attributes:
    state: what the train step runs on.
    stage: of the run, that it trains in.
    held: what the stage holds beside the state (`staging`).
    rest: what the forward pass gets besides the parameters.
    chosen: the selection and what came with it; None where nothing is left
      out.
    visits: in how many selections each neuron took part, int32 [L, R] by unit.
    scores: of the last refresh, if the next one is to use them.
    stacks: the sizes of the sub-network. These four: compact execution only.
    order: row numbers of `subnetwork.orders`, those that take part first.
    resting: the rows that take no part, in the form of `state`.
    rested_to: completed steps up to which the resting rows are current.
  """

  state: TrainState
  stage: Stage
  held: PyTree = None
  rest: PyTree = None
  chosen: refresh.Chosen | None = None
  visits: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  scores: Any = None
  stacks: subnetwork.Stacks = ()
  order: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  resting: PyTree = None
  rested_to: int = 0

  @property
  def neurons(self) -> PyTree:
    """The parameters whose neurons are chosen from, while nothing is cut."""
    return self.held if self.stage.mode == 'lora' else self.state.params

  @property
  def extra(self) -> dict[str, jax.Array]:
    """What it takes besides the full state to go on, by path."""
    chosen = self.chosen.as_dict() if self.chosen else {}
    held = self.held if self.stage.holds_model else None
    return tree.flatten(
      {
        'chosen': chosen,
        'visits': self.visits,
        'scores': self.scores,
        'held': held,
      }
    )


def first(setup: Setup, state: TrainState) -> Window:
  """The window in which a run begins, from its `setup.initial_state`."""
  stage = stages.stages(setup.config)[0]
  state, held = staging.hold(setup, state, stage)
  return staged(state, stage, held)


def dense(state: TrainState, before: Window) -> Window:
  """No selection: the state trains whole. What is remembered goes on."""
  window = staged(state, before.stage, before.held)
  window.visits, window.scores = before.visits, before.scores
  return window


def staged(state: TrainState, stage: Stage, held: PyTree) -> Window:
  """No selection, in a stage that may hold something beside the state."""
  return Window(state, stage, held, staging.rest(stage, held))


def open_window(
  setup: Setup,
  window: Window,
  chosen: refresh.Chosen,
  phase: Phase,
  step: int,
  call: Callable[..., Any] = subnetwork.run,
) -> Window:
  """Starts to train a selection; the dense `window` is used up.

  Args:
    setup: of the run.
    window: one that trains whole.
    chosen: the selection.
    phase: whose counts the selection has.
    step: completed steps.
    call: `subnetwork.ahead` to compile instead, for shapes.
  """
  config = setup.config
  chosen = refresh.Chosen(**setup.replicate(chosen.as_dict()))
  opened = dataclasses.replace(window, chosen=chosen, rested_to=step)
  if views.is_masked(config):
    opened.state = setup.place(_with_mask(window.state, chosen.kept, call))
    opened.rest = chosen.constants or None
    if window.stage.mode == 'lora':
      base = call(_without, window.held, chosen.kept)
      opened.rest = setup.place(base), opened.rest
    return opened
  stacks = opened.stacks = phases.stacks(phase)
  order = call(subnetwork.orders, chosen.kept, config.sparsity.shards)
  opened.order = setup.replicate(order)
  opened.state, opened.resting = subnetwork.split(
    window.state,
    opened.order,
    stacks,
    place=setup.place_leaf,
    park=functools.partial(_park, setup),
    consume=call is subnetwork.run,
    call=call,
  )
  opened.rest = _forward_rest(setup, opened, call)
  if window.stage.mode == 'lora':
    base, _ = subnetwork.split(
      window.held, opened.order, stacks, place=setup.place_leaf, call=call
    )
    opened.rest = base, opened.rest
  return opened


def _forward_rest(setup, window, call):
  """What the forward pass of a sub-network gets, by stack; None: nothing."""
  if setup.config.sparsity.omitted_forward == 'exact':
    parts = [
      {
        name: {n: x for n, x in stack[name].items() if x is not None}
        for name in ('attention', 'mlp')
      }
      for stack in tree.stacks(window.resting.params)
    ]
  else:
    parts = [
      setup.replicate(call(_layers, window.chosen.constants, s.start, s.stop))
      for s in window.stacks
    ]
  if not jax.tree.leaves(parts):
    return None
  return parts[0] if len(parts) == 1 else tuple(parts)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _layers(constants, start, stop):
  return jax.tree.map(lambda x: x[start:stop], constants)


def whole(setup: Setup, window: Window, step: int) -> TrainState:
  """The full state as of now, as checkpoints hold it; the window goes on.

  Leaves that no selection cuts are shared with `window.state`: read them
  before the next step donates them.
  """
  if window.chosen is None:
    return staging.whole(setup, window.state, window.held, window.stage)
  if views.is_masked(setup.config):
    return _with_mask(window.state, {})
  _catch_up(setup, window, step)
  return _merge(setup, window, window.state, window.resting)


def whole_params(setup: Setup, window: Window, step: int) -> PyTree:
  """The parameters of the whole model as it is now."""
  state = window.state
  if window.resting is not None:
    _catch_up(setup, window, step)
    params = _merge(setup, window, state.params, window.resting.params)
    state = state.replace(params=params)
  return staging.model_params(setup, state, window.held, window.stage)


def close(setup: Setup, window: Window, step: int) -> TrainState:
  """The state with no neuron left out of it; the window is used up."""
  if window.chosen is None:
    return window.state
  if views.is_masked(setup.config):
    return _with_mask(window.state, {})
  _catch_up(setup, window, step)
  window.rest = None
  return _merge(setup, window, window.state, window.resting, consume=True)


def compile_exchange(
  setup: Setup, window: Window, chosen: refresh.Chosen, phase: Phase
) -> Window:
  """Compiles what opens and closes a window; all arguments are shapes."""
  call = subnetwork.ahead
  window = open_window(setup, window, chosen, phase, 0, call)
  if window.stacks:
    _merge(setup, window, window.state, window.resting, call=call)
  return window


def _merge(setup, window, active, resting, **options):
  return subnetwork.merge(
    active,
    resting,
    window.order,
    window.stacks,
    place=setup.place_leaf,
    home=setup.park_leaf,
    **options,
  )


def _catch_up(setup, window, step):
  """Moves the resting rows on to `step`, where they do not stand still."""
  if setup.config.sparsity.omitted != 'decayed' or step == window.rested_to:
    return
  replay = _replay_program(setup.tx, setup.schedule)
  count, park = step - window.rested_to, functools.partial(_park, setup)

  def moved_on(resting):
    return tree.map_with_path(park, replay(setup.place(resting), count))

  if setup.config.sparsity.rest == 'host':
    window.resting = _one_by_one(moved_on, window.resting)
  else:
    window.resting = moved_on(window.resting)
  window.rested_to = step


def _one_by_one(fn, state):
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


@functools.cache
def _replay_program(tx, schedule):
  replay = functools.partial(step_lib.replay, tx=tx, schedule=schedule)
  return jax.jit(replay, donate_argnums=0)


def _park(setup, path, leaf):
  """Sends resting rows to where the configuration wants them."""
  exact = setup.config.sparsity.omitted_forward == 'exact'
  if exact and path.startswith('params/'):
    return setup.place_leaf(path, leaf)
  return setup.park_leaf(path, leaf)


def _with_mask(state, kept, call=subnetwork.run):
  mask = call(_masks, state.params, kept)
  return state.replace(opt_state=state.opt_state._replace(mask=mask))


@jax.jit
def _without(params, kept):
  return lors.apply_mask(params, _masks(params, kept))


@jax.jit
def _masks(params, kept):
  units = tree.neuron_units(params, {name: (name,) for name in kept})
  return lors.masks(params, units, kept)
