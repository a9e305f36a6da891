"""What one device of a mesh computes of a train step, as a few numbers."""

import dataclasses

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


def share(config: Config, phase: Phase, mesh: AbstractMesh) -> Share:
  """What one device of a mesh computes."""
  model, train, kept = phase.stage.model, config.train, phase.mean_kept
  if config.sparsity.execution == 'masked':
    kept = dict(
      zip(
        ('heads', 'mlp', 'layers'),
        (model.num_heads, model.mlp_dim, model.num_layers),
      )
    )
    kv_heads = model.num_kv_heads
  else:
    kv_heads = sum(x.kv_heads for x in phase.layers) / len(phase.layers)
    if phase.is_sparse:
      kept = kept | _through(config, model)
  parts = train.batch_size // (train.microbatch_size or train.batch_size)
  rows = phase.stage.batch_size / parts
  size, tensor = model.head_dim, mesh.shape['tensor']
  shards = mesh.shape['data'] * mesh.shape['fsdp']
  tokens = rows * phase.stage.seq_len / shards
  return Share(
    tokens=tokens,
    microbatches=parts,
    layers=kept['layers'],
    width=model.embed_dim,
    heads=size * (kept['heads'] + 2 * kv_heads) / tensor,
    mixed=size * kept['heads'] / tensor,
    channels=kept['mlp'] / tensor,
    vocab=model.vocab_size / tensor,
    predicted=min(tokens, train.loss_chunk or tokens),
    itemsize=jnp.dtype(model.dtype).itemsize,
  )


def _through(config, model):
  """Neurons that gradients go through are there, whether they train or not."""
  sizes = {'heads': model.num_heads, 'mlp': model.mlp_dim}
  return {
    axis: size
    for axis, size in sizes.items()
    if config.sparsity.forward(axis) == 'through'
  }


def resting(
  config: Config, phase: Phase, mesh: AbstractMesh
) -> tuple[Share, int]:
  """The same of layers that count though they rest; how many passes they take.

  Passes: of `phases.PASSES`.
  """
  model = phase.stage.model
  passes = phases.PASSES[config.sparsity.forward('layers')]
  is_masked = config.sparsity.execution == 'masked'
  size, tensor = model.head_dim, mesh.shape['tensor']
  found = dataclasses.replace(
    share(config, phase, mesh),
    layers=sum(phase.omitted) if passes and not is_masked else 0,
    heads=size * (model.num_heads + 2 * model.num_kv_heads) / tensor,
    mixed=size * model.num_heads / tensor,
    channels=model.mlp_dim / tensor,
  )
  return found, passes


def beside(config: Config, phase: Phase, mesh: AbstractMesh) -> Share:
  """The same of neurons that count in the forward pass though they rest.

  They are in layers that train; its `layers` are 0 where there are none.
  """
  model, part = phase.stage.model, share(config, phase, mesh)
  tensor, size = mesh.shape['tensor'], model.head_dim
  mixed, heads, channels = 0.0, 0.0, 0.0
  if config.sparsity.forward('heads') == 'exact':
    mixed = size * model.num_heads / tensor - part.mixed
    whole = size * (model.num_heads + 2 * model.num_kv_heads) / tensor
    heads = whole - part.heads
  if config.sparsity.forward('mlp') == 'exact':
    channels = model.mlp_dim / tensor - part.channels
  layers = part.layers if mixed or channels else 0
  return dataclasses.replace(
    part, layers=layers, mixed=mixed, heads=heads, channels=channels
  )


def sums_whole(width: int, mesh: AbstractMesh, lanes: int) -> bool:
  """Whether gradients are summed whole over fsdp, instead of scattered.

  So does the TPU compiler where shards along embed_dim are no multiple of its
  `lanes`, or where copies of the model take part too.
  """
  narrow = width % (mesh.shape['fsdp'] * lanes) != 0
  return lanes > 1 and (narrow or mesh.shape['data'] > 1)
