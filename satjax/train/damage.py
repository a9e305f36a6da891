"""What leaving out costs at once: the loss with it, less the loss without.

Both on the rows that a refresh looks at, so that a run sees at its first step
what a selection does to the model, and not after a few hundred.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax

from satjax.sparsity import subnetwork
from satjax.train import loss as loss_lib
from satjax.train import refresh, views
from satjax.train.setup import Setup
from satjax.tree import PyTree


def loss(
  setup: Setup,
  stage: Any,
  params: PyTree,
  extra: PyTree,
  batch: Mapping[str, jax.Array],
  call: Callable[..., Any] = subnetwork.run,
) -> jax.Array:
  """Mean loss of what trains in a window, nats a token of the probe rows.

  `params` and `extra` are those of its train step; `call` as of
  `subnetwork.split`.
  """
  config = setup.config
  view = views.view_of(config, stage)
  how = stage.model, view, config.sparsity.probe, config.train.loss_chunk
  with jax.sharding.set_mesh(setup.mesh):
    return call(_mean_loss, *how, params, extra, batch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _mean_loss(model, view, share, chunk, params, extra, batch):
  rows = refresh.probe_rows(share, batch)
  params, extra = views.compute_copy(model.dtype, params, extra)
  seen, added = view(params, None, extra)
  nats = loss_lib.next_token_loss(model, seen, rows, added, chunk)
  return nats / loss_lib.num_counted(rows)
