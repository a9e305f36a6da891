"""What the forward pass sees of the parameters in training.

The train step differentiates through a view, so that masks, maps, adapters and
frozen layers need neither a model nor a step of their own.
"""

from collections.abc import Callable
import functools
import itertools

import jax
import jax.numpy as jnp

from satjax import tree
from satjax.config.run import Config
from satjax.config.stages import Stage
from satjax.growth import apply, learned
from satjax.model import lora
from satjax.sparsity import lors
from satjax.train.state import TrainState
from satjax.tree import PyTree

View = Callable[[PyTree, TrainState, PyTree], tuple[PyTree, PyTree]]

# What `compute_copy` casts: both tables of words, whatever has adapters, these.
_MATRICES = {'embed', 'unembed'} | {
  part for path in tree.ADAPTERS for part in path.split('/')[-2:]
}


def view_of(config: Config, stage: Stage) -> View:
  """The view of a stage: (params, state, extra) to what `apply` gets.

  `params` are those of `state`, to be differentiated.
  """
  if stage.mode == 'lora':
    scale, masked = stage.lora.scale, is_masked(config)
    return functools.partial(_adapted, scale=scale, masked=masked)
  if stage.mode != 'all':
    return functools.partial(_staged, stage=stage)
  if is_masked(config):
    exact = config.sparsity.omitted_forward == 'exact'
    return functools.partial(_masked, exact=exact)
  return plain


def compute_copy(dtype: str, params: PyTree, extra: PyTree) -> PyTree:
  """Both with their matrices in a compute dtype that is narrower.

  Taken once a step, ahead of microbatches and of the scan over layers, it is
  what travels between devices, and gradients come in its dtype. Norms and
  biases stay as they are; so do maps that are learned, and what they map.
  """
  if jnp.dtype(dtype).itemsize >= 4 or not tree.is_params(params):
    return params, extra

  def one(path, leaf):
    is_matrix = path.rsplit('/', 1)[-1] in _MATRICES
    return leaf.astype(dtype) if is_matrix else leaf

  return tree.map_with_path(one, (params, extra))


def is_masked(config: Config) -> bool:
  """Whether neurons are left out by zeros instead of by gathers."""
  return config.sparsity.is_on and config.sparsity.execution == 'masked'


def plain(
  params: PyTree, state: TrainState, extra: PyTree
) -> tuple[PyTree, PyTree]:
  """Everything as it is."""
  del state
  return params, extra


def _staged(params, state, extra, *, stage):
  return seen(stage, params, extra, state.step), None


def seen(stage: Stage, params: PyTree, base: PyTree, step: jax.Array) -> PyTree:
  """The model of a stage, from what trains in it.

  `params` train: of the model, of some of its layers, maps, or adapters; `base`
  stand still beside them; `step` counts completed ones.
  """
  if stage.mode == 'learn':
    return learned.materialise(params, base)
  if stage.mode == 'lora':
    return lora.merge(params, base, stage.lora.scale)
  if stage.mode == 'ramp':
    share = jnp.clip((step - stage.start) / stage.length, 0.0, 1.0)
    return apply.ramp(stage.operators, params, share)
  if stage.mode == 'frozen':
    return _interleave(params, base, stage.frozen)
  return params


def _interleave(params, base, frozen):
  """Layers of two trees in turn: `blocks` is a tuple of stacks.

  Nothing below the first layer that trains depends on `params`, so there is no
  backward pass below it.
  """
  stacks, taken = [], {False: 0, True: 0}
  for stands_still, group in itertools.groupby(frozen):
    start = taken[stands_still]
    stop = taken[stands_still] = start + len(list(group))
    source = (base if stands_still else params)['blocks']
    stacks.append(jax.tree.map(lambda x, a=start, b=stop: x[a:b], source))
  return {**base, **params, 'blocks': tuple(stacks)}


def _adapted(params, state, extra, *, scale, masked):
  """Adapters beside their matrices; with a neuron its adapters are left out."""
  base, extra = extra
  if masked:
    params = lors.apply_mask(params, state.opt_state.mask)
  return lora.attach(params, base, scale), extra


def _masked(params, state, extra, *, exact):
  """Omitted neurons are zeros; if they count, they do so without gradient."""
  mask = state.opt_state.mask
  if exact:
    blocks, masks = params['blocks'], mask['blocks']
    extra = {
      name: jax.tree.map(_omitted_part, blocks[name], masks[name])
      for _, name, writes in (path.split('/') for path in tree.WRITES.values())
      if masks[name][writes].ndim
    }
  return lors.apply_mask(params, mask), extra


def _omitted_part(x, mask):
  """What takes no part; a matrix that is never cut serves both."""
  return jnp.where(mask, 0, x) if mask.ndim else x
