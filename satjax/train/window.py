"""SAT windows: a few steps on one selection, then the rows return.

`Window.state` is what the train step runs on. In compact execution it is a
smaller state, and the rows that take no part rest beside it; in masked
execution it is the full state, with the selection as a mask inside the
optimizer state.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
from typing import Any

import jax

from satjax import tree
from satjax.sparsity import subnetwork
from satjax.train import phases, refresh
from satjax.train import setup as setup_lib
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
    rest: what the forward pass gets besides the parameters.
    chosen: the selection and what came with it; None where nothing is left
      out.
    visits: in how many selections each neuron took part, int32 [L, R] by unit.
    scores: of the last refresh, if the next one is to use them.
    stacks: the sizes of the sub-network. These four: compact execution only.
    order: row numbers, those that take part first.
    resting: the rows that take no part, in the form of `state`.
    rested_to: completed steps up to which the resting rows are current.
  """

  state: TrainState
  rest: PyTree = None
  chosen: refresh.Chosen | None = None
  visits: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  scores: Any = None
  stacks: subnetwork.Stacks = ()
  order: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  resting: PyTree = None
  rested_to: int = 0

  @property
  def extra(self) -> dict[str, jax.Array]:
    """What it takes besides the full state to go on, by path."""
    chosen = self.chosen.as_dict() if self.chosen else {}
    return tree.flatten(
      {'chosen': chosen, 'visits': self.visits, 'scores': self.scores}
    )


def dense(state: TrainState, before: Window | None = None) -> Window:
  """No selection: the state trains whole. What is remembered goes on."""
  if before is None:
    return Window(state)
  return Window(state, visits=before.visits, scores=before.scores)


def restored(
  setup: Setup, state: TrainState, extra: Mapping[str, jax.Array], step: int
) -> Window:
  """The window of a checkpoint after `step` completed steps."""
  nested = tree.unflatten(extra)
  window = Window(
    state, visits=nested.get('visits', {}), scores=nested.get('scores')
  )
  if 'chosen' not in nested:
    return window
  chosen = refresh.Chosen(**{'constants': {}, **nested['chosen']})
  phase = phases.phase_at(setup.config, step - 1)
  return open_window(setup, window, chosen, phase, step)


def turn_over(
  setup: Setup,
  window: Window,
  step: int,
  batch: Mapping[str, jax.Array],
  timer: Callable[[str], Any] = contextlib.nullcontext,
) -> Window:
  """What the step after `step` completed ones trains; `window` is used up.

  Where that step calls for it, rows return to their places, the model grows,
  and a fresh selection is gathered.

  Args:
    setup: of the run.
    window: as the last step left it.
    step: completed steps.
    batch: that the probe takes its rows from.
    timer: makes a context for each of 'write_back', 'probe' and 'gather', which
      wait for the device before they end.
  """
  config = setup.config
  before = window.chosen.kept if window.chosen else {}
  factor = phases.hop_at(config, step)
  if window.chosen and (phases.starts_window(config, step) or factor):
    jax.block_until_ready(window.state)
    with timer('write_back'):
      window = dense(close(setup, window, step), window)
      jax.block_until_ready(window.state)
  if factor:
    window, before = dense(setup_lib.grow(setup, window.state, factor)), {}
  phase = phases.phase_at(config, step)
  if not phase.is_sparse or window.chosen:
    return window
  with timer('probe'):
    chosen = _refresh(setup, window, step, batch, before)
    jax.block_until_ready(chosen.kept)
  with timer('gather'):
    window = open_window(setup, window, chosen, phase, step)
    jax.block_until_ready(window.state)
  return window


def _refresh(setup, window, step, batch, before):
  """A fresh selection, with its visits counted in the window."""
  config, params = setup.config, window.state.params
  scores = refresh.measure(config, params, batch)
  if config.sparsity.stale_scores:
    scores, window.scores = window.scores or scores, scores
  none, no_visits = refresh.blank(scores)
  before, visits = setup.replicate((before or none, window.visits or no_visits))
  key = jax.random.fold_in(jax.random.key(config.train.seed), step)
  phase = phases.phase_at(config, step)
  chosen = refresh.choose(config, params, scores, phase, before, key)
  kept = setup.replicate(chosen.kept)
  window.visits, shares = refresh.add_visits(visits, kept)
  chosen.telemetry |= shares
  return chosen


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
  if setup_lib.is_masked(config):
    opened.state = setup.place(_with_mask(window.state, chosen.kept, call))
    opened.rest = chosen.constants or None
    return opened
  stacks = opened.stacks = phases.stacks(config, phase)
  opened.order = setup.replicate(call(subnetwork.orders, chosen.kept))
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
  """The full state as of now; the window stays open and goes on.

  Leaves that no selection cuts are shared with `window.state`: read them
  before the next step donates them.
  """
  if window.chosen is None:
    return window.state
  if setup_lib.is_masked(setup.config):
    return _with_mask(window.state, {})
  _catch_up(setup, window, step)
  return _merge(setup, window, window.state, window.resting)


def whole_params(setup: Setup, window: Window, step: int) -> PyTree:
  """The parameters of `whole`, without its moments."""
  if window.resting is None:
    return window.state.params
  _catch_up(setup, window, step)
  return _merge(setup, window, window.state.params, window.resting.params)


def close(setup: Setup, window: Window, step: int) -> TrainState:
  """The full state, with nothing left out of it; the window is used up."""
  if setup_lib.is_masked(setup.config) or window.chosen is None:
    return whole(setup, window, step)
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
    **options,
  )


def _catch_up(setup, window, step):
  """Moves the resting rows on to `step`, where they do not stand still."""
  if setup.config.sparsity.omitted != 'decayed' or step == window.rested_to:
    return
  resting = setup.place(window.resting)
  resting = _replay_program(setup.tx, setup.schedule)(
    resting, step - window.rested_to
  )
  window.resting = tree.map_with_path(functools.partial(_park, setup), resting)
  window.rested_to = step


@functools.cache
def _replay_program(tx, schedule):
  replay = functools.partial(step_lib.replay, tx=tx, schedule=schedule)
  return jax.jit(replay, donate_argnums=0)


def _park(setup, path, leaf):
  """Sends resting rows to where the configuration wants them."""
  sparsity = setup.config.sparsity
  in_use = sparsity.omitted_forward == 'exact' and path.startswith('params/')
  if sparsity.rest == 'host' and not in_use:
    return setup.place_leaf(path, leaf, 'pinned_host')
  return setup.place_leaf(path, leaf)


def _with_mask(state, kept, call=subnetwork.run):
  mask = call(_masks, state.params, kept)
  return state.replace(opt_state=state.opt_state._replace(mask=mask))


@jax.jit
def _masks(params, kept):
  units = tree.neuron_units(params, {name: (name,) for name in kept})
  return subnetwork.masks(params, units, kept)
