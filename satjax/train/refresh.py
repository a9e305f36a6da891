"""A refresh: look at a few rows, score every neuron, choose who takes part.

`measure` and `choose` are one program each for all rungs of a ladder: how many
neurons to keep is data.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from satjax import sharding, tree
from satjax.config.groups import ModelConfig
from satjax.config.run import Config
from satjax.model import decoder
from satjax.sparsity import importance, selection
from satjax.train.phases import Phase
from satjax.tree import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Chosen:
  """A selection, and what it brings along.

  Attributes:
    kept: which neurons take part, bool by axis (`selection.select`).
    constants: what the forward pass adds or scales because of those that do
      not, `{'attention': {...}, 'mlp': {...}}` stacked on layers; or {}.
    telemetry: scalars for the metrics.
  """

  kept: selection.Kept
  constants: PyTree
  telemetry: dict[str, jax.Array]


def measure(
  config: Config,
  model: ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
) -> dict[str, Any]:
  """'scores' of every neuron and, if they are needed, their 'means'."""
  sparsity = config.sparsity
  rates = {'heads': sparsity.head_rate, 'mlp': sparsity.channel_rate}
  return _measure(
    params,
    _probe_rows(config, batch),
    model=model,
    # Those that a ladder ever leaves something out of.
    units=tuple(name for name, rate in rates.items() if rate),
    metric=sparsity.importance,
    balance=sparsity.balance,
    has_means=sparsity.omitted_forward == 'mean',
  )


def shapes(
  config: Config, params: PyTree, batch: PyTree, phase: Phase
) -> Chosen:
  """What a refresh will choose, as shapes; arguments may be shapes too."""

  def refreshed(params, batch):
    measured = measure(config, phase.stage.model, params, batch)
    before, _ = blank(measured)
    key = jax.random.key(0)
    return choose(config, params, measured, phase, before, key)

  return jax.eval_shape(refreshed, params, batch)


def _probe_rows(config, batch):
  """A share of a batch: strided rows or, of one row, its beginning.

  Empty if nothing looks at it.
  """
  sparsity = config.sparsity
  needs_means = sparsity.omitted_forward == 'mean'
  if not needs_means and not importance.needs_probe(sparsity.importance):
    return {}
  rows, length = batch['tokens'].shape
  wanted = sparsity.probe * rows
  stride = max(1, round(rows / max(1.0, wanted)))
  length = math.ceil(length * min(1.0, wanted))
  names = ('tokens', 'positions', 'segments')
  return {n: batch[n][::stride, :length] for n in names if n in batch}


# Not the whole configuration: other runs share the programs.
_SEEN = ('model', 'units', 'metric', 'balance', 'has_means')
_HOW = ('method', 'temperature', 'kv_heads', 'granularity', 'shards')


@functools.partial(jax.jit, static_argnames=_SEEN)
def _measure(params, probe, *, model, units, metric, balance, has_means):
  units = {name: tree.neuron_units(params)[name] for name in units}

  def reduce(block):
    seen = {}
    if importance.needs_probe(metric):
      seen['scores'] = importance.observe(metric, block, balance=balance)
    if has_means:
      seen['means'] = importance.observe_means(block)
    return seen

  def score(blocks, seen):
    whole = {'blocks': blocks}
    return importance.scores(metric, whole, units, seen, balance=balance)

  seen = decoder.observe(model, params, probe, reduce) if probe else {}
  scores = _by_layer(score, params['blocks'], seen.pop('scores', None))
  return {'scores': scores, **seen}


def _by_layer(fn, *args):
  """`fn` of arrays that are stacked on layers, as are its results.

  A layer at a time where any of them is parked on the host, so that the device
  never holds the whole model.
  """
  if not any(map(sharding.is_away, jax.tree.leaves(args))):
    return fn(*args)

  def one_layer(args):
    args = jax.tree.map(lambda x: sharding.fetch(x)[None], args)
    return jax.tree.map(lambda x: x[0], fn(*args))

  return jax.lax.map(one_layer, args)


def choose(
  config: Config,
  params: PyTree,
  measured: Mapping[str, Any],
  phase: Phase,
  before: selection.Kept,
  key: jax.Array,
) -> Chosen:
  """A fresh selection of as many neurons as `phase` keeps.

  `measured` is what `measure` returns for the dense `params`; `before` is the
  selection before this one, for the overlap.
  """
  counts = {u: jnp.array(n, jnp.int32) for u, n in phase.kept.items()}
  before = {unit: before[unit] for unit in measured['scores']}
  sparsity = config.sparsity
  return _choose(
    params,
    measured,
    counts,
    before,
    key,
    method=sparsity.selection,
    temperature=sparsity.temperature,
    kv_heads=phase.stage.model.num_kv_heads,
    granularity=sparsity.granularity,
    shards=sparsity.shards,
    rescale=sparsity.rescale,
  )


@functools.partial(jax.jit, static_argnames=(*_HOW, 'rescale'))
def _choose(params, measured, kept_counts, before, key, *, rescale, **how):
  scores = measured['scores']
  kept = selection.select(scores, kept_counts, key, **how)
  bad = [jnp.sum(~jnp.isfinite(score)) for score in scores.values()]
  telemetry = {'nonfinite_scores': sum(bad)}
  for unit, score in scores.items():
    telemetry[f'entropy_{unit}'] = importance.entropy(score)
    overlap = selection.overlap(kept[unit], before[unit])
    is_first = ~jnp.any(before[unit])
    telemetry[f'overlap_{unit}'] = jnp.where(is_first, jnp.nan, overlap)
  constants = _constants(rescale, params, measured, kept)
  return Chosen(kept, constants, telemetry)


def _constants(rescale, params, measured, kept):
  """Per-layer constants of the forward pass, from the probe and the scores."""
  constants, blocks = {}, params['blocks']
  for unit in measured['scores']:
    _, name, writes = tree.WRITES[unit].split('/')
    mask_LR = kept[unit]
    if 'means' in measured:
      offset_LD = _by_layer(
        _offset, blocks[name][writes], measured['means'][unit], mask_LR
      )
      constants[name] = {'offset': offset_LD}
    elif rescale == 'inverse':
      constants[name] = {'scale': 1 / jnp.mean(mask_LR, axis=-1)}
    elif rescale == 'energy':
      score_LR = measured['scores'][unit]
      constants[name] = {'scale': importance.energy_scale(score_LR, mask_LR)}
  return constants


def _offset(write, mean, mask_LR):
  """What omitted neurons write to the residual stream in the mean, [L, D]."""
  write_LRHD = write.reshape(*mask_LR.shape, -1, write.shape[-1])
  mean_LRH = mean.reshape(write_LRHD.shape[:-1])
  mean_LRH = jnp.where(mask_LR[..., None], 0.0, mean_LRH)
  return jnp.einsum('LRH,LRHD->LD', mean_LRH, write_LRHD)


def blank(
  measured: Mapping[str, Any],
) -> tuple[selection.Kept, dict[str, jax.Array]]:
  """The selection before the first one, which keeps none, and its visits."""
  shapes = {unit: score.shape for unit, score in measured['scores'].items()}
  visits = {u: jnp.zeros(shape, jnp.int32) for u, shape in shapes.items()}
  return (
    {unit: jnp.zeros(shape, bool) for unit, shape in shapes.items()},
    {**visits, 'selections': jnp.zeros((), jnp.int32)},
  )


@jax.jit
def add_visits(
  visits: Mapping[str, jax.Array], kept: selection.Kept
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Counts a selection.

  Returns:
    In how many selections each neuron took part, int32 [L, R] by unit, and how
    many 'selections' there were; the share of neurons that have taken part at
    all, as telemetry.
  """
  counts = {
    unit: visits[unit] + kept[unit] for unit in visits if unit != 'selections'
  }
  shares = {f'visited_{u}': jnp.mean(n_LR > 0) for u, n_LR in counts.items()}
  return {**counts, 'selections': visits['selections'] + 1}, shares
