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
  rows = _probe_rows(config, batch)
  return _measure(params, rows, config=config, model=model)


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


@functools.partial(jax.jit, static_argnames=('config', 'model'))
def _measure(params, probe, *, config, model):
  metric, balance = config.sparsity.importance, config.sparsity.balance
  units = _units(config, params)

  def reduce(block):
    seen = {}
    if importance.needs_probe(metric):
      seen['scores'] = importance.observe(metric, block, balance=balance)
    if config.sparsity.omitted_forward == 'mean':
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


def _units(config, params):
  """The units that a ladder ever leaves something out of."""
  sparsity = config.sparsity
  rates = {'heads': sparsity.head_rate, 'mlp': sparsity.channel_rate}
  units = tree.neuron_units(params)
  return {name: units[name] for name, rate in rates.items() if rate}


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
  kv_heads = phase.stage.model.num_kv_heads
  return _choose(
    params, measured, counts, before, key, config=config, kv_heads=kv_heads
  )


@functools.partial(jax.jit, static_argnames=('config', 'kv_heads'))
def _choose(params, measured, kept_counts, before, key, *, config, kv_heads):
  sparsity = config.sparsity
  scores = measured['scores']
  kept = selection.select(
    scores,
    kept_counts,
    key,
    method=sparsity.selection,
    temperature=sparsity.temperature,
    kv_heads=kv_heads,
    granularity=sparsity.granularity,
    shards=sparsity.shards,
  )
  bad = [jnp.sum(~jnp.isfinite(score)) for score in scores.values()]
  telemetry = {'nonfinite_scores': sum(bad)}
  for unit, score in scores.items():
    telemetry[f'entropy_{unit}'] = importance.entropy(score)
    overlap = selection.overlap(kept[unit], before[unit])
    is_first = ~jnp.any(before[unit])
    telemetry[f'overlap_{unit}'] = jnp.where(is_first, jnp.nan, overlap)
  constants = _constants(config, params, measured, kept)
  return Chosen(kept, constants, telemetry)


def _constants(config, params, measured, kept):
  """Per-layer constants of the forward pass, from the probe and the scores."""
  sparsity, blocks = config.sparsity, params['blocks']
  constants = {}
  for unit in measured['scores']:
    _, name, writes = tree.WRITES[unit].split('/')
    mask_LR = kept[unit]
    if sparsity.omitted_forward == 'mean':
      offset_LD = _by_layer(
        _offset, blocks[name][writes], measured['means'][unit], mask_LR
      )
      constants[name] = {'offset': offset_LD}
    elif sparsity.rescale == 'inverse':
      constants[name] = {'scale': 1 / jnp.mean(mask_LR, axis=-1)}
    elif sparsity.rescale == 'energy':
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
