"""What one device of a mesh computes of a train step, as a few numbers."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from satjax.config.run import Config
from satjax.train import phases
from satjax.train.phases import Phase


@dataclasses.dataclass(frozen=True)
class Share:
  """What one device computes of a phase.

  Attributes:
    tokens: of a microbatch.
    width: embed_dim.
    heads: head_dim times query heads, and twice the key/value heads.
    mixed: head_dim times query heads.
    vocab: rows of the output matrix.
    predicted: tokens whose logits there are at once.
    itemsize: bytes of an activation.
  """

  tokens: float
  microbatches: int
  layers: int
  width: int
  heads: float
  mixed: float
  channels: float
  vocab: float
  predicted: float
  itemsize: int

  @property
  def layer_weights(self) -> float:
    """Numbers in the matrices of a layer."""
    return self.width * (self.heads + self.mixed + 3 * self.channels)

  @property
  def layer_values(self) -> float:
    """Bytes of a token that a layer computes on its way to its output."""
    numbers = 3 * self.width + self.heads + self.mixed + 3 * self.channels
    return numbers * self.itemsize

  def saved(self, remat: str) -> float:
    """Bytes of a token that a layer leaves for the backward pass.

    Of each of two norms three float32 arrays are left, where nothing is
    recomputed. One whose weights have no gradient leaves 'minimal' at most.
    """
    inner = self.heads + self.mixed
    numbers = {
      'none': 4 * self.width + inner + self.mixed + 3 * self.channels,
      'minimal': 2 * self.width + inner + 2 * self.channels,
      'full': self.width,
    }
    return numbers[remat] * self.itemsize


class Shares(NamedTuple):
  """What one device computes of a phase, by how that takes part."""

  trains: Share
  rests: Share  # of layers that count though they rest
  passes: int  # that these take, of `phases.PASSES`
  # Of neurons that count in the forward pass though they rest, in layers that
  # train. Its `layers` are 0 where there are none; so are those of `rests`.
  beside: Share


def shares(config: Config, phase: Phase, mesh: AbstractMesh) -> Shares:
  """What one device of a mesh computes."""
  model, train, sparsity = phase.stage.model, config.train, config.sparsity
  size, tensor = model.head_dim, mesh.shape['tensor']
  parts = train.batch_size // (train.microbatch_size or train.batch_size)
  tokens = phase.stage.batch_size / parts * phase.stage.seq_len
  tokens /= mesh.shape['data'] * mesh.shape['fsdp']

  def share(layers, heads, kv_heads, channels):
    return Share(
      tokens=tokens,
      microbatches=parts,
      layers=layers,
      width=model.embed_dim,
      heads=size * (heads + 2 * kv_heads) / tensor,
      mixed=size * heads / tensor,
      channels=channels / tensor,
      vocab=model.vocab_size / tensor,
      predicted=min(tokens, train.loss_chunk or tokens),
      itemsize=jnp.dtype(model.dtype).itemsize,
    )

  # Query heads, key/value heads and channels of a layer.
  whole = model.num_heads, model.num_kv_heads, model.mlp_dim
  passes = phases.PASSES[sparsity.forward('layers')]
  if sparsity.execution == 'masked':
    trains, nothing = share(model.num_layers, *whole), share(0, *whole)
    return Shares(trains, nothing, passes, nothing)
  kept = phase.mean_kept
  kv_heads = sum(x.kv_heads for x in phase.layers) / len(phase.layers)
  trained = kept['heads'], kv_heads, kept['mlp']
  forward = [sparsity.forward(axis) for axis in ('heads', 'heads', 'mlp')]
  # What gradients go through is there, whether it trains or not.
  there = [
    n if how == 'through' else part
    for n, part, how in zip(whole, trained, forward)
  ]
  exact = [
    n - part if how == 'exact' else 0
    for n, part, how in zip(whole, trained, forward)
  ]
  return Shares(
    trains=share(kept['layers'], *there),
    rests=share(sum(phase.omitted) if passes else 0, *whole),
    passes=passes,
    beside=share(kept['layers'] if any(exact) else 0, *exact),
  )
