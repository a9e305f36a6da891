"""The stages of a run: which model trains from which step on; no JAX.

A growth hop opens a stage with the grown model. While it learns its maps, lets
new units in or keeps old layers frozen, that is a stage of its own. Everything
here follows from the configuration alone, and so does what may not go together.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
from typing import Any

from satjax import errors
from satjax.config import specs as specs_lib
from satjax.config.groups import Groups, LoraConfig, ModelConfig
from satjax.growth.operators import Depth, Learn, Length, Operator, Width


@dataclasses.dataclass(frozen=True)
class Stage:
  """What trains, and how, from step `start` on.

  A `mode` is 'all'; 'learn', maps from the model before to this one; 'ramp',
  new units are let in; 'frozen', old layers stand still; or 'lora', adapters.
  """

  start: int  # completed steps before the first one
  model: ModelConfig  # whole
  seq_len: int
  batch_size: int  # rows; as many tokens as ever
  mode: str = 'all'
  operators: tuple[Operator, ...] = ()  # from the model before to this one
  length: int = 0  # steps of the mode; 0: until the next stage
  trains: tuple[str, ...] = ()  # 'frozen': leaves beside the blocks that do
  base: ModelConfig | None = None  # before the last hop
  lora: LoraConfig | None = None

  @property
  def has_frozen_base(self) -> bool:
    """Whether parameters stand still beside something else that trains."""
    return self.mode in ('learn', 'lora')

  @property
  def frozen(self) -> tuple[bool, ...]:
    """Which layers stand still."""
    if self.mode != 'frozen':
      return (False,) * self.model.num_layers
    (opened,) = self.operators  # by new layers alone
    return tuple(not new for new in opened.is_new)


@functools.cache
def stages(config: Groups) -> tuple[Stage, ...]:
  """The stages of a run, in order; the first has the base model.

  Raises:
    ConfigError: growth that cannot work; says which hop, and why.
  """
  first = Stage(0, config.model, config.data.seq_len, config.train.batch_size)
  if config.lora.is_on:
    first = dataclasses.replace(first, mode='lora', lora=config.lora)
  found = [first]
  for number, raw in enumerate(config.growth.hops):
    hop = specs_lib.parse_hop(raw)
    try:
      found += _opened(config, hop, found[-1])
    except errors.ConfigError as error:
      raise errors.ConfigError(
        f'hop {number + 1} at {hop.at_tokens} tokens: {error}'
      ) from error
  return tuple(found)


def stage_at(config: Groups, step: int) -> Stage:
  """The stage of the step that follows `step` completed ones; -1: the first."""
  first, *later = stages(config)
  return [first, *(s for s in later if s.start <= step)][-1]


def cut(batch: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
  """A batch in the row length of a stage: longer rows are cut in pieces.

  Batches are read in the rows of the last stage, so that growth in length reads
  nothing twice; positions run on from piece to piece, which rotary attention
  does not see.
  """
  length = stage.seq_len
  return {
    name: x if x.shape[1] == length else x.reshape(-1, length)
    for name, x in batch.items()
  }


def restarts(config: Groups) -> tuple[int, ...]:
  """First steps of grown models, where their learning rate may restart."""
  return tuple(
    before.start + before.length if before.mode == 'learn' else before.start
    for before in stages(config)
    if any(not isinstance(op, Length) for op in before.operators)
  )


def _opened(config: Groups, hop: specs_lib.Hop, before: Stage) -> list[Stage]:
  """The stages that a hop opens: one with a mode of its own, and the rest."""
  per_step = config.tokens_per_step
  start = -(-hop.at_tokens // per_step)
  is_first = start == 0 and before.base is None
  if (before.start >= start and not is_first) or before.mode != 'all':
    since = f'begins at step {before.start}'
    if before.mode != 'all':
      since = f'has no end: {before.mode!r} until the last step'
    raise errors.ConfigError(
      f'it falls on step {start}, and the stage before {since}; leave more'
      ' tokens between them'
    )
  found, model = specs_lib.resolve_all(
    hop.specs, before.model, config.train.seed
  )
  mode, length, trains = _mode(hop, found, per_step)
  if mode == 'frozen':
    trains = tuple(n for n in trains if not (model.tied and n == 'unembed'))
  pieces = math.prod(op.factor for op in found if isinstance(op, Length))
  if before.batch_size % pieces:
    raise errors.ConfigError(
      f'rows {pieces} times as long leave no whole number of them in a batch of'
      f' {before.batch_size}; use a batch_size that {pieces} divides'
    )
  first = Stage(
    start=start,
    model=model,
    seq_len=before.seq_len * pieces,
    batch_size=before.batch_size // pieces,
    mode=mode,
    operators=found,
    length=length,
    trains=trains,
    base=before.model,
  )
  if mode == 'all' or start + length >= config.train.num_steps:
    return [first]
  sizes = first.model, first.seq_len, first.batch_size
  return [first, Stage(start + length, *sizes, base=first.base)]


def _mode(hop, found, per_step) -> tuple[str, int, tuple[str, ...]]:
  """How a grown model begins: mode, steps, what trains beside its layers."""
  last = found[-1]
  ramp = -(-last.ramp_tokens // per_step)
  if any(op.is_random for op in found) and not ramp:
    raise errors.ConfigError(
      "operator 'random' lets new units in under a mask; give it ramp_tokens,"
      ' the tokens that this takes'
    )
  if not hop.freeze_tokens:
    if isinstance(last, Learn):
      return 'learn', last.steps, ()
    return ('ramp', ramp, ()) if ramp else ('all', 0, ())
  deep = [op for op in found if isinstance(op, Depth)]
  is_plain = len(found) == 1 and deep and any(deep[0].is_new) and not ramp
  if not is_plain:
    raise errors.ConfigError(
      'freeze_tokens keeps old layers as they are while new ones train; use it'
      ' with one operator in depth that adds copies'
    )
  steps = -(-hop.freeze_tokens // per_step)
  return 'frozen', steps, specs_lib.TRAINS[hop.trains]


def problems(config: Groups) -> list[str]:
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
        f' last step of the run starts at {(steps - 1) * per_step} tokens; let'
        ' it happen earlier, train for more steps, or set growth.hops=()'
      ]
  try:
    found = stages(config)
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
  seen = [axis for axis in ('heads', 'mlp') if sparsity.sees(axis)]
  if seen:
    named = ' and '.join(f'{sparsity.forward(x)!r} of {x}' for x in seen)
    yield (
      f'config.sparsity.omitted_forward {named} knows no adapters, and'
      f" config.lora.rank is {rank}; use 'skip' of them, or 'mean'"
    )
  if sparsity.is_on and sparsity.embed == 'rest':
    yield (
      "config.sparsity.embed 'rest' is what both tables of words do anyway"
      f" beside the adapters of config.lora.rank {rank}; use 'train'"
    )
  if sparsity.is_on and sparsity.rest == 'host':
    yield (
      "config.sparsity.rest 'host' sends away what trains; that is little with"
      f" config.lora.rank {rank}, and the model stays; use 'device'"
    )


def _state_problems(config, found) -> Iterator[str]:
  """Optimizer states that cannot follow."""
  name, how = config.optimizer.name, config.growth.opt_state
  keeps = how != 'reset'
  for stage in found:
    kinds = {type(op) for op in stage.operators}
    if keeps and Learn in kinds:
      yield (
        f"opt_state {how!r}: operator 'learn' mixes weights, whose moments have"
        " no counterpart; use 'reset'"
      )
    if keeps and name == 'adafactor' and Width in kinds:
      yield (
        f"opt_state {how!r}: the factored moments of 'adafactor' cannot grow in"
        " width; use 'reset'"
      )
    if how == 'reset_new' and Width in kinds:
      yield (
        "opt_state 'reset_new' is about new layers, and a wider model has none;"
        " use 'grow' or 'reset'"
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
    for start in restarts(config):
      if opt.warmup_steps + opt.decay_steps > steps - start:
        yield (
          f"learning_rate 'restart': warmup_steps {opt.warmup_steps} +"
          f' decay_steps {opt.decay_steps} exceed the {steps - start} steps'
          f' from step {start} on; use fewer, or an earlier hop'
        )
