"""Which shapes a run has at which step: stage, rung, windows.

Everything here is a pure function of the configuration, so that a resumed run
knows the shape of what it restores, and the next phase can compile ahead.
"""

import bisect
import dataclasses
import functools
import itertools

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
  layers: tuple[flops.Layer, ...]  # what takes part in each
  is_sparse: bool  # whether any neuron is left out

  @property
  def num_layers(self) -> int:
    return len(self.layers)

  @property
  def kept(self) -> dict[str, tuple[int, ...]]:
    """Neurons of each unit that take part, by layer."""
    return {
      'heads': tuple(layer.heads for layer in self.layers),
      'mlp': tuple(layer.channels for layer in self.layers),
    }

  @property
  def mean_kept(self) -> dict[str, float]:
    """The same, averaged over layers."""
    return {name: sum(n) / len(n) for name, n in self.kept.items()}


@functools.cache
def ladders(config: Config) -> dict[str, ladder_lib.Ladder]:
  """The ladder of each unit."""
  sparsity = config.sparsity
  rates = {'heads': sparsity.head_rate, 'mlp': sparsity.channel_rate}
  return {
    unit: ladder_lib.Ladder(
      rate=rate,
      split=sparsity.split,
      rungs=sparsity.rungs,
      num_steps=config.train.num_steps,
      shape=sparsity.shape,
      warm_start=sparsity.warm_start,
    )
    for unit, rate in rates.items()
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
  layers = tuple(
    _layer(config, model, rates, scale)
    for scale in layer_scales(config, model.num_layers)
  )
  whole = flops.dense_layers(model)
  return Phase(stage, rung, layers, layers != whole)


def _layer(config, model, rates, scale) -> flops.Layer:
  sparsity = config.sparsity
  shape = model.num_heads, model.num_kv_heads, sparsity.granularity
  heads = counts.kept_count(
    model.num_heads,
    rates['heads'] * scale,
    counts.head_step(*shape, sparsity.shards),
  )
  return flops.Layer(
    heads=heads,
    kv_heads=counts.kept_kv_heads(heads, *shape),
    channels=counts.kept_count(
      model.mlp_dim, rates['mlp'] * scale, config.channel_step
    ),
  )


def layer_scales(config: Config, num_layers: int) -> tuple[float, ...]:
  """The factor on the omission rates of each layer."""
  first, last = config.sparsity.dense_layers
  scales = config.sparsity.layer_scale or (1.0,) * num_layers
  return tuple(
    0.0 if layer < first or layer >= num_layers - last else scale
    for layer, scale in enumerate(scales)
  )


def stacks(phase: Phase) -> subnetwork.Stacks:
  """Runs of layers of the same size, and what each keeps of which axis."""
  model = phase.stage.model
  whole = model.num_heads, model.num_kv_heads, model.mlp_dim
  found, start = [], 0
  for layer, group in itertools.groupby(phase.layers):
    stop = start + len(list(group))
    kept = layer.heads, layer.kv_heads, layer.channels
    named = zip(('heads', 'kv_heads', 'mlp'), kept, whole)
    cut = tuple((name, count) for name, count, most in named if count < most)
    found.append(subnetwork.Stack(start, stop, cut))
    start = stop
  return tuple(found)


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
  """The share of the weights of heads and channels that a phase leaves out."""
  model = phase.stage.model

  def weights(layer):
    heads = 2 * model.head_dim * layer.heads
    if model.num_heads == model.num_kv_heads:
      heads *= 2
    return heads + 3 * layer.channels

  whole = flops.Layer(model.num_heads, model.num_kv_heads, model.mlp_dim)
  kept = sum(map(weights, phase.layers))
  return 1 - kept / (phase.num_layers * weights(whole))


def describe(phase: Phase) -> dict[str, float]:
  """What a phase keeps, as realised, under the names of metrics.jsonl."""
  return {
    'sparsity/rung': phase.rung,
    'sparsity/omission_rate': omission_rate(phase),
    'sparsity/heads_kept': phase.mean_kept['heads'],
    'sparsity/channels_kept': phase.mean_kept['mlp'],
    'model/num_layers': phase.num_layers,
  }


@functools.cache
def phase_flops(config: Config, phase: Phase) -> float:
  """FLOPs of an optimizer step of a phase, as executed.

  Masked execution multiplies zeros: it executes the dense step. Maps that are
  learned are applied, and differentiated, once a step.
  """
  stage, sparsity = phase.stage, config.sparsity
  layers = phase.layers
  if sparsity.execution == 'masked':
    layers = flops.dense_layers(stage.model)
  exact = sparsity.omitted_forward == 'exact' and phase.is_sparse
  total = config.tokens_per_step * flops.train_flops_per_token(
    stage.model,
    stage.seq_len,
    layers,
    dense_forward=exact,
    frozen=stage.frozen,
    frozen_head=stage.mode == 'frozen' and 'unembed' not in stage.trains,
    lora=stage.lora,
  )
  if stage.mode == 'learn':
    total += 3 * flops.map_flops(stage.base, stage.model)
  return total


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
