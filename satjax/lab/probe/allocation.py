"""How much each layer leaves out, for a wanted saving of a step's FLOPs."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from satjax import flops
from satjax.config import allocation as file
from satjax.config.groups import AXES, ModelConfig
from satjax.config.run import Config
from satjax.lab.plan import stretches
from satjax.sparsity import counts

# Of channels and heads that a layer may leave out; rounded to what can be.
RATES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
# A rate below 1 that leaves out every layer whose factor is 1.
_ALL_OF_THEM = 0.999
_NEVER = 1e12  # nats


@dataclasses.dataclass(frozen=True)
class Allocation:
  """What takes part of every layer, and which of them are left out whole."""

  layers: tuple[flops.Layer, ...]
  left_out: tuple[bool, ...]

  @property
  def kept(self) -> tuple[flops.Layer, ...]:
    """The layers that take part."""
    return tuple(x for x, gone in zip(self.layers, self.left_out) if not gone)

  def counts(self, axis: str) -> list[int]:
    """How many heads or channels ('mlp') take part of each layer."""
    name = {'heads': 'heads', 'mlp': 'channels'}[axis]
    return [getattr(layer, name) for layer in self.layers]

  @property
  def groups(self) -> list[tuple[int, int, flops.Layer, list[int]]]:
    """Equal layers in a row: first, one past the last, what takes part of each,
    and those of them that are left out."""
    found, start = [], 0
    for layer, run in itertools.groupby(self.layers):
      stop = start + len(list(run))
      gone = [i for i in range(start, stop) if self.left_out[i]]
      found.append((start, stop, layer, gone))
      start = stop
    return found


class Costs:
  """FLOPs of a training step, and what a layer may keep.

  Attributes:
    units: how many of each axis there are (in a layer).
    options: what a layer may keep, everything first.
  """

  def __init__(self, model: ModelConfig, seq_len: int, multiple: int):
    """`multiple`: kept channels are one of it."""
    self.model, self._seq_len = model, seq_len
    self.steps = {
      'heads': counts.head_step(model.num_heads, model.num_kv_heads),
      'mlp': multiple,
      'layers': 1,
    }
    self.units = dict(
      zip(AXES, (model.num_heads, model.mlp_dim, model.num_layers))
    )
    pairs = itertools.product(*(self.kept(axis, RATES) for axis in AXES[:2]))
    self.options = [self.layer(*pair) for pair in pairs]

  def kept(self, axis: str, rates: Sequence[float]) -> list[int]:
    """Everything, and what omission rates come to, each once."""
    total, step = self.units[axis], self.steps[axis]
    if step > total:
      return [total]
    found = [counts.kept_count(total, rate, step) for rate in rates]
    return sorted({total, *found}, reverse=True)

  def layer(self, heads: int, channels: int) -> flops.Layer:
    """A layer that keeps so many heads and channels."""
    shape = self.model.num_heads, self.model.num_kv_heads
    return flops.Layer(heads, counts.kept_kv_heads(heads, *shape), channels)

  def spent(self, layers: Sequence[flops.Layer]) -> float:
    """Of a token, where these layers take part, one at least."""
    return flops.train_flops_per_token(self.model, self._seq_len, layers)

  def saving(self, layers: Sequence[flops.Layer]) -> float:
    """The share of a dense step's FLOPs that is not executed."""
    return 1 - self.spent(layers) / self.spent(flops.dense_layers(self.model))

  @property
  def most(self) -> float:
    """The largest saving: one layer takes part, with as little as can be."""
    return max(self.saving([option]) for option in self.options)

  def equal(self, saving: float, axes: Sequence[str]) -> Allocation | None:
    """Equal rates of some axes on all layers: the lowest that save as much.

    None: no rate does.
    """
    totals = self.units
    for rate in np.linspace(0, 1, 1 + max(totals.values()))[1:]:
      rates = {axis: [float(rate)] if axis in axes else [] for axis in totals}
      some = {axis: self.kept(axis, rates[axis])[-1] for axis in totals}
      layer = self.layer(some['heads'], some['mlp'])
      if self.saving([layer] * some['layers']) >= saving:
        gone = totals['layers'] - some['layers']
        out = (True,) * gone + (False,) * some['layers']
        return Allocation((layer,) * totals['layers'], out)
    return None

  def cheapest(
    self,
    costs_LO: np.ndarray,
    omit_L: np.ndarray,
    saving: float,
    sizes: int,
  ) -> Allocation:
    """The least damage with a saving of `saving` at least.

    Layers that follow each other share an option, in at most `sizes` groups;
    any may be left out, but for the one that matters most. With a price of
    FLOPs that is as low as the saving allows, each group by itself takes what
    is cheapest (Everett, 1963).

    Args:
      costs_LO: the damage of each option to each layer, in nats.
      omit_L: that of leaving it out.
      saving: reachable: at most `most`.
      sizes: number of groups.
    """
    omit_L = np.array(omit_L, float)
    omit_L[np.argmax(omit_L)] = _NEVER
    # Of a layer by option, as a share of a dense step.
    twice = [self.spent([x, x]) - self.spent([x]) for x in self.options]
    spent_O = np.array(twice) / self.spent(flops.dense_layers(self.model))

    def at(price):
      chosen_L, out_L = _split(costs_LO + price * spent_O, omit_L, sizes)
      chosen_L = _joined(chosen_L, out_L)
      layers = tuple(self.options[i] for i in chosen_L)
      return Allocation(layers, tuple(map(bool, out_L)))

    low, high = 1e-9, 1.0
    while self.saving(at(high).kept) < saving:
      low, high = high, 4 * high
    for _ in range(40):
      middle = (low * high) ** 0.5
      enough = self.saving(at(middle).kept) >= saving
      low, high = (low, middle) if enough else (middle, high)
    return at(high)


def _split(costs_LO, omit_L, sizes):
  """The least sum: the option of each layer, and which are left out."""
  layers = len(costs_LO)
  least_LO = np.minimum(costs_LO, omit_L[:, None])
  sums = np.pad(least_LO.cumsum(0), ((1, 0), (0, 0)))
  between = sums[None] - sums[:, None]  # [first, one past the last, option]
  option, cost = between.argmin(-1), between.min(-1)
  cost[np.tril_indices(layers + 1)] = np.inf
  best = [np.where(np.arange(layers + 1) == 0, 0.0, np.inf)]
  came = []
  for _ in range(min(sizes, layers)):
    through = best[-1][:, None] + cost
    came.append(through.argmin(0))
    best.append(through.min(0))
  stop, chosen_L = layers, np.zeros(layers, int)
  for number in range(int(np.argmin([x[-1] for x in best[1:]])), -1, -1):
    start = came[number][stop]
    chosen_L[start:stop] = option[start, stop]
    stop = start
  return chosen_L, omit_L < costs_LO[np.arange(layers), chosen_L]


def _joined(chosen_L, out_L):
  """Layers that are left out are of the group before them, or behind."""
  kept = np.flatnonzero(~out_L)
  near = np.searchsorted(kept, np.arange(len(out_L)), side='right') - 1
  return chosen_L[kept[np.maximum(near, 0)]]


def settings(
  costs: Costs, allocation: Allocation, best: Mapping[str, str]
) -> dict[str, Any]:
  """The keys of `config.sparsity` that a run takes to leave out the same.

  On the first rung of its ladder. `best`: the metric of each axis.
  """
  model = costs.model
  rates = {
    'heads': [1 - n / model.num_heads for n in allocation.counts('heads')],
    'mlp': [1 - n / model.mlp_dim for n in allocation.counts('mlp')],
    'layers': [_ALL_OF_THEM * gone for gone in allocation.left_out],
  }
  highest = {axis: max(some) for axis, some in rates.items()}
  differ = {axis for axis, some in rates.items() if min(some) < highest[axis]}
  return {
    'head_rate': highest['heads'],
    'channel_rate': highest['mlp'],
    'layer_rate': highest['layers'],
    'layer_scale': {
      axis: [rate / highest[axis] for rate in some]
      for axis, some in rates.items()
      if axis in differ
    }
    or [],
    'dense_layers': [0, 0],
    'importance': {a: m for a, m in best.items() if highest[a]},
    'selection': 'top_k',
    **({'granularity': 'per_group'} if highest['heads'] else {}),
    **({'channel_multiple': costs.steps['mlp']} if highest['mlp'] else {}),
  }


def falls_short(path: str, config: Config) -> str | None:
  """What to say where a file's rates save less in a run than was probed.

  Rows of another length, or units that are left out in other multiples.
  """
  probed = file.read(path)
  wanted = probed.get('allocation', {}).get('saving', 0.0)
  found = 1 - 1 / max(s.speedup for s in stretches.plan(config).stretches)
  if found > wanted - 0.01:
    return None
  length = probed.get('text', {}).get('seq_len')
  return (
    f'--allocation={path} saves {found:.1%} of a step here, and {wanted:.1%}'
    f' where it was probed, on rows of {length} tokens; probe with'
    f' --seq_len={config.data.seq_len} --channel_multiple={config.channel_step}'
  )
