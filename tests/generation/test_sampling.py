"""Draws of a token have the probabilities that they should."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from satjax.generation import sampling


@functools.partial(jax.jit, static_argnums=1)
def draw(logits_BV, rule, numbers):
  keys_B = sampling.keys(numbers, jnp.zeros(len(logits_BV), jnp.int32))
  return sampling.pick(sampling.weigh(logits_BV, rule, numbers), keys_B, rule)


def draws(kind, logits_V, top_p=1.0, temperature=1.0):
  """The tokens that 4000 rows draw."""
  # A row more, which pads the vocabulary.
  logits_BV = np.tile(np.append(np.float32(logits_V), 99), (4000, 1))
  rule = sampling.Rule(kind, ends=(0,), vocab_size=len(logits_V))
  numbers = sampling.Numbers(temperature, top_p, jax.random.key(0), ())
  return np.asarray(draw(logits_BV, rule, numbers))


def test_draws_have_their_probabilities():
  share_V = np.array([0.1, 0.5, 0.0, 0.3, 0.1])
  logits_V = np.log(share_V + 1e-30)

  def check(tokens_B, expected_V):
    found_V = np.bincount(tokens_B, minlength=5) / tokens_B.size
    np.testing.assert_allclose(found_V, expected_V, atol=0.03)

  free = draws('sample', logits_V)
  check(free, share_V)
  square_V = share_V**2 / np.sum(share_V**2)
  check(draws('sample', logits_V, temperature=0.5), square_V)
  for top_p, kept in ((1e-9, [1]), (0.4, [1]), (0.6, [1, 3])):
    cut_V = np.zeros(5)
    cut_V[kept] = share_V[kept] / share_V[kept].sum()
    tokens_B = draws('nucleus', logits_V, top_p)
    check(tokens_B, cut_V)
    assert set(tokens_B) == set(kept)
  # A whole nucleus draws what no nucleus does.
  np.testing.assert_array_equal(draws('nucleus', logits_V, 1.0), free)
  # Of tokens that are equally likely, no more than it takes.
  assert len(set(draws('nucleus', np.zeros(5), 0.5))) == 3
  assert set(draws('greedy', logits_V)) == {1}
