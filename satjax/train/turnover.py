"""Between two steps: a window closes, a stage ends, the next one begins."""

from collections.abc import Callable, Mapping
import contextlib
from typing import Any

import jax

from satjax import tree
from satjax.config import stages
from satjax.train import phases, refresh, staging
from satjax.train import setup as setup_lib
from satjax.train.setup import Setup
from satjax.train.state import TrainState
from satjax.train.window import Window, close, dense, open_window, staged


def restored(
  setup: Setup,
  state: TrainState,
  extra: Mapping[str, jax.Array],
  record: Mapping[str, Any],
) -> Window:
  """The window of a checkpoint, from its arrays and its JSON record."""
  nested, step = tree.unflatten(extra), record['step']
  stage, held = setup_lib.stage_of(setup.config, record), nested.get('held')
  if stage.mode == 'frozen':
    state, held = staging.hold(setup, state, stage)
  window = staged(state, stage, held)
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
  entered = staging.enter(setup, state, window.held, window.stage, stage)
  opened = staged(entered[0], stage, entered[1])
  if not stage.operators:
    opened.visits, opened.scores = window.visits, window.scores
  return opened


def turn_over(
  setup: Setup,
  window: Window,
  step: int,
  batch: Mapping[str, jax.Array],
  timer: Callable[[str], Any] = contextlib.nullcontext,
) -> Window:
  """What the step after `step` completed ones trains; `window` is used up.

  Where that step calls for it, rows return to their places, a stage ends, and a
  fresh selection is gathered.

  Args:
    setup: of the run.
    window: as the last step left it.
    step: completed steps.
    batch: that the probe takes its rows from.
    timer: makes a context for each of 'write_back', 'probe' and 'gather', which
      wait for the device before they end.
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
    chosen = _refresh(setup, window, step, batch, before)
    jax.block_until_ready(chosen.kept)
  with timer('gather'):
    window = open_window(setup, window, chosen, phase, step)
    jax.block_until_ready(window.state)
  return window


def _refresh(setup, window, step, batch, before):
  """A fresh selection, with its visits counted in the window."""
  config, params = setup.config, window.neurons
  phase = phases.phase_at(config, step)
  with jax.sharding.set_mesh(setup.mesh):
    scores = refresh.measure(config, phase.stage.model, params, batch)
  if config.sparsity.stale_scores:
    scores, window.scores = window.scores or scores, scores
  none, no_visits = refresh.blank(scores)
  before, visits = setup.replicate((before or none, window.visits or no_visits))
  key = jax.random.fold_in(jax.random.key(config.train.seed), step)
  chosen = refresh.choose(config, params, scores, phase, before, key)
  kept = setup.replicate(chosen.kept)
  window.visits, shares = refresh.add_visits(visits, kept)
  chosen.telemetry |= shares
  return chosen
