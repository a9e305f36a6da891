"""SAT windows: a few steps on one selection, then the rows return.

`Window.state` is what the train step runs on. In compact execution it is a
smaller state, and the rows that take no part are parked beside it; in masked
execution it is the full state, with the selection as a mask inside the
optimizer state.

Every row is in one place only. A window is therefore used up by what opens or
closes it, and leaves that no selection cuts pass through untouched.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.config import stages
from satjax.config.stages import Stage
from satjax.sparsity import subnetwork
from satjax.train import loss as loss_lib
from satjax.train import parked as parked_lib
from satjax.train import phases, refresh, staging, views
from satjax.train import setup as setup_lib
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
    frozen_base: what stands still beside the state in some stages (`staging`).
    forward_extra: what the forward pass gets besides the parameters.
    chosen: the selection and what came with it; None: nothing is left out.
    visits: in how many selections each neuron took part, int32 [L, R] by unit.
    scores: of the last refresh, if the next one is to use them.
    stacks: the sizes of the sub-network. These four: compact execution only.
    order: numbers of `subnetwork.orders`, those that take part first.
    parked: what takes no part, of `subnetwork.split`.
    parked_to: completed steps up to which the parked rows are current.
  """

  state: TrainState
  stage: Stage
  frozen_base: PyTree = None
  forward_extra: PyTree = None
  chosen: refresh.Chosen | None = None
  visits: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  scores: Any = None
  stacks: subnetwork.Stacks = ()
  order: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  parked: subnetwork.Parked | None = None
  parked_to: int = 0

  @property
  def neurons(self) -> PyTree:
    """The parameters whose neurons are chosen from, while nothing is cut."""
    is_base = self.stage.mode == 'lora'
    return self.frozen_base if is_base else self.state.params

  @property
  def extra(self) -> dict[str, jax.Array]:
    """What it takes besides the full state to go on, by path."""
    return tree.flatten(
      {
        'chosen': self.chosen or {},
        'visits': self.visits,
        'scores': self.scores,
        # The name that checkpoints have always had for it.
        'held': self.frozen_base if self.stage.has_frozen_base else None,
      }
    )


def first(setup: Setup, state: TrainState) -> Window:
  """The window in which a run begins, from its `setup.initial_state`."""
  stage = stages.stages(setup.config)[0]
  return staged(stage, *staging.part(setup, state, stage))


def dense(state: TrainState, before: Window) -> Window:
  """No selection: the state trains whole. What is remembered goes on."""
  window = staged(before.stage, state, before.frozen_base)
  window.visits, window.scores = before.visits, before.scores
  return window


def staged(stage: Stage, state: TrainState, frozen_base: PyTree) -> Window:
  """No selection, in a stage where something may stand still."""
  extra = staging.forward_extra(stage, frozen_base)
  return Window(state, stage, frozen_base, extra)


def restored(
  setup: Setup,
  state: TrainState,
  extra: Mapping[str, jax.Array],
  record: Mapping[str, Any],
) -> Window:
  """The window of a checkpoint, from its arrays and its JSON record."""
  nested, step = tree.unflatten(extra), record['step']
  stage, parts = setup_lib.stage_of(setup.config, record), None
  if stage.mode == 'frozen':  # which checkpoints hold whole
    parts = staging.part(setup, state, stage)
  window = staged(stage, *(parts or (state, nested.get('held'))))
  window.visits = nested.get('visits', {})
  window.scores = nested.get('scores')
  if 'chosen' not in nested:
    return window
  chosen = refresh.Chosen(**{'constants': {}, **nested['chosen']})
  phase = phases.phase_at(setup.config, step - 1)
  return open_window(setup, window, chosen, phase, step)


def next_stage(setup: Setup, window: Window, step: int) -> Window:
  """The window of the stage of the next step; `window` is used up.

  Growth drops what is remembered of selections: neurons are others now.
  """
  stage = stages.stage_at(setup.config, step)
  state = setup.place(close(setup, window, step))
  parts = staging.enter(setup, state, window.frozen_base, window.stage, stage)
  opened = staged(stage, *parts)
  if not stage.operators:
    opened.visits, opened.scores = window.visits, window.scores
  return opened


def turn_over(
  setup: Setup,
  window: Window,
  step: int,
  batch: Mapping[str, jax.Array],
  timer: Callable[[str], Any] = contextlib.nullcontext,
  *,
  weighs: bool = True,
) -> Window:
  """What the step after `step` completed ones trains; `window` is used up.

  Where that step calls for it, rows return to their places, a stage ends, and a
  fresh selection is gathered, scored on some rows of `batch`. `timer` makes a
  context for each of 'write_back', 'probe' and 'gather', which wait for the
  device before they end. With `weighs`, the telemetry has the 'damage' of the
  selection: the loss with it, less the loss without, on the rows that a refresh
  looks at. So a run sees at its first step what it does to the model.
  """
  config = setup.config
  phase = phases.phase_at(config, step)
  if window.stage != phase.stage:
    window = next_stage(setup, window, step)
  before = window.chosen.kept if window.chosen else {}
  if window.chosen and phases.starts_window(config, step):
    jax.block_until_ready(window.state)
    with timer('write_back'):
      window = dense(close(setup, window, step), window)
      jax.block_until_ready(window.state)
  if not phase.is_sparse:
    if setup.config.sparsity.rest == 'host':  # where a window may have left it
      window.state = setup.place(window.state)
    return window
  if window.chosen:
    return window
  with timer('probe'):
    chosen, whole = _refresh(setup, window, step, batch, before)
    jax.block_until_ready(chosen.kept)
    weighs = weighs and config.sparsity.is_missed
    if weighs and (whole is None or window.frozen_base is not None):
      whole = _probe_loss(setup, window, batch)
  with timer('gather'):
    window = open_window(setup, window, chosen, phase, step)
    jax.block_until_ready(window.state)
  with timer('probe'):
    if weighs:
      part = _probe_loss(setup, window, batch)
      losses = {'probe_loss': part, 'damage': part - whole}
      window.chosen.telemetry |= jax.block_until_ready(losses)
  return window


def _probe_loss(setup, window, batch, call=subnetwork.run):
  """Mean loss of what trains, nats a token of the rows that a refresh sees."""
  config, stage = setup.config, window.stage
  how = stage.model, views.view_of(config, stage)
  how += config.sparsity.probe, config.train.loss_chunk
  with jax.sharding.set_mesh(setup.mesh):
    return call(
      _mean_loss, *how, window.state.params, window.forward_extra, batch
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _mean_loss(model, view, share, chunk, params, extra, batch):
  rows = refresh.probe_rows(share, batch)
  params, extra = views.compute_copy(model.dtype, params, extra)
  seen, extra = view(params, None, extra)
  nats = loss_lib.next_token_loss(model, seen, rows, extra, chunk)
  return nats / loss_lib.num_counted(rows)


def _refresh(setup, window, step, batch, before):
  """A fresh selection, with its visits counted in the window.

  And the loss of the parameters that it is of, if it was measured.
  """
  config, params = setup.config, window.neurons
  phase = phases.phase_at(config, step)
  with jax.sharding.set_mesh(setup.mesh):
    scores = refresh.measure(config, phase.stage.model, params, batch)
  loss = scores.pop('loss', None)
  if config.sparsity.stale_scores:
    scores, window.scores = window.scores or scores, scores
  none, no_visits = refresh.blank(scores)
  before, visits = setup.replicate((before or none, window.visits or no_visits))
  key = jax.random.fold_in(jax.random.key(config.train.seed), step)
  turn = step // config.sparsity.refresh_every
  chosen = refresh.choose(config, params, scores, phase, before, key, turn)
  kept = setup.replicate(chosen.kept)
  window.visits, shares = refresh.add_visits(visits, kept)
  chosen.telemetry |= shares
  return chosen, loss


def open_window(
  setup: Setup,
  window: Window,
  chosen: refresh.Chosen,
  phase: Phase,
  step: int,
  call: Callable[..., Any] = subnetwork.run,
) -> Window:
  """Starts to train a selection; the dense `window` is used up.

  `phase` has the counts of the selection. With `subnetwork.ahead` for `call`,
  all arguments are shapes, and the programs are compiled instead of run.
  """
  config = setup.config
  chosen = setup.replicate(chosen)
  opened = dataclasses.replace(window, chosen=chosen, parked_to=step)
  still = views.TABLES if config.sparsity.embed == 'rest' else ()
  if views.is_masked(config):
    masked = views.with_mask(window.state, chosen.kept, still, call)
    opened.state = setup.place(masked)
    opened.forward_extra = views.Masked(chosen.kept, chosen.constants)
    if window.stage.mode == 'lora':
      opened.forward_extra = window.frozen_base, opened.forward_extra
    return opened
  opened.stacks = phases.stacks(phase)
  kept = dict(chosen.kept)
  if not any(phase.omitted):
    kept.pop('layers', None)
  order = call(subnetwork.orders, kept, config.sparsity.shards)
  opened.order = setup.replicate(order)

  split = functools.partial(
    subnetwork.split,
    order=opened.order,
    stacks=opened.stacks,
    place=setup.place_leaf,
    call=call,
  )
  opened.state, opened.parked = split(
    window.state,
    aside=still,
    park=functools.partial(_park_rows, setup),
    park_layers=setup.park_leaf,
    consume=call is subnetwork.run,
  )
  base, resting_base = None, None
  if window.stage.mode == 'lora':
    base, beside = split(window.frozen_base)
    resting_base = beside.layers
  parts = opened.order, opened.parked, chosen.constants, resting_base
  opened.forward_extra = parked_lib.forward_extra(setup, phase, *parts, call)
  if base is not None:
    opened.forward_extra = base, opened.forward_extra
  return opened


def whole(setup: Setup, window: Window, step: int) -> TrainState:
  """The full state as of now, as checkpoints hold it; the window goes on.

  Leaves that no selection cuts are shared with `window.state`: read them
  before the next step donates them.
  """
  state = close(setup, window, step, consume=False)
  return staging.whole(setup, state, window.frozen_base, window.stage)


def whole_params(setup: Setup, window: Window, step: int) -> PyTree:
  """The parameters of the model as it is now: what to evaluate or export."""
  state, stage, base = window.state, window.stage, window.frozen_base
  if window.parked is not None:
    _catch_up(setup, window, step)
    parked = window.parked.each(lambda part: part.params)
    params = _merge(setup, window, state.params, parked)
    state = state.replace(params=params)
  if stage.mode == 'frozen':
    return staging.whole(setup, state, base, stage).params
  return views.seen(stage, state.params, base, state.step)


def pass_over(setup: Setup, window: Window, step: int) -> None:
  """Counts the step after `step` completed ones, which moves nothing."""
  after = setup.place_leaf('step', window.state.step + 1)
  if window.parked is not None:
    _catch_up(setup, window, step)
    window.parked = window.parked.each(
      lambda part: part.replace(step=jnp.copy(after))
    )
    window.parked_to = step + 1
  window.state = window.state.replace(step=after)


def close(
  setup: Setup, window: Window, step: int, *, consume: bool = True
) -> TrainState:
  """The state with no neuron left out of it; `consume` uses the window up."""
  if window.chosen is None:
    return window.state
  if views.is_masked(setup.config):
    return views.with_mask(window.state, {})
  _catch_up(setup, window, step)
  if consume:
    window.forward_extra = None
  return _merge(setup, window, window.state, window.parked, consume=consume)


def compile_exchange(setup: Setup, window: Window, batch: PyTree) -> None:
  """Compiles what runs in a window besides steps, and what closes it.

  All arguments are shapes; the window is open.
  """
  call = subnetwork.ahead
  if window.chosen and setup.config.sparsity.is_missed:
    _probe_loss(setup, window, batch, call)
  if window.stacks:
    _merge(setup, window, window.state, window.parked, call=call)


def _merge(setup, window, active, parked, **options):
  return subnetwork.merge(
    active,
    parked,
    window.order,
    window.stacks,
    place=setup.place_leaf,
    home=setup.park_leaf,
    **options,
  )


def _catch_up(setup, window, step):
  """Moves what is parked on to `step`, where it does not stand still."""
  if setup.config.sparsity.omitted != 'decayed' or step == window.parked_to:
    return
  count = step - window.parked_to
  window.parked = parked_lib.moved_on(setup, window.parked, count)
  window.parked_to = step


def _park_rows(setup, path, leaf):
  """Puts parked rows where they belong; those that count stay at hand."""
  in_use = any(map(setup.config.sparsity.sees, ('heads', 'mlp')))
  if in_use and path.startswith('params/'):
    return setup.place_leaf(path, leaf)
  return setup.park_leaf(path, leaf)
