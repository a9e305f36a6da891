"""The decoder: causal, packed rows apart, one function for every shape."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import tree
from satjax.model import decoder
from tests import models

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
LENGTH = 7


def make_model(**changes):
  return models.make(**changes)


def tokens_of(rows=2, length=LENGTH):
  """Rows of tokens that are all different."""
  return jnp.arange(rows * length, dtype=jnp.int32).reshape(rows, length)


@functools.cache
def program(model):
  return compiled(functools.partial(decoder.apply, model))


def apply(model, params, **batch):
  return program(model)(params, batch)


@functools.cache
def loss_and_grad(model):
  def loss(params):
    logits = decoder.apply(model, params, {'tokens': tokens_of()})
    return jnp.mean(jnp.square(logits))

  return compiled(jax.value_and_grad(loss))(models.make_params(make_model()))


PACKED = {
  'segments': np.array([[1, 1, 1, 2, 2, 2, 2]]),
  'positions': np.array([[0, 1, 2, 0, 1, 2, 3]]),
}


def test_a_position_sees_the_past_of_its_document_only():
  model = make_model()
  batch = {'tokens': tokens_of(rows=1), **PACKED}

  def outputs(embed):
    params = {**models.make_params(model), 'embed': embed}
    return jnp.sum(decoder.apply(model, params, batch)[0] ** 2, axis=-1)

  # Row t is the influence of every token on the logits at t.
  jacobian = compiled(jax.jacrev(outputs))(models.make_params(model)['embed'])
  influence = np.abs(jacobian[:, :LENGTH]).max(axis=-1)
  segments = PACKED['segments'][0]
  sees = np.tri(LENGTH, dtype=bool) & (segments[:, None] == segments)
  assert (influence[~sees] == 0).all()
  assert (influence[sees] > 1e-6).all()
  assert (jacobian[:, LENGTH:] == 0).all()


def test_rows_of_a_batch_do_not_mix():
  model = make_model()
  params, tokens = models.make_params(model), tokens_of()
  both = apply(model, params, tokens=tokens)
  swapped = apply(model, params, tokens=tokens[::-1])
  np.testing.assert_allclose(both, swapped[::-1], rtol=1e-6, atol=1e-6)


def test_positions_count_from_zero_unless_given():
  model = make_model()
  params, tokens = models.make_params(model), tokens_of()
  plain = apply(model, params, tokens=tokens)
  positions = np.tile(np.arange(LENGTH), (2, 1))
  given = apply(model, params, tokens=tokens, positions=positions)
  np.testing.assert_allclose(plain, given, rtol=1e-6, atol=1e-6)
  shifted = apply(model, params, tokens=tokens, positions=positions + 5)
  # Rotary positions are relative.
  np.testing.assert_allclose(plain, shifted, rtol=1e-4, atol=1e-4)
  spread = apply(model, params, tokens=tokens, positions=positions * 3)
  assert np.abs(plain - spread).max() > 1e-3


def numpy_decoder(model, params, tokens):
  """One row, float64, one head at a time."""
  p = jax.tree.map(lambda x: np.float64(x), params)
  attention, mlp = p['blocks']['attention'], p['blocks']['mlp']
  half, length = model.head_dim // 2, len(tokens)
  turn = np.exp(
    1j
    * np.arange(length)[:, None]
    * model.rope_theta ** (-np.arange(half) / half)
  )

  def norm(x, gain):
    mean_square = np.mean(x**2, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + model.norm_eps) * gain

  def rope(x):
    pairs = (x[:, :half] + 1j * x[:, half:]) * turn
    return np.concatenate([pairs.real, pairs.imag], axis=-1)

  x = p['embed'][tokens]
  for layer in range(model.num_layers):
    y = norm(x, p['blocks']['attention_norm'][layer])
    for head in range(model.num_heads):
      group = head // (model.num_heads // model.num_kv_heads)
      query = rope(y @ attention['query'][layer, head].T)
      key = rope(y @ attention['key'][layer, group].T)
      score = np.exp(query @ key.T / np.sqrt(model.head_dim))
      score = np.tril(score)
      weight = score / score.sum(axis=-1, keepdims=True)
      mixed = weight @ (y @ attention['value'][layer, group].T)
      x = x + mixed @ attention['output'][layer, head]
    y = norm(x, p['blocks']['mlp_norm'][layer])
    gate = y @ mlp['gate'][layer].T
    hidden = gate / (1 + np.exp(-gate)) * (y @ mlp['up'][layer].T)
    x = x + hidden @ mlp['down'][layer]
  return norm(x, p['final_norm']) @ p.get('unembed', p['embed']).T


@pytest.mark.parametrize(
  'changes', [{}, {'num_kv_heads': 4}, {'tied': True}], ids=str
)
def test_logits_are_those_of_numpy(changes):
  model = make_model(**changes)
  params, tokens = models.make_params(model), tokens_of()
  found = apply(model, params, tokens=tokens)
  for row, expected in zip(found, tokens):
    expected = numpy_decoder(model, params, np.array(expected))
    np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_documents_of_a_row_are_apart_or_one_sequence():
  model = make_model()
  params, tokens = models.make_params(model), tokens_of(rows=1)
  row = {'tokens': tokens[0], **{name: x[0] for name, x in PACKED.items()}}
  whole = numpy_decoder(model, params, np.array(tokens[0]))
  apart = [
    numpy_decoder(model, params, np.array(part))
    for part in (tokens[0, :3], tokens[0, 3:])
  ]
  for seen, expected in (
    (row, np.concatenate(apart)),
    ({'tokens': tokens[0]}, whole),
  ):
    batch = {name: x[None] for name, x in seen.items()}
    found = apply(model, params, **batch)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  assert np.abs(apart[1] - whole[3:]).max() > 1e-3


def test_a_tree_of_other_counts_is_a_model_of_its_own():
  part = make_model(num_layers=1, num_heads=2, mlp_dim=3)
  params, tokens = models.make_params(part), tokens_of()
  found = apply(make_model(), params, tokens=tokens)
  expected = numpy_decoder(part, params, np.array(tokens[0]))
  np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'changes',
  [{'scan': False}, {'remat': 'full'}, {'remat': 'minimal'}],
  ids=str,
)
def test_scan_and_remat_change_nothing(changes):
  expected, found = (
    loss_and_grad(make_model()),
    loss_and_grad(make_model(**changes)),
  )
  for one, two in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_remat_keeps_less_for_the_backward_pass():
  def saved(remat):
    model = make_model(remat=remat)

    def run(params):
      return decoder.apply(model, params, {'tokens': tokens_of()})

    _, pull = jax.eval_shape(
      functools.partial(jax.vjp, run), models.make_params(model)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(pull))

  assert saved('full') < saved('minimal') < saved('none')


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('kv_heads', [2, 4])
def test_parameters_are_those_of_the_table(tied, kv_heads):
  model = make_model(tied=tied, num_kv_heads=kv_heads)
  sizes = {
    'layers': 2,
    'heads': 4,
    'kv_heads': kv_heads,
    'head_dim': 4,
    'embed': 8,
    'mlp': 6,
    'vocab': 16,
  }
  leaves = tree.flatten(
    jax.eval_shape(
      functools.partial(decoder.init_params, model), jax.random.key(0)
    )
  )
  names = {path for path in tree.AXES if tree.has(model, path)}
  assert len(names) == (11 if tied else 12)
  assert leaves.keys() == names
  for path, leaf in leaves.items():
    assert leaf.shape == tuple(sizes[axis] for axis in tree.AXES[path]), path
    assert leaf.dtype == jnp.float32


def test_the_first_weights_have_the_scale_of_their_fan_in():
  model = make_model(embed_dim=64, mlp_dim=128, vocab_size=256, head_dim=32)
  init = compiled(functools.partial(decoder.init_params, model))
  leaves = tree.flatten(init(jax.random.key(0)))
  # Two residual branches in each of two layers share the variance.
  variances = {
    'embed': 1 / 64,
    'unembed': 1 / 64,
    'blocks/attention/query': 1 / 64,
    'blocks/attention/key': 1 / 64,
    'blocks/attention/value': 1 / 64,
    'blocks/attention/output': 1 / (4 * 32) / 4,
    'blocks/mlp/gate': 1 / 64,
    'blocks/mlp/up': 1 / 64,
    'blocks/mlp/down': 1 / 128 / 4,
  }
  for path, leaf in leaves.items():
    if path.endswith('_norm'):
      assert (leaf == 1).all()
      continue
    variance = float(np.mean(np.square(leaf)))
    np.testing.assert_allclose(variance, variances[path], rtol=0.06)
    assert (leaf[0] != leaf[1]).all()  # No two layers, nor two tokens, alike.
  other = init(jax.random.key(1))
  assert (other['embed'] != leaves['embed']).all()


@pytest.mark.parametrize('kv_heads', [2, 4])
def test_fit_reads_the_counts_off_the_tree(kv_heads):
  model = make_model(num_kv_heads=kv_heads)
  assert decoder.fit(model, models.make_params(model)) == model
  part = make_model(
    num_layers=3, num_heads=2, num_kv_heads=2, mlp_dim=5, dtype='bfloat16'
  )
  sub = models.make_params(dataclasses.replace(part, dtype='float32'))
  dense = dataclasses.replace(model, dtype='bfloat16')
  assert decoder.fit(dense, sub) == part


def test_bfloat16_computes_in_it_and_returns_float32():
  model = make_model(dtype='bfloat16')
  params = models.make_params(make_model())
  tokens = tokens_of()
  exact = apply(make_model(), params, tokens=tokens)
  found = apply(model, params, tokens=tokens)
  assert exact.dtype == found.dtype == jnp.float32
  error = np.abs(exact - found).max() / np.abs(exact).max()
  assert 1e-4 < error < 5e-2
  abstract = jax.eval_shape(
    jax.grad(lambda p: decoder.apply(model, p, {'tokens': tokens}).sum()),
    params,
  )
  assert {g.dtype for g in jax.tree.leaves(abstract)} == {jnp.dtype('float32')}


def test_what_is_observed_of_a_block():
  model = make_model()
  params, tokens = models.make_params(model), tokens_of()

  def reduce(block):
    return {unit: block[unit]['input'] for unit in ('attention', 'mlp')}

  inputs = compiled(
    lambda params: decoder.observe(model, params, {'tokens': tokens}, reduce)
  )(params)
  for value in inputs.values():
    assert value.shape == (2, 2, LENGTH, 8)
  x = np.float64(params['embed'])[np.array(tokens)]
  gain = params['blocks']['attention_norm'][0]
  expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * gain
  np.testing.assert_allclose(
    inputs['attention'][0], expected, rtol=1e-5, atol=1e-5
  )
  # Without its MLP the last block passes on what its MLP would see.
  blocks = params['blocks']
  mlp = {**blocks['mlp'], 'down': blocks['mlp']['down'].at[1].set(0)}
  cut = {
    **params,
    'blocks': {**blocks, 'mlp': mlp},
    'final_norm': blocks['mlp_norm'][1],
  }
  logits = apply(model, cut, tokens=tokens)
  np.testing.assert_allclose(
    logits,
    inputs['mlp'][1] @ params['unembed'].T,
    rtol=1e-4,
    atol=1e-4,
  )
