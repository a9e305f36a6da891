"""Which shapes a run has at which step: stage, rung, windows.

Everything here is a pure function of the configuration, so that a resumed run
knows the shape of what it restores, and the next phase can compile ahead.
"""

import bisect
import dataclasses
import functools
import itertools
from typing import Any

from satjax import flops
from satjax.config import stages as stages_lib
from satjax.config.run import Config
from satjax.config.stages import Stage
from satjax.sparsity import counts, subnetwork
from satjax.sparsity import ladder as ladder_lib


@dataclasses.dataclass(frozen=True)
class Phase:
  """Static shapes of a train step."""

  stage: Stage  # the model, and how it trains
  rung: int  # of the ladder, from 0
  layers: tuple[flops.Layer, ...]  # what takes part in each that does
  omitted: tuple[int, ...]  # how many do not, in each run of equal layers
  is_sparse: bool  # whether anything is left out

  @property
  def num_layers(self) -> int:
    return len(self.layers)

  @functools.cached_property
  def runs(self) -> tuple[tuple[flops.Layer, int, int], ...]:
    """Equal layers in a row: one of them, how many, and how many omitted."""
    found = [(x, len(list(run))) for x, run in itertools.groupby(self.layers)]
    return tuple((*pair, n) for pair, n in zip(found, self.omitted))

  @property
  def kept(self) -> dict[str, Any]:
    """How many of each unit take part, as `selection.select` wants them."""
    by_run = [
      (size - omitted, number)
      for number, (_, size, omitted) in enumerate(self.runs)
      for _ in range(size)
    ]
    return {
      'heads': tuple(layer.heads for layer in self.layers),
      'mlp': tuple(layer.channels for layer in self.layers),
      'layers': tuple(zip(*by_run)),
    }

  @property
  def mean_kept(self) -> dict[str, float]:
    """The same, averaged over layers that take part; of 'layers', the sum."""
    heads, channels, layers = 0, 0, 0
    for layer, size, gone in self.runs:
      layers += size - gone
      heads += layer.heads * (size - gone)
      channels += layer.channels * (size - gone)
    means = {'heads': heads / layers, 'mlp': channels / layers}
    return means | {'layers': layers}


@functools.cache
def ladders(config: Config) -> dict[str, ladder_lib.Ladder]:
  """The ladder of each unit."""
  sparsity = config.sparsity
  return {
    unit: ladder_lib.Ladder(
      rate=rate,
      split=sparsity.split,
      rungs=sparsity.rungs,
      num_steps=config.train.num_steps,
      shape=sparsity.shape,
      warm_start=sparsity.warm_start,
    )
    for unit, rate in sparsity.rates.items()
  }


@functools.cache
def phase_at(config: Config, step: int) -> Phase:
  """The phase of the step that follows `step` completed ones."""
  rung = ladders(config)['heads'].rung(step) if config.sparsity.is_on else 0
  return phase_of(config, rung, stages_lib.stage_at(config, step))


@functools.cache
def phase_of(config: Config, rung: int, stage: Stage) -> Phase:
  """The phase of a rung, in a stage."""
  model = stage.model
  rates = {unit: lad.rate_of(rung) for unit, lad in ladders(config).items()}
  scales = {u: config.sparsity.scale(u, model.num_layers) for u in rates}
  layers = tuple(
    _layer(config, model, rates['heads'] * heads, rates['mlp'] * mlp)
    for heads, mlp in zip(scales['heads'], scales['mlp'])
  )
  sizes = [len(list(run)) for _, run in itertools.groupby(layers)]
  omitted = counts.omitted_layers(rates['layers'], scales['layers'], sizes)
  is_sparse = layers != flops.dense_layers(model) or any(omitted)
  return Phase(stage, rung, layers, omitted, is_sparse)


def _layer(config, model, head_rate, channel_rate) -> flops.Layer:
  sparsity = config.sparsity
  shape = model.num_heads, model.num_kv_heads, sparsity.granularity
  heads = counts.kept_count(
    model.num_heads,
    head_rate,
    counts.head_step(*shape, sparsity.shards),
  )
  return flops.Layer(
    heads=heads,
    kv_heads=counts.kept_kv_heads(heads, *shape),
    channels=counts.kept_count(
      model.mlp_dim, channel_rate, config.channel_step
    ),
  )


def stacks(phase: Phase) -> subnetwork.Stacks:
  """Runs of layers of the same size, and what each keeps of which axis.

  Counted from the first layer that takes part on.
  """
  model = phase.stage.model
  whole = model.num_heads, model.num_kv_heads, model.mlp_dim
  found, start = [], 0
  for layer, size, omitted in phase.runs:
    if size == omitted:
      continue
    stop = start + size - omitted
    kept = layer.heads, layer.kv_heads, layer.channels
    named = zip(('heads', 'kv_heads', 'mlp'), kept, whole)
    cut = tuple((name, count) for name, count, most in named if count < most)
    found.append(subnetwork.Stack(start, stop, cut))
    start = stop
  return tuple(found)


def resting(phase: Phase) -> tuple[tuple[int, int], ...]:
  """Which omitted layers, counted from the first, lie in or around a stack.

  Those below the first layer that trains go with the first stack, those between
  two with the one before.
  """
  stops, count = [], 0
  for _, size, omitted in phase.runs:
    if size > omitted:
      stops.append(count)
    count += omitted
  starts = [0, *stops[1:]]
  return tuple(zip(starts, [*starts[1:], count]))


def starts_window(config: Config, step: int) -> bool:
  """Whether the step after `step` completed ones needs a fresh selection."""
  if step == 0 or step % config.sparsity.refresh_every == 0:
    return True
  return phase_at(config, step - 1) != phase_at(config, step)


def next_phase(config: Config, step: int) -> Phase | None:
  """The phase that follows the one at `step`, or None if it is the last."""
  later = (phase for start, _, phase in stretches(config) if start > step)
  return next(later, None)


@functools.cache
def stretches(config: Config) -> list[tuple[int, int, Phase]]:
  """(first step, one past the last, phase) of all steps of a run, in order.

  No two in a row have the same phase.
  """
  total = config.train.num_steps
  starts = {0, *(stage.start for stage in stages_lib.stages(config))}
  for ladder in ladders(config).values():
    starts |= {*ladder.boundaries}
  found = []
  for start in sorted(step for step in starts if step < total):
    phase = phase_at(config, start)
    if not found or found[-1][1] != phase:
      found.append((start, phase))
  stops = [*(start for start, _ in found[1:]), total]
  return [(start, stop, x) for (start, x), stop in zip(found, stops)]


def omission_rate(phase: Phase) -> float:
  """The share of the weights of the blocks that a phase leaves out."""
  model = phase.stage.model

  def weights(layer):
    heads = 2 * model.head_dim * layer.heads
    if model.num_heads == model.num_kv_heads:
      heads *= 2
    return heads + 3 * layer.channels

  whole = flops.Layer(model.num_heads, model.num_kv_heads, model.mlp_dim)
  kept = sum((n - gone) * weights(layer) for layer, n, gone in phase.runs)
  return 1 - kept / (phase.num_layers * weights(whole))


def describe(phase: Phase) -> dict[str, float]:
  """What a phase keeps, as realised, under the names of metrics.jsonl."""
  return {
    'sparsity/rung': phase.rung,
    'sparsity/omission_rate': omission_rate(phase),
    'sparsity/heads_kept': phase.mean_kept['heads'],
    'sparsity/channels_kept': phase.mean_kept['mlp'],
    'sparsity/layers_kept': phase.mean_kept['layers'],
    'model/num_layers': phase.num_layers,
  }


# Passes of an omitted unit, of the three of one that trains (`flops`).
PASSES = {'skip': 0, 'mean': 0, 'exact': 1, 'through': 2}


@functools.cache
def phase_flops(config: Config, phase: Phase) -> float:
  """FLOPs of an optimizer step of a phase, as executed.

  Masked execution multiplies zeros: it executes the dense step. Maps that are
  learned are applied, and differentiated, once a step.
  """
  stage, sparsity = phase.stage, config.sparsity
  is_sparse = phase.is_sparse and sparsity.execution == 'compact'
  if is_sparse:
    layers, passes = _executed(sparsity, phase)
  else:
    layers, passes = flops.dense_layers(stage.model), _of_frozen(stage)
  rests = is_sparse and sparsity.embed == 'rest'
  if stage.mode == 'frozen':
    rests = 'unembed' not in stage.trains
  total = config.tokens_per_step * flops.train_flops_per_token(
    stage.model,
    stage.seq_len,
    layers,
    passes=passes,
    omitted_passes={
      axis: PASSES[sparsity.forward(axis)] if is_sparse else 0
      for axis in ('heads', 'mlp')
    },
    head_passes=2 if rests else 3,
    lora=stage.lora,
  )
  if stage.mode == 'learn':
    total += 3 * flops.map_flops(stage.base, stage.model)
  return total


def _executed(sparsity, phase):
  """Layers that run in a sparse phase, and the passes of each.

  With resting tables of words no gradient is needed below the lowest layer that
  trains. How many that are depends on the choice: counted is the mean of a
  random one.
  """
  resting = PASSES[sparsity.forward('layers')]
  trained = [(x, 3) for x, n, gone in phase.runs for _ in range(n - gone)]
  omitted = sum(phase.omitted) if resting else 0
  if resting == 2 and sparsity.embed == 'rest':
    resting -= 1 / (len(trained) + 1)
  whole = flops.dense_layers(phase.stage.model)[0]
  return tuple(zip(*trained, *[(whole, resting)] * omitted))


def _of_frozen(stage):
  """Passes of layers of which some stand still; none below the first others."""
  first = stage.frozen.index(False)
  return tuple(
    3 if not still else 2 if place > first else 1
    for place, still in enumerate(stage.frozen)
  )


def step_flops(config: Config, step: int) -> float:
  """FLOPs of the step after `step` completed ones, as executed."""
  return phase_flops(config, phase_at(config, step))


def flops_until(config: Config, step: int) -> float:
  """FLOPs of the first `step` steps, as executed.

  A function of the step alone, so that a resumed run counts what an
  uninterrupted one does.
  """
  starts, before, each = _flops_of_stretches(config)
  number = bisect.bisect_right(starts, step) - 1
  return before[number] + (step - starts[number]) * each[number]


@functools.cache
def _flops_of_stretches(config):
  """First step, FLOPs before it and FLOPs a step, of each stretch."""
  found = stretches(config)
  each = [phase_flops(config, phase) for _, _, phase in found]
  sums = [(stop - start) * x for (start, stop, _), x in zip(found, each)]
  before = [0.0, *itertools.accumulate(sums)]
  return [start for start, _, _ in found], before, each
