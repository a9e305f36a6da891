"""Says once that what a run leaves out ruins its model, and what to do."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib

from absl import logging
import jax

from satjax.config.run import Config
from satjax.train import window as window_lib
from satjax.train.phases import Phase
from satjax.train.setup import Setup
from satjax.train.window import Window
from satjax.tree import PyTree

MOST = 1.0  # nats a token that leaving out may cost at once
_LESS = 'leave out less: config.sparsity.head_rate, channel_rate, layer_rate'
_EXACT = "config.sparsity.omitted_forward 'exact' costs nothing at once; or "
# A better setting in words, from whole parameters and a batch.
Advise = Callable[
  [Config, Phase, PyTree, Mapping[str, jax.Array], pathlib.Path], str
]


@dataclasses.dataclass
class Alarm:
  """Rings at the first refresh that does too much damage."""

  advise: Advise | None = None
  has_rung: bool = False

  def look(
    self,
    setup: Setup,
    window: Window,
    phase: Phase,
    step: int,
    batch: Mapping[str, jax.Array],
    path: pathlib.Path,
  ) -> None:
    """Takes a window of `phase` after `step` completed steps of a run."""
    scalars = window.chosen.telemetry if window.chosen else {}
    if self.has_rung or not float(scalars.get('damage', 0.0)) > MOST:
      return
    self.has_rung, better = True, _LESS
    if self.advise is not None:
      params = window_lib.whole_params(setup, window, step)
      better = self.advise(setup.config, phase, params, batch, path)
    exact = '' if setup.config.lora.is_on else _EXACT
    logging.warning(
      f'step {step}: leaving out so much raises the loss by'
      f' {float(scalars["damage"]):.2f} nats a token at once; {exact}{better}'
    )
