"""What the backward pass keeps, and what it computes again."""

import collections
import functools

import jax
from jax import extend
from jax._src.cudnn import fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import pytest

from satjax.model import attention, decoder
from satjax.model import cudnn as packed_cudnn
from tests import models

KINDS = ('none', 'minimal', 'full')
TOKENS = jnp.zeros((8, 64), jnp.int32)


@functools.cache
def program(remat, packed=False, **changes):
  model = models.make(remat=remat, num_layers=6, embed_dim=16, **changes)
  batch = {'tokens': TOKENS} | ({'segments': TOKENS} if packed else {})

  def loss(params):
    return jnp.sum(decoder.apply(model, params, batch) ** 2)

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
    if 'mask_type' in eqn.params:
      name = f'{name} {eqn.params["mask_type"].name}'
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


@pytest.mark.parametrize('packed', [False, True])
def test_minimal_keeps_what_the_fused_kernel_needs(monkeypatch, packed):
  """Traced only: the kernel itself needs a GPU."""
  monkeypatch.setattr(attention, 'packs', lambda: True)
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(
    cudnn, 'check_compute_capability', lambda *_: True, raising=False
  )
  options = {'attention': 'cudnn', 'dtype': 'bfloat16', 'head_dim': 8}

  def calls(remat):
    traced = program(remat, packed, **options)
    found = count(traced.jaxpr.jaxpr, collections.Counter())
    kind = 'PADDING_CAUSAL' if packed else 'CAUSAL'
    return found[f'dot_product_attention_fwd_wrapper {kind}']

  assert [calls(remat) for remat in KINDS] == [1, 1, 2]


def test_the_masks_of_rows_that_do_not_fit_are_not_kept(monkeypatch):
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(cudnn, 'check_compute_capability', lambda _: True)
  x = jnp.ones((2, 64, 2, 8), jnp.bfloat16)
  _, pull = jax.eval_shape(
    functools.partial(
      jax.vjp, lambda *qkv: packed_cudnn.attention(qkv, TOKENS[:2])
    ),
    x,
    x,
    x,
  )
  shapes = {leaf.shape for leaf in jax.tree.leaves(pull)}
  assert x.shape in shapes
  assert all(shape.count(64) <= 1 for shape in shapes)
