"""FLOPs in closed form: by hand, and as the compiler counts them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import flops
from satjax.model import decoder
from tests import models

LLAMA_7B = models.make(
  num_layers=32,
  embed_dim=4096,
  num_heads=32,
  num_kv_heads=32,
  head_dim=128,
  mlp_dim=11008,
  vocab_size=32000,
  rope_theta=10_000.0,
  dtype='bfloat16',
)
SMALL = dataclasses.replace(
  LLAMA_7B,
  num_layers=2,
  embed_dim=128,
  num_heads=4,
  num_kv_heads=2,
  head_dim=64,
  mlp_dim=256,
  vocab_size=256,
  dtype='float32',
  scan=False,
)
ROWS, LENGTH = 2, 64


def test_forward_flops_by_hand():
  model = dataclasses.replace(
    SMALL, num_layers=3, embed_dim=5, num_heads=4, num_kv_heads=2, head_dim=2
  )
  model = dataclasses.replace(model, mlp_dim=7, vocab_size=11)
  # Query and output, key and value; scores and mix at half of 10 positions.
  block = 2 * (2 * 5 * 4 * 2) + 2 * (2 * 5 * 2 * 2) + 2 * (2 * 4 * 2 * 5)
  block += 3 * (2 * 5 * 7)
  assert flops.forward_flops_per_token(model, 10) == 3 * block + 2 * 5 * 11
  assert flops.train_flops_per_token(model, 10) == 3 * (3 * block + 2 * 5 * 11)


def test_a_billion_of_parameters_costs_six_flops_each():
  # Ma et al. use 6 N D; at a short length the rest is below 1 %.
  params = 6.738e9 - 32000 * 4096  # the embedding is looked up
  found = flops.train_flops_per_token(LLAMA_7B, 64)
  assert found == pytest.approx(6 * params, rel=0.01)


@pytest.mark.parametrize('kv_heads', [4, 2])
def test_counts_replace_those_of_the_model(kv_heads):
  model = dataclasses.replace(SMALL, num_kv_heads=kv_heads)
  # Without grouped queries, keys and values go with their heads.
  smaller = dataclasses.replace(
    model, num_layers=1, num_heads=2, num_kv_heads=2, mlp_dim=64
  )
  layer = flops.Layer(heads=2, kv_heads=2, channels=64)
  found = flops.forward_flops_per_token(model, LENGTH, [layer])
  assert found == flops.forward_flops_per_token(smaller, LENGTH)
  assert found < flops.forward_flops_per_token(model, LENGTH)


def test_half_of_llama_2_7b_is_1_96_times_cheaper():
  dense = flops.train_flops_per_token(LLAMA_7B, 2048)
  half = flops.train_flops_per_token(
    LLAMA_7B, 2048, [flops.Layer(16, 16, 5504)] * 32
  )
  assert round(dense / half, 2) == 1.96
  mlp = flops.train_flops_per_token(
    LLAMA_7B, 2048, [flops.Layer(32, 32, 5504)] * 32
  )
  assert round(dense / mlp, 2) == 1.46


def test_a_dense_forward_costs_a_third_of_dense_and_two_of_the_kept():
  half = [flops.Layer(16, 16, 5504)] * 32
  dense = flops.train_flops_per_token(LLAMA_7B, 2048)
  kept = flops.train_flops_per_token(LLAMA_7B, 2048, half)
  found = flops.train_flops_per_token(LLAMA_7B, 2048, half, dense_forward=True)
  assert found == pytest.approx(dense / 3 + 2 * kept / 3)


@pytest.mark.parametrize('window', [1, 7, 63, 64, 1000])
def test_a_window_counts_what_it_sees(window):
  model = dataclasses.replace(SMALL, sliding_window=window)
  # Of its own pair, a query counts half, as of the square.
  pairs = sum(min(place + 0.5, window) for place in range(LENGTH))
  scores = 4 * model.num_heads * model.head_dim * pairs / LENGTH
  hidden = flops.forward_flops_per_token(SMALL, LENGTH)
  hidden -= flops.forward_flops_per_token(model, LENGTH)
  full = 2 * model.num_heads * model.head_dim * LENGTH
  assert hidden == pytest.approx(model.num_layers * (full - scores))


@pytest.mark.parametrize(
  'kind, peak',
  [
    ('NVIDIA H200', 989e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('TPU v5p', 459e12),
    ('TPU v5 lite', 197e12),
    ('cpu', None),
  ],
)
def test_peaks_are_known_by_device_kind(kind, peak):
  assert flops.peak_flops(kind) == peak


def matmul_flops(model):
  """What the compiler counts for the loss gradient of a batch."""
  params = jax.eval_shape(lambda: decoder.init_params(model, jax.random.key(0)))
  tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)

  def loss(params, tokens):
    logits = decoder.apply(model, params, {'tokens': tokens})
    return jnp.sum(jnp.square(logits))

  lowered = jax.jit(jax.grad(loss)).lower(params, tokens)
  return lowered.cost_analysis()['flops']


def causal_surplus(model):
  """FLOPs of the half of the attention square that the formula leaves out.

  Rows of up to one block of queries compute the whole square: 2 LENGTH H for
  each head and token, for the scores and for the mix, and thrice with the
  backward pass; the formula counts half.
  """
  forward = 2 * model.num_heads * model.head_dim * LENGTH
  return 3 * forward * model.num_layers


def counted(model):
  per_token = flops.train_flops_per_token(model, LENGTH)
  return ROWS * LENGTH * (per_token + causal_surplus(model))


@pytest.mark.parametrize(
  'changes', [{}, {'num_kv_heads': 4}, {'mlp_dim': 1024}, {'num_heads': 8}]
)
def test_a_block_costs_what_the_compiler_counts(changes):
  two = dataclasses.replace(SMALL, **changes)
  one = dataclasses.replace(two, num_layers=1)
  by_compiler = matmul_flops(two) - matmul_flops(one)
  by_formula = counted(two) - counted(one)
  # The compiler also counts norms, rotations, softmax and SiLU.
  assert 1.0 <= by_compiler / by_formula < 1.05


def test_the_output_costs_what_the_compiler_counts():
  small = dataclasses.replace(SMALL, num_layers=1)
  large = dataclasses.replace(small, vocab_size=1024)
  by_compiler = matmul_flops(large) - matmul_flops(small)
  by_formula = counted(large) - counted(small)
  np.testing.assert_allclose(by_compiler, by_formula, rtol=0.05)


# Wide enough that norms, rotations, softmax and SiLU, which only the compiler
# counts, are below a per cent.
WIDE = dataclasses.replace(
  SMALL,
  embed_dim=1024,
  num_heads=16,
  num_kv_heads=16,
  head_dim=64,
  mlp_dim=4096,
)


@pytest.mark.parametrize(
  'heads, kv_heads, kept, exact',
  [(16, 16, None, False), (16, 4, None, False), (16, 16, 8, False)]
  + [(16, 16, 8, True)],
)
def test_the_formula_is_within_a_per_cent_of_the_compiler(
  heads, kv_heads, kept, exact
):
  """Dense, grouped, a sub-network, and one with a dense forward pass."""
  dense = dataclasses.replace(WIDE, num_heads=heads, num_kv_heads=kv_heads)
  layer = flops.dense_layers(dense)[0]
  if kept:
    layer = flops.Layer(kept, kept, dense.mlp_dim * kept // heads)

  def shapes(layers, part):
    model = dataclasses.replace(
      dense,
      num_layers=layers,
      num_heads=part.heads,
      num_kv_heads=part.kv_heads,
      mlp_dim=part.channels,
    )
    return jax.eval_shape(lambda: decoder.init_params(model, jax.random.key(0)))

  def count(layers):
    rest = None
    if exact:
      others = flops.Layer(
        heads - kept, heads - kept, dense.mlp_dim - layer.channels
      )
      blocks = shapes(layers, others)['blocks']
      rest = {name: blocks[name] for name in ('attention', 'mlp')}

    def loss(params, tokens, rest):
      logits = decoder.apply(dense, params, {'tokens': tokens}, rest)
      return jnp.sum(jnp.square(logits))

    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    lowered = jax.jit(jax.grad(loss)).lower(shapes(layers, layer), tokens, rest)
    return lowered.cost_analysis()['flops']

  def formula(layers):
    model = dataclasses.replace(dense, num_layers=layers)
    per_token = flops.train_flops_per_token(
      model, LENGTH, [layer] * layers, dense_forward=exact
    )
    # The half of the attention square that the formula leaves out.
    half = 2 * dense.head_dim * LENGTH * layers
    surplus = 3 * half * layer.heads
    if exact:
      surplus = half * (2 * layer.heads + heads)
    return ROWS * LENGTH * (per_token + surplus)

  by_compiler = count(2) - count(1)
  by_formula = formula(2) - formula(1)
  assert by_compiler / by_formula == pytest.approx(1, abs=0.01)
