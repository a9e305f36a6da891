"""Tokens drawn from a model one by one, on the device.

A state holds, for each row of a batch: 'tokens' [B, S] by position, of which
the first 'length' are the prompt and 'count' more were drawn, 'done' where the
text has ended, and 'cache', of every token but the last. What lies beyond these
tokens is never looked at, neither in 'tokens' nor in the cache.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from satjax.config.groups import ModelConfig
from satjax.model import cached
from satjax.tree import PyTree

State = dict[str, Any]


class Rule(NamedTuple):
  """How a token is drawn: what a compiled program depends on.

  Attributes:
    kind: 'greedy', 'sample' or 'nucleus'.
    ends: the tokens that end a text.
    vocab_size: of the tokenizer; rows that pad the vocabulary are no tokens.
  """

  kind: str
  ends: tuple[int, ...]
  vocab_size: int


class Numbers(NamedTuple):
  """How a token is drawn: what a compiled program is given.

  Attributes:
    temperature, top_p: as in `generate.Options`.
    key: of the seed.
    barred: ids that the first token is none of, int32.
  """

  temperature: jax.Array
  top_p: jax.Array
  key: jax.Array
  barred: jax.Array


@functools.partial(jax.jit, static_argnames=('model', 'rule', 'longest'))
def start(
  params: PyTree,
  tokens_BS: jax.Array,
  length_B: jax.Array,
  numbers: Numbers,
  *,
  model: ModelConfig,
  rule: Rule,
  longest: int,
) -> State:
  """Reads the prompts, none beyond `longest`, and draws a token of each."""
  logits_BV, cache = cached.prefill(
    model, params, tokens_BS[:, :longest], length_B, tokens_BS.shape[1]
  )
  logits_BV = logits_BV.at[:, numbers.barred].set(-jnp.inf)
  keys_B = keys(numbers, jnp.zeros_like(length_B))
  token_B = pick(weigh(logits_BV, rule, numbers), keys_B, rule)
  return {
    'tokens': _append(tokens_BS, length_B, token_B),
    'length': length_B,
    'count': jnp.ones_like(length_B),
    'done': ended(token_B, rule),
    'cache': cache,
  }


@functools.partial(
  jax.jit, static_argnames=('model', 'rule'), donate_argnames=('state',)
)
def more(
  params: PyTree,
  state: State,
  numbers: Numbers,
  limit: int,
  *,
  model: ModelConfig,
  rule: Rule,
) -> State:
  """Goes on until every row is done or has `limit` tokens."""

  def unfinished(state):
    return jnp.any(~state['done'] & (state['count'] < limit))

  def one(state):
    position_B = state['length'] + state['count']
    last_B1 = position_B[:, None] - 1
    token_B1 = jnp.take_along_axis(state['tokens'], last_B1, axis=1)
    logits_B1V, cache = cached.extend(
      model, params, state['cache'], token_B1, last_B1
    )
    keys_B = keys(numbers, state['count'])
    token_B = pick(weigh(logits_B1V[:, 0], rule, numbers), keys_B, rule)
    return {
      'tokens': _append(state['tokens'], position_B, token_B),
      'length': state['length'],
      'count': state['count'] + ~state['done'],
      'done': state['done'] | ended(token_B, rule),
      'cache': cache,
    }

  return lax.while_loop(unfinished, one, state)


def ended(tokens: jax.Array, rule: Rule) -> jax.Array:
  """Whether each token ends a text."""
  return jnp.isin(tokens, jnp.array(rule.ends))


def _append(tokens_BS, position_B, token_B):
  return tokens_BS.at[jnp.arange(position_B.size), position_B].set(token_B)


def keys(numbers: Numbers, count_B: jax.Array) -> jax.Array:
  """A key for each row, out of its number and its count of tokens alone."""

  def one(row, count):
    return jax.random.fold_in(jax.random.fold_in(numbers.key, row), count)

  return jax.vmap(one)(jnp.arange(count_B.size), count_B)


def weigh(logits: jax.Array, rule: Rule, numbers: Numbers) -> jax.Array:
  """Log-weights of the tokens that may be drawn, -inf for the others.

  From float32 `[..., V]` to `[..., rule.vocab_size]`, not normalised.
  """
  logits = logits[..., : rule.vocab_size]
  if rule.kind == 'greedy':
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    return jnp.where(jnp.arange(rule.vocab_size) == best, 0.0, -jnp.inf)
  weights = logits / numbers.temperature
  if rule.kind == 'nucleus':
    weights = jnp.where(_nucleus(weights, numbers.top_p), weights, -jnp.inf)
  return weights


def pick(weights_BV: jax.Array, keys_B: jax.Array, rule: Rule) -> jax.Array:
  """A token of every row by its log-weights, int32 `[B]`."""
  if rule.kind != 'greedy':
    size = weights_BV.shape[1:]
    weights_BV += jax.vmap(lambda key: jax.random.gumbel(key, size))(keys_B)
  return jnp.argmax(weights_BV, axis=-1).astype(jnp.int32)


def _nucleus(weights, top_p):
  """Which tokens are among the likeliest that reach `top_p` together."""
  order = jnp.argsort(weights, axis=-1, descending=True)
  share = jax.nn.softmax(jnp.take_along_axis(weights, order, axis=-1), axis=-1)
  # What is likelier than a token; nothing is, than the first.
  before = jnp.cumsum(share, axis=-1) - share
  kept = (before < top_p).at[..., 0].set(True)
  return jnp.put_along_axis(
    jnp.zeros_like(kept), order, kept, axis=-1, inplace=False
  )
