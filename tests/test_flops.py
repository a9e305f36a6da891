"""FLOPs in closed form: by hand, and as the compiler counts them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import flops
from satjax.model import decoder
from satjax.train import phases, programs, views
from tests import models
from tests.train import helpers

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


@pytest.mark.parametrize(
  'passes, share', [(0, 0), (1, 1 / 3), (2, 2 / 3), (2.5, 5 / 6), (3, 1)]
)
def test_omitted_matrices_cost_their_share_of_dense(passes, share):
  # At length 1 there are next to no scores.
  half = [flops.Layer(16, 16, 5504)] * 32
  dense, kept = (
    flops.train_flops_per_token(LLAMA_7B, 1, x) for x in (None, half)
  )
  found = flops.train_flops_per_token(
    LLAMA_7B, 1, half, omitted_passes={'heads': passes, 'mlp': passes}
  )
  assert found == pytest.approx(share * dense + (1 - share) * kept, rel=1e-3)
  head = 3 * 2 * LLAMA_7B.embed_dim * LLAMA_7B.vocab_size
  found = flops.train_flops_per_token(LLAMA_7B, 1, passes=[passes] * 32)
  expected = share * (dense - head) + head
  assert found == pytest.approx(expected, rel=1e-3)


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


WIDE_KEYS = ('embed_dim', 'num_heads', 'head_dim', 'mlp_dim')
HALF = {'head_rate': 0.5, 'channel_rate': 0.5}
LAYERS = {'layer_rate': 0.6}  # 3 of 5
HOWS = ('skip', 'mean', 'exact', 'through')
LAYER_HOWS = ('skip', 'exact', 'through')
MIXED = {'heads': 'through', 'mlp': 'exact', 'layers': 'through'}


def window_of(grouped=False, layers=5, **sparsity):
  """A configuration of some wide layers, its phase, and a window as shapes."""
  config = helpers.make_config(
    **{f'model__{key}': getattr(WIDE, key) for key in WIDE_KEYS},
    **{f'sparsity__{key}': value for key, value in sparsity.items()},
    model__num_kv_heads=4 if grouped else 16,
    model__num_layers=layers,
    data__seq_len=LENGTH,
    train__batch_size=ROWS,
  )
  setup, phase = helpers.one_device(config), phases.phase_at(config, 0)
  batch = helpers.random_batch(config, 0)
  return config, phase, programs.shapes(setup, batch, phase)


def surplus_of(config, phase):
  """Of the square of scores the half that the formula leaves out."""
  sparsity, heads = config.sparsity, config.model.num_heads
  times = {'skip': 0, 'mean': 0, 'exact': 1, 'through': 3}
  kept = phase.layers[0].heads
  trained = phase.mean_kept['layers']
  of_layer = 3 * kept + times[sparsity.forward('heads')] * (heads - kept)
  total = trained * of_layer
  total += sum(phase.omitted) * times[sparsity.forward('layers')] * heads
  half = 2 * config.model.head_dim * LENGTH
  return ROWS * LENGTH * half * total


@pytest.mark.parametrize(
  'grouped, sparsity',
  [
    (False, {}),
    (True, {}),
    *((False, HALF | {'omitted_forward': how}) for how in HOWS),
    (False, {'channel_rate': 0.5, 'omitted_forward': 'through'}),
    (True, {'channel_rate': 0.25, 'omitted_forward': 'exact'}),
    *((True, LAYERS | {'omitted_forward': how}) for how in LAYER_HOWS),
    (False, HALF | LAYERS),
    (False, HALF | LAYERS | {'omitted_forward': MIXED}),
    (True, {'channel_rate': 0.5, 'embed': 'rest'}),
  ],
)
def test_the_formula_is_within_a_per_cent_of_the_compiler(grouped, sparsity):
  """What trains and what rests, as the programs of a run do it.

  The compiler counts the body of a loop once. So 3 layers rest among 2: as many
  as there are loops over layers at rest, each of them counted in its place.
  """
  config, phase, opened = window_of(grouped, **sparsity)

  def loss(params, tokens, extra):
    seen = views.plain(params, None, extra)
    logits = decoder.apply(config.model, seen[0], {'tokens': tokens}, seen[1])
    return jnp.sum(jnp.square(logits))

  tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
  lowered = jax.jit(jax.grad(loss)).lower(
    opened.state.params, tokens, opened.forward_extra
  )
  by_formula = phases.phase_flops(config, phase) + surplus_of(config, phase)
  # Compiled, without what the backward pass of a layer at rest throws away.
  by_compiler = lowered.compile().cost_analysis()['flops']
  assert by_compiler / by_formula == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize('count', [1, 2])
def test_resting_tables_save_what_lies_below_the_lowest_layer(count):
  """In the mean over all choices, as the formula has it.

  Which loop over layers at rest then runs no round is data, which the compiler
  does not see. So here is a program for each choice: layers in turn, and
  gradients of those that train alone.
  """
  config, phase, _ = window_of(
    layers=3,
    layer_rate=1 - count / 3,
    omitted_forward='through',
    embed='rest',
  )
  shapes = jax.eval_shape(
    lambda: decoder.init_params(config.model, jax.random.key(0))
  )
  one = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),
    shapes['blocks'],
  )
  tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)

  def counted(chosen):
    def loss(trained, params, tokens):
      blocks = dict(enumerate(params['blocks'])) | trained
      params = params | {'blocks': tuple(blocks.values())}
      logits = decoder.apply(config.model, params, {'tokens': tokens})
      return jnp.sum(jnp.square(logits))

    lowered = jax.jit(jax.grad(loss)).lower(
      dict.fromkeys(chosen, one), shapes | {'blocks': (one,) * 3}, tokens
    )
    return lowered.cost_analysis()['flops']

  choices = itertools.combinations(range(3), count)
  by_compiler = np.mean([counted(chosen) for chosen in choices])
  surplus = 2 * config.model.head_dim * config.model.num_heads * LENGTH
  surplus *= 3 * count + (3 - count) * (3 - 2 / (count + 1))
  by_formula = phases.phase_flops(config, phase) + ROWS * LENGTH * surplus
  assert by_compiler / by_formula == pytest.approx(1, abs=0.01)
