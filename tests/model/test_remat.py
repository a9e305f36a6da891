"""What the backward pass keeps, and what it computes again."""

import collections
import functools

import jax
from jax import extend
from jax._src.cudnn import fused_attention_stablehlo as cudnn
import jax.numpy as jnp

from satjax.model import decoder
from tests import models

KINDS = ('none', 'minimal', 'full')
TOKENS = jnp.zeros((8, 64), jnp.int32)


@functools.cache
def program(remat, **changes):
  model = models.make(remat=remat, num_layers=6, embed_dim=16, **changes)

  def loss(params):
    return jnp.sum(decoder.apply(model, params, {'tokens': TOKENS}) ** 2)

  return jax.jit(jax.grad(loss)).trace(models.make_params(model))


def test_memory_of_the_policies():
  sizes = [
    program(remat).lower().compile().memory_analysis().temp_size_in_bytes
    for remat in reversed(KINDS)
  ]
  assert sizes == sorted(sizes)
  assert sizes[0] < 0.8 * sizes[1] < 0.8 * 0.8 * sizes[2]


def count(jaxpr, counts):
  """How often each operation stands in a program, loops counted once."""
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == 'dot_general':
      shapes = [x.aval.ndim for x in eqn.invars]
      name = 'matmul' if max(shapes) == 2 else 'attention'
    counts[name] += 1
    for inner in extend.core.jaxprs_in_params(eqn.params):
      count(inner, counts)
  return counts


def test_minimal_multiplies_no_matrix_again():
  """7 of a block forward, 14 backward."""
  counts = {
    remat: count(program(remat).jaxpr.jaxpr, collections.Counter())
    for remat in KINDS
  }
  matmuls = {remat: n['matmul'] for remat, n in counts.items()}
  assert matmuls['none'] == matmuls['minimal'] < matmuls['full']
  assert counts['minimal']['rsqrt'] > counts['none']['rsqrt']


def test_minimal_keeps_what_the_fused_kernel_needs(monkeypatch):
  """Traced only: the kernel itself needs a GPU."""
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(
    cudnn, 'check_compute_capability', lambda *_: True, raising=False
  )
  options = {'attention': 'cudnn', 'dtype': 'bfloat16', 'head_dim': 8}

  def calls(remat):
    found = count(program(remat, **options).jaxpr.jaxpr, collections.Counter())
    return found['dot_product_attention_fwd_wrapper']

  assert [calls(remat) for remat in KINDS] == [1, 1, 2]
