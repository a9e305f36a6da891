"""Which shapes a run has at which step: depth, rung, windows.

Everything here is a pure function of the configuration, so that a resumed run
knows the shape of what it restores, and the next phase can compile ahead.
"""

from collections.abc import Iterator
import dataclasses
import functools

from satjax import config as config_lib
from satjax import flops
from satjax.sparsity import ladder as ladder_lib
from satjax.sparsity import selection


@dataclasses.dataclass(frozen=True)
class Phase:
  """Static shapes of a train step.

  Attributes:
    num_layers: depth of the model.
    rung: of the ladder; 0 before it.
    heads: query heads that take part, in each layer.
    channels: MLP channels that take part, in each layer.
    is_sparse: whether any neuron is left out.
  """

  num_layers: int
  rung: int
  heads: int
  channels: int
  is_sparse: bool

  @property
  def kept(self) -> dict[str, int]:
    return {'heads': self.heads, 'mlp': self.channels}


def ladders(config: config_lib.Config) -> dict[str, ladder_lib.Ladder]:
  """The ladder of each unit."""
  sparsity = config.sparsity
  rates = {'heads': sparsity.head_rate, 'mlp': sparsity.channel_rate}
  return {
    unit: ladder_lib.Ladder(
      rate=rate,
      split=sparsity.split,
      rungs=sparsity.rungs,
      num_steps=config.train.num_steps,
    )
    for unit, rate in rates.items()
  }


@functools.cache
def phase_at(config: config_lib.Config, step: int) -> Phase:
  """The phase of the step that follows `step` completed ones."""
  model, sparsity = config.model, config.sparsity
  num_layers = model.num_layers
  for hop_step, factor in hops(config):
    if hop_step <= step:
      num_layers *= factor
  by_unit = ladders(config)
  rung = by_unit['heads'].rung(step) if sparsity.is_on else 0
  heads = by_unit['heads'].kept_by_rung(
    model.num_heads,
    selection.head_groups(model.num_heads, model.num_kv_heads),
  )[rung]
  channels = by_unit['mlp'].kept_by_rung(
    model.mlp_dim, sparsity.channel_multiple
  )[rung]
  return Phase(
    num_layers=num_layers,
    rung=rung,
    heads=heads,
    channels=channels,
    is_sparse=heads < model.num_heads or channels < model.mlp_dim,
  )


def hops(config: config_lib.Config) -> Iterator[tuple[int, int]]:
  """(step, factor) of each growth: the first step with its tokens read."""
  for at_tokens, _, factor in config.growth.hops:
    yield -(-at_tokens // config.tokens_per_step), factor


def hop_at(config: config_lib.Config, step: int) -> int | None:
  """The growth factor that applies before the step after `step`, if any."""
  return dict(hops(config)).get(step)


def starts_window(config: config_lib.Config, step: int) -> bool:
  """Whether the step after `step` completed ones needs a fresh selection."""
  if step == 0 or step % config.sparsity.refresh_every == 0:
    return True
  return phase_at(config, step - 1) != phase_at(config, step)


def next_phase(config: config_lib.Config, step: int) -> Phase | None:
  """The phase that follows the one at `step`, or None if it is the last."""
  now = phase_at(config, step)
  for later in range(step + 1, config.train.num_steps):
    if phase_at(config, later) != now:
      return phase_at(config, later)
  return None


def omission_rate(config: config_lib.Config, phase: Phase) -> float:
  """The share of the weights of heads and channels that a phase leaves out."""
  model = config.model
  matrices = 4 if model.num_heads == model.num_kv_heads else 2
  head = matrices * model.head_dim
  total = head * model.num_heads + 3 * model.mlp_dim
  return 1 - (head * phase.heads + 3 * phase.channels) / total


@functools.cache
def step_flops(config: config_lib.Config, step: int) -> float:
  """FLOPs of the step after `step` completed ones, as executed."""
  phase = phase_at(config, step)
  return config.tokens_per_step * flops.train_flops_per_token(
    config.model,
    config.data.seq_len,
    num_layers=phase.num_layers,
    num_heads=phase.heads,
    mlp_dim=phase.channels,
  )
