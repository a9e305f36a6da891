"""A refresh: look at a few rows, score every unit, choose who takes part.

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
from satjax.train import loss as loss_lib
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
  """'scores' of every unit and, if they are needed, 'means' of neurons.

  Where rows are looked at and something will be missing, the 'loss' on them
  too, nats a token.
  """
  sparsity = config.sparsity
  # Those that a ladder ever leaves something out of.
  units = [unit for unit, rate in sparsity.rates.items() if rate]
  metrics = tuple((unit, sparsity.metric(unit)) for unit in units)
  means = tuple(u for u in units if sparsity.forward(u) == 'mean')
  looks = means or any(importance.needs_probe(x) for _, x in metrics)
  return _measure(
    params,
    probe_rows(sparsity.probe, batch) if looks else {},
    model=model,
    metrics=metrics,
    balance=sparsity.balance,
    with_means=means,
    with_loss=sparsity.is_missed,
    chunk=config.train.loss_chunk,
  )


def score(
  model: ModelConfig,
  params: PyTree,
  probe: Mapping[str, jax.Array],
  metrics: Mapping[str, str],
) -> dict[str, jax.Array]:
  """Scores of every unit of some axes, by their metrics, on all of `probe`."""
  found = _measure(params, probe, model, tuple(metrics.items()), False, ())
  return found['scores']


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


def probe_rows(
  share: float, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """A share of a batch: strided rows or, of one row, its beginning."""
  rows, length = batch['tokens'].shape
  wanted = share * rows
  stride = max(1, round(rows / max(1.0, wanted)))
  length = math.ceil(length * min(1.0, wanted))
  return {name: x[::stride, :length] for name, x in batch.items()}


_HOW = ('method', 'temperature', 'kv_heads', 'granularity', 'shards')


# Not the whole configuration: other runs share the programs.
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6, 7))
def _measure(
  params, probe, model, metrics, balance, with_means, with_loss=False, chunk=0
):
  metrics, blocks = dict(metrics), params['blocks']

  def reduce(block):
    seen = {}
    for unit, metric in metrics.items():
      if metric in importance.OF_LAYERS:
        seen[unit] = importance.OF_LAYERS[metric](block)
      elif importance.needs_probe(metric) and unit != 'layers':
        seen[unit] = importance.observe(metric, block, balance=balance)[unit]
    means = importance.observe_means(block) if with_means else {}
    return seen, {unit: means[unit] for unit in with_means}

  seen, means, more = {}, {}, {}
  if probe:
    out, observed, _ = decoder.run(model, params, probe, observe=reduce)
    ((seen, means),) = observed  # nothing is cut: one stack
    if with_loss:
      nats = loss_lib.of_output(*out, probe, chunk)
      more['loss'] = nats / loss_lib.num_counted(probe)
  seen |= _by_gradients(params, probe, model, metrics, chunk)
  units, scores = tree.neuron_units(params), {}
  for unit, metric in metrics.items():
    if unit == 'layers':
      scores[unit] = seen.get(unit, jnp.ones(len(jax.tree.leaves(blocks)[0])))
      continue

    def score(blocks, seen, unit=unit, metric=metric):
      own = {unit: units[unit]}
      whole = {'blocks': blocks}
      return importance.scores(metric, whole, own, seen, balance=balance)

    own = {unit: seen[unit]} if unit in seen else None
    scores |= _by_layer(score, blocks, own)
  return {'scores': scores, **more} | ({'means': means} if means else {})


def _by_gradients(params, probe, model, metrics, chunk):
  """What a backward pass shows, of the units whose metric needs one."""
  units, taps = tree.neuron_units(params), {}
  for unit, metric in metrics.items():
    if metric not in importance.BY_GRADIENTS:
      continue
    shape = jax.tree.leaves(params['blocks'])[0].shape[:1]
    if unit == 'layers':
      taps['tap'] = jnp.zeros(shape)
    else:
      path = tree.WRITES[unit]
      taps[path.split('/')[1]] = {
        'tap': jnp.zeros(tree.flatten(params)[path].shape[:2])
      }
  if not taps:
    return {}

  def loss(taps):
    return loss_lib.next_token_loss(model, params, probe, taps, chunk)

  found = tree.flatten(jax.grad(loss)(taps))
  names = {tree.WRITES[unit].split('/')[1]: unit for unit in units}
  return {
    names.get(path.split('/')[0], 'layers'): jnp.abs(x)
    for path, x in found.items()
  }


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
  turn: int = 0,
) -> Chosen:
  """A fresh selection of as many units as `phase` keeps.

  Args:
    params: dense.
    measured: of `measure`.
    before: the selection before this one, for the overlap.
    key: of the sampling.
    turn: number of the refresh, for layers that take part in turn.
  """
  counts = {u: jnp.array(n, jnp.int32) for u, n in phase.kept.items()}
  before = {unit: before[unit] for unit in measured['scores']}
  sparsity, scores = config.sparsity, dict(measured['scores'])
  if 'layers' in scores:
    scale_L = jnp.array(sparsity.scale('layers', phase.num_layers))
    turn = turn if sparsity.metric('layers') == 'cyclic' else None
    of_layers = scores['layers'], scale_L, counts['layers'], turn
    scores['layers'] = _of_layers(*of_layers)
  return _choose(
    params,
    {**measured, 'scores': scores},
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


@jax.jit
def _of_layers(score_L, scale_L, count_L, turn):
  """Scores of layers: the smaller a layer's factor, the rather it stays."""
  if turn is not None:
    score_L = importance.in_turn(scale_L, count_L, turn)
  safe_L = jnp.where(scale_L > 0, scale_L, 1.0)
  return jnp.where(scale_L > 0, score_L / safe_L, jnp.inf)


@functools.partial(jax.jit, static_argnames=(*_HOW, 'rescale'))
def _choose(params, measured, kept_counts, before, key, *, rescale, **how):
  scores = measured['scores']
  kept = selection.select(scores, kept_counts, key, **how)
  bad = [jnp.sum(~jnp.isfinite(x)) for u, x in scores.items() if u != 'layers']
  telemetry = {'nonfinite_scores': sum(bad, jnp.int32(0))}
  for unit, score in scores.items():
    if unit != 'layers':
      telemetry[f'entropy_{unit}'] = importance.entropy(score)
    overlap = selection.overlap(kept[unit], before[unit])
    is_first = ~jnp.any(before[unit])
    telemetry[f'overlap_{unit}'] = jnp.where(is_first, jnp.nan, overlap)
  constants = _constants(rescale, params, measured, kept)
  return Chosen(kept, constants, telemetry)


def _constants(rescale, params, measured, kept):
  """Per-layer constants of the forward pass, from the probe and the scores."""
  constants, blocks = {}, params['blocks']
  for unit in measured['scores'].keys() - {'layers'}:
    _, name, writes = tree.WRITES[unit].split('/')
    mask_LR = kept[unit]
    if unit in measured.get('means', {}):
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
