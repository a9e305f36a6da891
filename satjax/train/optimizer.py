"""The optax chain from the configuration: clip, scale, decay.

The learning rate is not part of the chain: the train step multiplies by it, as
a function of the step alone, so that optimizer state may be reset or grown
without touching the schedule.
"""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from satjax import tree
from satjax.config.groups import OptimizerConfig
from satjax.tree import PyTree


def make_schedule(
  config: OptimizerConfig,
  num_steps: int,
  restarts: Sequence[int] = (),
) -> optax.Schedule:
  """Learning rate by completed steps: warm up, then cosine, hold, or WSD.

  At `restarts` it begins anew, over what is left of the run.
  """
  if restarts:
    starts = (0, *restarts)
    parts = [make_schedule(config, num_steps - start) for start in starts]
    return optax.join_schedules(parts, list(restarts))
  warmup = optax.linear_schedule(0.0, config.peak_lr, config.warmup_steps)
  rest = num_steps - config.warmup_steps
  if config.schedule == 'cosine':
    after = optax.cosine_decay_schedule(
      config.peak_lr, max(rest, 1), alpha=config.end_lr / config.peak_lr
    )
  elif config.schedule == 'constant' or not config.decay_steps:
    after = optax.constant_schedule(config.peak_lr)
  else:
    after = optax.linear_schedule(
      config.peak_lr,
      config.end_lr,
      config.decay_steps,
      transition_begin=rest - config.decay_steps,
    )
  if not config.warmup_steps:
    return after
  return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(
  config: OptimizerConfig, *, per_neuron: bool = False
) -> optax.GradientTransformation:
  """Gradients to update directions, before the learning rate.

  With `per_neuron`, Adam's bias correction counts the steps of each neuron.
  """
  scale = {
    'adamw': lambda: _per_neuron_adam(config) if per_neuron else _adam(config),
    'lion': lambda: optax.scale_by_lion(config.b1, config.b2),
    'adafactor': lambda: optax.chain(
      optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
    'muon': lambda: _muon(config),
    'sgd': lambda: optax.trace(config.b1) if config.b1 else optax.identity(),
  }[config.name]()
  return optax.chain(
    clip_by_global_norm(config.clip_norm),
    scale,
    optax.add_decayed_weights(config.weight_decay, mask=is_decayed),
  )


def is_decayed(params: PyTree) -> PyTree:
  """Weight decay pulls at every matrix, not at norm gains and biases."""
  return tree.map_with_path(
    lambda path, _: not path.endswith(('_norm', '_bias')), params
  )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales gradients down to a global norm of at most `max_norm`; 0: off.

  The same function as optax's, as one multiplication: optax selects between
  two trees, which on a CPU costs as much as the whole Adam update.
  """
  if not max_norm:
    return optax.identity()

  def update(updates, state, params=None):
    del params
    norm = optax.global_norm(updates)
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-16))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _adam(config):
  return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _per_neuron_adam(config):
  """Adam whose step counts mirror the parameters, a number for each neuron.

  Under `lors`, and in a sub-network, the count of a neuron that takes no part
  rests with its moments, so that its bias correction fits them (Kingma & Ba,
  2015, section 3).
  """

  def counters(path, leaf):
    axes = tree.axes_of(path, leaf.ndim) or ()
    numbers = ('layers', 'heads', 'kv_heads', 'mlp')
    shape = [
      size if name in numbers else 1 for name, size in zip(axes, leaf.shape)
    ]
    return jnp.zeros(shape or (), jnp.float32)

  adam = _adam(config)

  def init(params):
    count = tree.map_with_path(counters, params)
    return adam.init(params)._replace(count=count)

  def update(updates, state, params=None):
    del params
    # A leaf at a time, since each has counts of its own.
    leaves, form = jax.tree.flatten(updates)
    before = zip(*map(form.flatten_up_to, state))
    own = [optax.ScaleByAdamState(*x) for x in before]
    updates, after = zip(*map(adam.update, leaves, own))
    after = optax.ScaleByAdamState(*map(form.unflatten, zip(*after)))
    return form.unflatten(updates), after

  return optax.GradientTransformation(init, update)


def _muon(config):
  """Muon for the matrices of the blocks (Jordan, 2024), Adam for the rest."""

  def label(path, _):
    return 'muon' if _muon_axes(path) else 'adam'

  def dimensions(params):
    return tree.map_with_path(lambda path, _: _muon_axes(path), params)

  def match_adam(updates, params):
    # An orthogonal update has a small root mean square; 0.2 sqrt(width) makes
    # it that of Adam (Liu et al., 2025), so that one learning rate fits both.
    # The width is embed_dim, which a sub-network shares with its model.
    del params
    return jax.tree.map(lambda u: 0.2 * math.sqrt(u.shape[-1]) * u, updates)

  muon = optax.chain(
    contrib.scale_by_muon(beta=config.b1, weight_dimension_numbers=dimensions),
    optax.stateless(match_adam),
  )
  return optax.partition(
    {'muon': muon, 'adam': _adam(config)},
    lambda params: tree.map_with_path(label, params),
  )


def _muon_axes(path: str) -> contrib.MuonDimensionNumbers | None:
  """Which axes of a leaf are the matrix; layers are a batch of matrices."""
  name = tree.param_of(path)
  axes = tree.AXES[name] if name else ()
  if 'layers' not in axes or 'embed' not in axes or len(axes) < 3:
    return None
  embed = (axes.index('embed'),)
  neurons = tuple(i for i, a in enumerate(axes) if a not in ('layers', 'embed'))
  writes = name in tree.WRITES.values()
  return contrib.MuonDimensionNumbers(
    reduction_axis=neurons if writes else embed,
    output_axis=embed if writes else neurons,
  )
