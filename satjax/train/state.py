"""What a run carries from step to step."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from satjax.tree import PyTree


@flax.struct.dataclass
class TrainState:
  """Completed optimizer steps, parameters and optimizer state."""

  step: jax.Array
  params: PyTree
  opt_state: optax.OptState


def new_state(params: PyTree, tx: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
