"""Compiled programs, one set for each shape; the next compile meanwhile."""

from collections.abc import Callable, Hashable
from concurrent import futures

import jax

from satjax.config.run import Config
from satjax.sparsity import subnetwork
from satjax.train import refresh, staging, views, window
from satjax.train import setup as setup_lib
from satjax.train.phases import Phase
from satjax.train.setup import Setup
from satjax.train.window import Window
from satjax.tree import PyTree


class Programs:
  """Compiles each distinct shape once, in the background where asked ahead."""

  def __init__(self, setup: Setup, batch: PyTree):
    """`batch`: one, or its shapes."""
    self._setup = setup
    self._batch = batch
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix='compile')
    self._programs: dict[Hashable, futures.Future] = {}

  @property
  def count(self) -> int:
    """How many shapes have been compiled or are being compiled."""
    return len(self._programs)

  def prepare(self, phase: Phase) -> None:
    """Starts to compile for a phase, unless that is done or begun."""
    key = key_of(self._setup.config, phase)
    if key not in self._programs:
      self._programs[key] = self._pool.submit(
        compile_phase, self._setup, self._batch, phase
      )

  def get(self, phase: Phase) -> jax.stages.Compiled:
    """The compiled step of a phase; waits for it if need be."""
    self.prepare(phase)
    return self._programs[key_of(self._setup.config, phase)].result()

  def close(self) -> None:
    """Drops what has not begun to compile."""
    self._pool.shutdown(wait=False, cancel_futures=True)


def key_of(config: Config, phase: Phase) -> Hashable:
  """Phases with the same key run the same programs."""
  if views.is_masked(config):
    return phase.stage, phase.is_sparse
  return phase.stage, phase.layers, phase.omitted


def compile_phase(
  setup: Setup, batch: PyTree, phase: Phase
) -> jax.stages.Compiled:
  """The train step of a phase; what its windows run is compiled as well.

  `batch`: one, or its shapes.
  """
  opened = shapes(setup, batch, phase, subnetwork.ahead)
  window.compile_exchange(setup, opened, setup.batch_shapes(batch, phase.stage))
  return compile_step(setup, batch, phase, opened)


def compile_step(
  setup: Setup, batch: PyTree, phase: Phase, opened: Window
) -> jax.stages.Compiled:
  """The train step alone, for shapes and shardings; `opened`: of `shapes`."""
  batch = setup.batch_shapes(batch, phase.stage)
  out = jax.tree.map(lambda leaf: leaf.sharding, opened.state)
  step = setup_lib.make_step(setup, phase.stage)
  step = jax.jit(step, donate_argnums=0, out_shardings=(out, None))
  with jax.sharding.set_mesh(setup.mesh):
    return step.lower(opened.state, batch, opened.forward_extra).compile()


def shapes(
  setup: Setup,
  batch: PyTree,
  phase: Phase,
  call: Callable[..., PyTree] = subnetwork.shape_of,
) -> Window:
  """A window of a phase, as shapes.

  With `subnetwork.ahead` for `call`, what opens it is compiled.
  """
  stage = phase.stage
  opened = window.staged(stage, *staging.shapes(setup, stage))
  if not phase.is_sparse:
    return opened
  batch = setup.batch_shapes(batch, stage)
  chosen = refresh.shapes(setup.config, opened.neurons, batch, phase)
  return window.open_window(setup, opened, chosen, phase, 0, call)
