"""What a configuration will do, before it runs: stretches, sizes, FLOPs."""

from collections.abc import Iterator
from typing import NamedTuple

from satjax import console, flops
from satjax.config import stages
from satjax.config.run import Config
from satjax.growth import layer_maps
from satjax.growth.operators import Depth
from satjax.train import phases
from satjax.train.phases import Phase

_MOST_ROWS = 24


class Stretch(NamedTuple):
  """Consecutive steps of the same shapes."""

  start: int  # completed steps before the first one
  stop: int  # completed steps after the last one
  phase: Phase
  flops: float  # of one optimizer step, as executed
  speedup: float  # what these FLOPs allow over a dense step of the same depth


class Plan(NamedTuple):
  """A run in stretches, and what its FLOPs allow as a whole.

  `speedup` is over the same run with nothing left out; refreshes and all that
  does not shrink with the model are not counted, so no run can reach it.
  """

  stretches: list[Stretch]
  flops: float
  speedup: float
  growth: list[str]


def plan(config: Config) -> Plan:
  """The stretches of a run, from its configuration alone."""
  found, executed, whole = [], 0.0, 0.0
  for start, stop, phase in phases.stretches(config):
    own = phases.phase_flops(config, phase)
    dense = config.tokens_per_step * flops.train_flops_per_token(
      phase.stage.model, phase.stage.seq_len
    )
    found.append(Stretch(start, stop, phase, own, dense / own))
    executed += (stop - start) * own
    whole += (stop - start) * dense
  return Plan(found, executed, whole / executed, list(_growth(config)))


def _growth(config) -> Iterator[str]:
  """A line for each hop."""
  for stage in stages.stages(config):
    if not stage.operators:
      continue
    sizes = [flops.num_params(m) for m in (stage.base, stage.model)]
    rates = [
      f', connection rate {layer_maps.connection_rate(op.layer_map):.1%}'
      for op in stage.operators
      if isinstance(op, Depth) and not op.fresh
    ]
    keeps = all(op.preserves for op in stage.operators)
    yield (
      f'Growth after step {stage.start}: {sizes[0]:,} to {sizes[1]:,}'
      f' parameters{"".join(rates)}; the function'
      f' {"stays as it was" if keeps else "changes"} at first.'
    )


def depth(phase: Phase) -> str:
  """How many layers train, and of how many."""
  kept = phase.mean_kept['layers']
  total = phase.num_layers
  return f'{total}' if kept == total else f'{kept} of {total}'


def kept(phase: Phase, axis: str) -> str:
  """How many heads or channels take part of a layer: of the least, the most."""
  low, high = min(phase.kept[axis]), max(phase.kept[axis])
  return f'{low}' if low == high else f'{low} to {high}'


def render(result: Plan) -> str:
  """The plan as a Markdown table."""
  columns = ('steps', 'layers', 'width', 'trains', 'heads', 'channels')
  columns += ('omitted', 'TFLOPs a step', 'FLOPs limit')
  # Not every step of a linear descent.
  stride = -(-len(result.stretches) // _MOST_ROWS)
  rows = [
    (
      f'{s.start} to {s.stop}',
      depth(s.phase),
      f'{s.phase.stage.model.embed_dim}',
      s.phase.stage.mode,
      kept(s.phase, 'heads'),
      kept(s.phase, 'mlp'),
      f'{phases.omission_rate(s.phase):.1%}',
      f'{s.flops / 1e12:.4g}',
      f'{s.speedup:.3f}x',
    )
    for s in result.stretches[::stride]
  ]
  said = f'{result.flops:.3e} FLOPs in all.'
  if result.speedup != 1:
    said += (
      f' They allow a whole run {result.speedup:.3f}x as fast as dense training'
      ' for as many steps; whether the model is as good, only a run tells.'
    )
  return '\n'.join([console.markdown(columns, rows), said, *result.growth])
