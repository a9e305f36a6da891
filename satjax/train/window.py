"""SAT windows: a few steps on one selection, then the rows return.

`Window.state` is what the train step runs on. In compact execution it is a
smaller state, and the full rows rest beside it; in masked execution it is the
full state, with the selection as a mask inside the optimizer state.
"""

from collections.abc import Mapping
import dataclasses
import functools

import jax

from satjax import config as config_lib
from satjax import tree
from satjax.model import decoder
from satjax.sparsity import importance, selection, subnetwork
from satjax.train import phases
from satjax.train import setup as setup_lib
from satjax.train.phases import Phase
from satjax.train.setup import Setup
from satjax.train.state import TrainState


@dataclasses.dataclass
class Window:
  """A state in training; `active` is empty where nothing is left out."""

  state: TrainState
  active: selection.Active
  resting: dict[str, jax.Array]


def dense(state: TrainState) -> Window:
  """No selection: the state trains whole."""
  return Window(state, {}, {})


def turn_over(
  setup: Setup, window: Window, step: int, batch: Mapping[str, jax.Array]
) -> Window:
  """What the step after `step` completed ones trains; `window` is used up.

  Where that step calls for it, rows return to their places, the model grows,
  and a fresh selection is gathered.
  """
  config = setup.config
  factor = phases.hop_at(config, step)
  if window.active and (phases.starts_window(config, step) or factor):
    window = dense(close(config, window))
  if factor:
    window = dense(setup_lib.grow(setup, window.state, factor))
  phase = phases.phase_at(config, step)
  if not phase.is_sparse or window.active:
    return window
  key = jax.random.fold_in(jax.random.key(config.train.seed), step)
  active = choose(config, window.state.params, batch, phase, key)
  return open_window(setup, window.state, active)


def open_window(
  setup: Setup, state: TrainState, active: selection.Active
) -> Window:
  """Starts to train a selection; `state` is used up."""
  if setup_lib.is_masked(setup.config):
    return Window(setup.place(_with_mask(state, active)), active, {})
  resting = subnetwork.neuron_leaves(state, active)
  sub = subnetwork.replace_leaves(state, _gather(resting, active))
  return Window(setup.place(sub), active, resting)


def whole(window: Window) -> TrainState:
  """The full state as of now; the window stays open and goes on.

  Leaves that no selection cuts are shared with `window.state`: read them
  before the next step donates them.
  """
  if not window.resting:
    return window.state
  rows = subnetwork.neuron_leaves(window.state, window.active)
  window.resting = _write_back(window.resting, rows, window.active)
  return subnetwork.replace_leaves(window.state, window.resting)


def close(config: config_lib.Config, window: Window) -> TrainState:
  """The full state, with nothing left out of it; the window is used up."""
  state = whole(window)
  if window.active and setup_lib.is_masked(config):
    return _with_mask(state, {})
  return state


def _with_mask(state: TrainState, active: selection.Active) -> TrainState:
  mask = _masks(state.params, active)
  return state.replace(opt_state=state.opt_state._replace(mask=mask))


@jax.jit
def _masks(params, active):
  kept = subnetwork.taking_part(params, active)
  return subnetwork.masks(params, tree.neuron_units(params), kept)


_gather = jax.jit(subnetwork.gather)
_write_back = jax.jit(subnetwork.write_back, donate_argnums=0)


def choose(
  config: config_lib.Config,
  params: tree.PyTree,
  batch: Mapping[str, jax.Array],
  phase: Phase,
  key: jax.Array,
) -> selection.Active:
  """A fresh selection from the dense parameters and a few rows of the batch."""
  return _choose(params, batch, key, config=config, kept=_Kept(phase.kept))


class _Kept(dict):
  """Kept counts as a static argument."""

  def __hash__(self):
    return hash(tuple(sorted(self.items())))


@functools.partial(jax.jit, static_argnames=('config', 'kept'))
def _choose(params, batch, key, *, config, kept):
  sparsity = config.sparsity
  inputs = None
  if importance.needs_inputs(sparsity.importance):
    rows = batch['tokens'].shape[0]
    stride = max(1, int(1 / sparsity.probe))
    probe = {name: x[: rows : min(stride, rows)] for name, x in batch.items()}
    inputs = decoder.block_inputs(config.model, params, probe)
  units = {
    unit: members
    for unit, members in tree.neuron_units(params).items()
    if kept[unit] < _total(config, unit)
  }
  scores = importance.scores(sparsity.importance, params, units, inputs)
  return selection.select(
    scores,
    kept,
    key,
    method=sparsity.selection,
    temperature=sparsity.temperature,
    kv_heads=config.model.num_kv_heads,
  )


def _total(config: config_lib.Config, unit: str) -> int:
  return {'heads': config.model.num_heads, 'mlp': config.model.mlp_dim}[unit]
