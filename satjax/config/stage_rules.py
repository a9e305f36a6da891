"""What may not go together with growth or adapters in a run; no JAX."""

from collections.abc import Iterator
import math
from typing import Any

from satjax import errors
from satjax.config import stages
from satjax.growth.operators import Learn, Width


def problems(config: Any) -> list[str]:
  """What is wrong with the growth or the adapters of a configuration."""
  if config.lora.is_on:
    return list(_lora_problems(config))
  if not config.growth.hops:
    return []
  steps, per_step = config.train.num_steps, config.tokens_per_step
  for at_tokens, *_ in config.growth.hops:
    if at_tokens > (steps - 1) * per_step:
      return [
        f'config.growth.hops: a hop at {at_tokens} tokens never happens; the'
        f' last step of the run starts at {(steps - 1) * per_step} tokens'
      ]
  try:
    found = stages.stages(config)
  except errors.ConfigError as error:
    return [f'config.growth.hops: {error}']
  said = [*_state_problems(config, found), *_time_problems(config, found)]
  rows = config.train.microbatch_size or config.train.batch_size
  if rows * found[-1].batch_size % config.train.batch_size:
    said.append(
      f'rows {config.train.batch_size // found[-1].batch_size} times as long do'
      f' not fit into microbatch_size {rows}; use a multiple'
    )
  return [f'config.growth: {problem}' for problem in dict.fromkeys(said)]


def _lora_problems(config) -> Iterator[str]:
  """Adapters train alone, and the model beside them is whole."""
  rank, sparsity = config.lora.rank, config.sparsity
  if config.growth.hops:
    yield (
      f'config.growth.hops {config.growth.hops} grow weights, which stand still'
      f' beside the adapters of config.lora.rank {rank}; export the run, which'
      ' adds them up, and grow the export'
    )
  if config.optimizer.name == 'muon':
    yield (
      f"config.optimizer.name 'muon' is for matrices of full rank, and"
      f' config.lora.rank is {rank}; use adamw, lion, adafactor or sgd'
    )
  if sparsity.is_on and sparsity.omitted_forward == 'exact':
    yield (
      "config.sparsity.omitted_forward 'exact' knows no adapters, and"
      f" config.lora.rank is {rank}; use 'skip' or 'mean'"
    )
  if sparsity.is_on and sparsity.rest == 'host':
    yield (
      "config.sparsity.rest 'host' sends away what trains; that is little with"
      f" config.lora.rank {rank}, and the model stays; use 'device'"
    )


def _state_problems(config, found) -> Iterator[str]:
  """Optimizer states that cannot follow."""
  name, keeps = config.optimizer.name, config.growth.opt_state == 'grow'
  for stage in found:
    kinds = {type(op) for op in stage.operators}
    if keeps and Learn in kinds:
      yield (
        "opt_state 'grow': operator 'learn' mixes weights, whose moments have"
        " no counterpart; use 'reset'"
      )
    if keeps and name == 'adafactor' and Width in kinds:
      yield (
        "opt_state 'grow': the factored moments of 'adafactor' cannot grow in"
        " width; use 'reset'"
      )
    if name == 'adafactor' and stage.mode == 'frozen':
      yield (
        "freeze_tokens: the factored moments of 'adafactor' cannot be parted;"
        ' use another optimizer'
      )
    masked = config.sparsity.is_on and config.sparsity.execution == 'masked'
    if masked and stage.mode in ('frozen', 'learn'):
      yield (
        f"sparsity.execution 'masked' knows no {stage.mode!r} layers; use"
        " 'compact'"
      )


def _time_problems(config, found) -> Iterator[str]:
  """Stages and schedules that do not fit into each other."""
  sparsity, steps = config.sparsity, config.train.num_steps
  for stage in found:
    end = min(stage.start + stage.length, steps)
    dense = sparsity.warm_start * steps
    if stage.mode != 'all' and sparsity.is_on and end > dense:
      yield (
        f'the stage {stage.mode!r} lasts until step {end}, and neurons are left'
        f' out from step {math.ceil(dense)} on; use sparsity.warm_start'
        f' {math.ceil(1000 * end / steps) / 1000} or more'
      )
  opt = config.optimizer
  if config.growth.learning_rate == 'restart':
    for start in stages.restarts(config):
      if opt.warmup_steps + opt.decay_steps > steps - start:
        yield (
          f"learning_rate 'restart': warmup_steps {opt.warmup_steps} +"
          f' decay_steps {opt.decay_steps} exceed the {steps - start} steps'
          f' from step {start} on; use fewer, or an earlier hop'
        )
