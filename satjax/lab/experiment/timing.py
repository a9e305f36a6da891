"""What a run costs in seconds: paired step times, summed over its steps.

Arms are never timed by the clock of their own runs, which meet other load at
other hours. The step of every shape that a run trains, and every kind of
refresh, takes turns with the dense step of the reference; the medians of these
ratios, times one dense step, make the seconds of a run. A ratio is a cell, and
experiments share cells as they share runs.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from satjax import flops, runtime
from satjax.config import history, stages
from satjax.config.run import Config
from satjax.lab.bench import arms as bench_arms
from satjax.lab.bench import groups as bench_groups
from satjax.lab.bench import table as bench_table
from satjax.lab.experiment.trials import digest
from satjax.train import phases
from satjax.train import setup as setup_lib

# By scale: how often arms take turns, and for how many steps each time.
TURNS = {'smoke': (2, 2), 'llm': (9, 1)}
USUAL = (15, 2)
# What is noisier is measured again, so often at most; the quietest counts.
QUIET, AGAIN = 0.05, 2
_ROOM = 8e9  # bytes of states that take turns with the dense one
# Settings that change which neurons take part, not the program that trains.
_CHOICE = {
  'importance': 'magnitude',
  'balance': False,
  'selection': 'top_k',
  'temperature': 1.0,
  'probe': 0.125,
  'stale_scores': False,
}
_WITH_LAYERS = {'heads': 'magnitude', 'mlp': 'magnitude', 'layers': 'uniform'}
_SCHEDULE = {
  **{'schedule': 'cosine', 'peak_lr': 1e-3, 'end_lr': 1e-4},
  **{'warmup_steps': 1, 'decay_steps': 0},
}
_CONSTANT = {'shape': 'ladder', 'split': 1.0, 'rungs': 1, 'warm_start': 0.0}
# What becomes of moments and of the schedule is done between two steps.
_NO_HOPS = {'hops': (), 'opt_state': 'grow', 'learning_rate': 'continue'}
# Of a dense step, whatever else the run does at other times.
_PLAIN = {
  'head_rate': 0.0,
  'channel_rate': 0.0,
  'execution': 'compact',
  'omitted_forward': 'skip',
  'omitted': 'frozen',
  'bias_correction': 'global',
  'rescale': 'none',
  'dense_layers': (0, 0),
  'layer_scale': (),
  'embed': 'train',
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """A train step of one constant shape, or a change of its selection.

  `config` is of that shape, with what does not matter set aside.
  """

  config: Config
  is_refresh: bool = False

  @functools.cached_property
  def key(self) -> str:
    return digest(history.first_form(self.config.to_dict()), self.is_refresh)


def dense_cell(config: Config) -> Cell:
  """Of a reference: what all of its cells are relative to."""
  return _cell(config, phases.phase_at(config, 0), False)


def cells(config: Config) -> list[Cell] | None:
  """The cell of every step of a run, and of a refresh before it, in order.

  None where a stage has a program of its own, such as that of frozen layers:
  it is compared by FLOPs.
  """
  if {stage.mode for stage in stages.stages(config)} - {'all', 'lora'}:
    return None
  result = []
  for step in range(config.train.num_steps):
    phase = phases.phase_at(config, step)
    if phase.is_sparse and phases.starts_window(config, step):
      result.append(_cell(config, phase, True))
    result.append(_cell(config, phase, False))
  return result


@functools.cache
def _cell(config, phase, is_refresh) -> Cell:
  values = config.to_dict()
  values['model'] |= {'init_from': ''}
  values['growth'] |= _NO_HOPS
  if config.growth.hops:
    stage = phase.stage
    values['model'] = dataclasses.asdict(stage.model) | {'init_from': ''}
    values['data'] |= {'seq_len': stage.seq_len}
    values['train'] |= {'batch_size': stage.batch_size}
  values['data'] |= {'seed': 0, 'held_out': 0.05, 'test': 0.0}
  values['optimizer'] |= _SCHEDULE
  values['train'] |= {'num_steps': 1000, 'seed': 0, 'eval_every': 0}
  # A refresh is that of the first rung: what there is to choose from is equal.
  rung = phase.rung if not is_refresh else _widest_cut(config)
  rates = _rates(config, phases.phase_of(config, rung, phase.stage))
  if config.sparsity.execution == 'masked' and phase.is_sparse:
    # One program for every rate.
    rates = {key: 0.5 if rate else 0.0 for key, rate in rates.items()}
  sparsity = values['sparsity']
  sparsity |= _CONSTANT | rates | {'refresh_every': 1000}
  if not is_refresh:
    sparsity |= _CHOICE
    if rates['layer_rate']:
      sparsity['importance'] = _WITH_LAYERS
  if not phase.is_sparse:
    sparsity |= _PLAIN
  return Cell(Config.from_dict(values), is_refresh)


def _widest_cut(config) -> int:
  """The rung that leaves out the most."""
  both = phases.ladders(config).values()
  rungs = range(len(next(iter(both)).levels))
  return max(rungs, key=lambda rung: max(lad.rate_of(rung) for lad in both))


def _rates(config, phase) -> dict[str, float]:
  """Constant rates that keep what a phase keeps."""
  model = phase.stage.model
  layers, whole = phase.layers, (model.num_heads, model.mlp_dim)
  found = {}
  for axis, key, count in (
    ('heads', 'head_rate', lambda layer: 1 - layer.heads / whole[0]),
    ('mlp', 'channel_rate', lambda layer: 1 - layer.channels / whole[1]),
  ):
    scales = config.sparsity.scale(axis, phase.num_layers)
    scale = max(scales)
    found[key] = count(layers[scales.index(scale)]) / scale
  scales = config.sparsity.scale('layers', phase.num_layers)
  return found | {'layer_rate': sum(phase.omitted) / (sum(scales) or 1)}


def seconds(config: Config, timing: Mapping[str, Any] | None) -> float | None:
  """Seconds of the steps and refreshes of a run.

  `timing` is that of `measure`, with all cells of the run; None: not timed.
  """
  found = cells(config) if timing else None
  if found is None:
    return None
  total = sum(timing['cells'][cell.key]['median'] for cell in found)
  return total * timing['dense_seconds']


def groups(dense: Config, wanted: list[Cell]) -> list[list[Cell]]:
  """Cells to `measure` at a time, so that their states fit into memory."""
  few = max(1, int(_ROOM / (12 * flops.num_params(dense.model))))
  return [wanted[n : n + few] for n in range(0, len(wanted), few)]


def measure(
  dense: Config, wanted: list[Cell], rounds: int, steps: int
) -> dict[str, Any]:
  """Times cells against the dense step; weights and tokens are random.

  Each of `rounds` times, an arm makes `steps` steps.

  Returns:
    'dense_seconds' of a step; 'noise' of two equal arms; 'cells', by key the
    spread of the ratio of a step, or a refresh, to the dense step; 'rounds',
    and how many 'cores' ran them.
  """
  first = dense_cell(dense)
  visited = {'dense': first, 'dense again': first}
  visited |= {cell.key: cell for cell in wanted}
  tasks = {}
  for name, cell in visited.items():
    arm = bench_arms.open_arm(setup_lib.make_setup(cell.config))
    train = functools.partial(arm.steps, steps)
    tasks[name] = arm.refresh if cell.is_refresh else train
    train()  # warm, as the task itself
    tasks[name]()
  times = bench_groups.take_turns('steps', tasks, rounds)
  step = np.array(times.pop('dense')) / steps
  ratios = {
    name: bench_table.spread(
      np.array(of) / (1 if visited[name].is_refresh else steps) / step
    )
    for name, of in times.items()
  }
  result = {
    'dense_seconds': float(np.median(step)),
    'noise': noise(ratios.pop('dense again'), rounds),
    'rounds': rounds,
    'cores': len(runtime.cores()),
    'cells': {**ratios, first.key: bench_table.spread(np.ones(1))},
  }
  jax.clear_caches()
  return result


def noise(again: Mapping[str, float], rounds: int) -> float:
  """How far from 1 the median ratio of equal arms is, or may well be.

  `again` is the `spread` of that ratio, whose interquartile range over the root
  of `rounds` is about a standard error of its median.
  """
  return bench_table.noise_floor(again | {'iqr': again['iqr'] / rounds**0.5})


def merge(old: Mapping[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
  """Cells timed at different times, all relative to the dense step."""
  if not old:
    return new
  noise = max(old['noise'], new['noise'])
  return {**old, 'noise': noise, 'cells': {**new['cells'], **old['cells']}}
