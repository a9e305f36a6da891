"""Sampling text from a model: greedy, or with a temperature.

Every new token runs the whole row again; a key/value cache comes later.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from satjax import config as config_lib
from satjax import errors
from satjax.data import tokenizers
from satjax.model import decoder
from satjax.tree import PyTree


def generate(
  model: config_lib.ModelConfig,
  params: PyTree,
  tokenizer: tokenizers.Tokenizer,
  prompt: str,
  *,
  max_tokens: int = 128,
  temperature: float = 0.0,
  seed: int = 0,
) -> str:
  """The continuation of a prompt, up to the end of text.

  Args:
    model: architecture and compute dtype.
    params: dense parameters.
    tokenizer: text to ids and back.
    prompt: text to go on from; may be empty.
    max_tokens: new tokens at most.
    temperature: divides the logits before sampling; 0: the most likely token.
    seed: of the sampling.

  Raises:
    ConfigError: `max_tokens` below 1 or `temperature` below 0.
  """
  if max_tokens < 1 or not temperature >= 0:
    raise errors.ConfigError(
      f'max_tokens {max_tokens} must be at least 1 and temperature'
      f' {temperature} at least 0'
    )
  ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(prompt)])
  row = np.zeros(len(ids) + max_tokens, np.int32)
  row[: len(ids)] = ids
  row = _continue(
    params,
    jnp.asarray(row),
    len(ids),
    jax.random.key(seed),
    jnp.asarray(temperature, jnp.float32),
    model=model,
    end=tokenizer.eos_id,
    vocab_size=tokenizer.vocab_size,
  )
  new = np.asarray(row)[len(ids) :].tolist()
  if tokenizer.eos_id in new:
    new = new[: new.index(tokenizer.eos_id)]
  return tokenizer.decode(new)


@functools.partial(jax.jit, static_argnames=('model', 'end', 'vocab_size'))
def _continue(params, row, start, key, temperature, *, model, end, vocab_size):
  """Fills `row` from position `start` on, with `end` to the last once drawn."""

  def more(carry):
    position, row = carry
    return (position < row.size) & (row[position - 1] != end)

  def extend(carry):
    position, row = carry
    logits_TV = decoder.apply(model, params, {'tokens': row[None]})[0]
    # Rows that pad the vocabulary are no tokens.
    logits_V = logits_TV[position - 1, :vocab_size]
    noise_V = jax.random.gumbel(
      jax.random.fold_in(key, position), logits_V.shape
    )
    token = jnp.argmax(logits_V + temperature * noise_V)
    return position + 1, row.at[position].set(token.astype(row.dtype))

  position, row = jax.lax.while_loop(more, extend, (start, row))
  return jnp.where(jnp.arange(row.size) < position, row, end)
