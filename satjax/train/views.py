"""What the forward pass sees of the parameters in training.

The train step differentiates through a view, so that masks, maps, adapters and
frozen layers need neither a model nor a step of their own.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from satjax import sharding, tree
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


class Beside(NamedTuple):
  """Parameters beside the blocks that rest, and what else is added."""

  tables: PyTree
  extra: PyTree


class Masked(NamedTuple):
  """Masked execution: a selection, and constants (`refresh.Chosen`)."""

  kept: PyTree
  constants: PyTree


@functools.cache
def view_of(config: Config, stage: Stage) -> View:
  """The view of a stage: (params, state, extra) to what `apply` gets.

  `params` are those of `state`, to be differentiated.
  """
  if stage.mode == 'lora':
    scale, sparsity = stage.lora.scale, config.sparsity
    return functools.partial(_adapted, scale=scale, sparsity=sparsity)
  if stage.mode != 'all':
    return lambda p, state, extra: (seen(stage, p, extra, state.step), None)
  if is_masked(config):
    return functools.partial(_masked, sparsity=config.sparsity)
  return plain


# Everything beside the blocks: what `sparsity.embed` is about.
TABLES = ('embed', 'unembed', 'final_norm')


def with_mask(
  state: TrainState,
  kept: Mapping[str, jax.Array],
  still: Sequence[str] = (),
  call: Callable[..., PyTree] = lambda fn, *args: fn(*args),
) -> TrainState:
  """A state of masked execution with a selection in its optimizer state.

  `still`: parameters beside the blocks that rest; `call` as of
  `subnetwork.split`.
  """
  mask = call(_masks, state.params, kept, tuple(still))
  return state.replace(opt_state=state.opt_state._replace(mask=mask))


@functools.partial(jax.jit, static_argnums=2)
def _masks(params, kept, still):
  units = tree.neuron_units(params, {name: (name,) for name in kept})
  found = lors.masks(params, units, kept)
  return found | {n: jnp.zeros((), bool) for n in still if n in found}


def compute_copy(dtype: str, params: PyTree, extra: PyTree) -> PyTree:
  """Both with their matrices in a compute dtype that is narrower.

  Taken once a step, ahead of microbatches and of the scan over layers, it is
  what travels between devices, and gradients come in its dtype. Norms and
  biases stay as they are; so do maps that are learned, and what they map.
  """
  if jnp.dtype(dtype).itemsize >= 4 or not tree.is_params(params):
    return params, extra

  def one(path, leaf):
    if sharding.is_away(leaf):  # it comes a layer at a time
      return leaf
    is_matrix = path.rsplit('/', 1)[-1] in _MATRICES
    return leaf.astype(dtype) if is_matrix else leaf

  return tree.map_with_path(one, (params, extra))


def is_masked(config: Config) -> bool:
  """Whether neurons are left out by zeros instead of by gathers."""
  return config.sparsity.is_on and config.sparsity.execution == 'masked'


def plain(
  params: PyTree, state: TrainState, extra: PyTree
) -> tuple[PyTree, PyTree]:
  """Everything as it is, and tables that rest in their places."""
  del state
  if isinstance(extra, Beside):
    return {**extra.tables, **params}, extra.extra
  return params, extra


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


def _adapted(params, state, extra, *, scale, sparsity):
  """Adapters beside their matrices; with a neuron its adapters are left out."""
  del state
  base, extra = extra
  if not isinstance(extra, Masked):
    return lora.attach(params, base, scale), extra
  (params, own), (base, exact) = (
    _masked_tree(sparsity, node, extra.kept) for node in (params, base)
  )
  if exact:
    exact = lora.attach(own, exact, scale)
  return lora.attach(params, base, scale), _with_exact(extra, exact)


def _masked(params, state, extra, *, sparsity):
  """The oracle of a sub-network: what is left out is zeros, and dense."""
  del state
  if not isinstance(extra, Masked):
    return params, extra
  if sparsity.embed == 'rest':
    blocks = {'blocks': params['blocks']}
    params = jax.lax.stop_gradient(params) | blocks
  params, exact = _masked_tree(sparsity, params, extra.kept)
  return params, _with_exact(extra, exact)


def _masked_tree(sparsity, params, kept):
  """What stands in place of the parameters, and what is added exactly.

  Where gradients go 'through' what is left out, it stands in its place without
  one of its own. Where it is 'exact', it is added, by name of attention and
  MLP: what does not write counts for nothing by itself.
  """
  units = tree.neuron_units(params, {name: (name,) for name in kept})
  by_layer = {'layers': units.pop('layers', {})}
  rows = tree.flatten(lors.masks(params, units, kept))
  layers = tree.flatten(lors.masks(params, by_layer, kept))
  is_exact = 'exact' in map(sparsity.forward, ('heads', 'mlp', 'layers'))
  exact = {}

  def one(path, leaf):
    if not path.startswith('blocks/'):
      return leaf
    name, _, part = path.removeprefix('blocks/').partition('/')
    axis = 'mlp' if name.startswith('mlp') else 'heads'
    in_layer, in_rows = layers[path], rows[path]
    trains, still = in_layer & in_rows, jax.lax.stop_gradient(leaf)

    def omitted(how):
      """Where this is what omitted units do."""
      of_rows = in_layer & (sparsity.forward(axis) == how)
      of_layers = ~in_layer & (sparsity.forward('layers') == how)
      return ~trains & (of_rows | of_layers)

    stands = omitted('through')
    if not part:  # a norm
      stands |= omitted('exact')
    elif is_exact:
      writes = path.startswith(tuple(tree.WRITES.values()))
      exact[path] = jnp.where(omitted('exact'), still, 0) if writes else still
    return jnp.where(trains, leaf, jnp.where(stands, still, 0))

  params = tree.map_with_path(one, params)
  return params, tree.unflatten(exact)


def _with_exact(masked, exact):
  """Constants of the layers that train, and what is added exactly."""
  constants = masked.constants
  if 'layers' in masked.kept:
    trains_L, nothing = masked.kept['layers'], {'offset': 0.0, 'scale': 1.0}

    def of_trained(path, x):
      trains = trains_L.reshape(-1, *[1] * (x.ndim - 1))
      return jnp.where(trains, x, nothing[path.rsplit('/', 1)[-1]])

    constants = tree.map_with_path(of_trained, constants)
  for name, x in exact.get('blocks', {}).items():
    constants = constants | {name: constants.get(name, {}) | {'exact': x}}
  return constants or None
