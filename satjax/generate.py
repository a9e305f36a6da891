"""Sampling text from a model: greedy, with a temperature, or from a nucleus.

Prompts are read at once, each token after them from a cache of keys and values
(`model.cached`). The host looks at the text after every few tokens alone.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from satjax import config as config_lib
from satjax import errors
from satjax.data import tokenizers
from satjax.model import cached
from satjax.tree import PyTree

_CHUNK = 32  # tokens between two looks at the text
_SHORTEST = 32  # prompts are padded to this, or to this times a power of two


def generate(
  model: config_lib.ModelConfig,
  params: PyTree,
  tokenizer: tokenizers.Tokenizer,
  prompts: str | Sequence[str],
  *,
  max_tokens: int = 128,
  temperature: float = 0.0,
  top_p: float = 1.0,
  seed: int = 0,
  stop: Sequence[str] = (),
) -> str | list[str]:
  """Continues prompts, up to the end of text.

  Args:
    model: architecture and compute dtype.
    params: dense parameters, or a sub-network's.
    tokenizer: text to ids and back.
    prompts: a text to go on from, which may be empty, or several; these run
      as one batch, whatever their lengths.
    max_tokens: new tokens of each prompt, at most.
    temperature: divides the logits before sampling; 0: the most likely token.
    top_p: sample among the most likely tokens alone, the fewest that have this
      probability together (Holtzman et al., 2020); 1: among all.
    seed: of the sampling. The draws of prompt i depend on it and on i, and not
      on the other prompts.
    stop: a continuation ends before the first of these strings.

  Returns:
    The continuation of the prompt, or a list of them.

  Raises:
    ConfigError: an option is out of range.
  """
  _check(max_tokens, temperature, top_p, stop)
  texts = [prompts] if isinstance(prompts, str) else list(prompts)
  if not texts or max_tokens == 0:
    new = [''] * len(texts)
  else:
    ids = [
      np.concatenate([[tokenizer.bos_id], tokenizer.encode(text)])
      for text in texts
    ]
    how = {
      'temperature': jnp.float32(temperature),
      'top_p': jnp.float32(top_p),
      'key': jax.random.key(seed),
    }
    kinds = {
      'model': model,
      'kind': _kind(temperature, top_p),
      'end': tokenizer.eos_id,
      'vocab_size': tokenizer.vocab_size,
    }
    params = cached.cast(model, params)
    new = _continue(params, tokenizer, ids, max_tokens, stop, how, kinds)
  return new[0] if isinstance(prompts, str) else new


def _check(max_tokens, temperature, top_p, stop):
  if max_tokens < 0 or not temperature >= 0 or not 0 < top_p <= 1:
    raise errors.ConfigError(
      f'max_tokens {max_tokens} and temperature {temperature} must be at least'
      f' 0, and top_p {top_p} above 0 and at most 1'
    )
  if isinstance(stop, str) or not all(stop):
    raise errors.ConfigError(
      f'stop {stop!r} must be a sequence of strings, none of them empty'
    )


def _kind(temperature, top_p):
  if temperature == 0:
    return 'greedy'
  return 'sample' if top_p == 1 else 'nucleus'


def _continue(params, tokenizer, ids, max_tokens, stop, how, kinds):
  """The new text of each row of ids."""
  lengths_B = np.array([len(row) for row in ids], np.int32)
  tokens_BT = np.zeros((len(ids), _bucket(lengths_B.max())), np.int32)
  for row, values in zip(tokens_BT, ids):
    row[: len(values)] = values
  size = tokens_BT.shape[1] + -(-max_tokens // _CHUNK) * _CHUNK
  state = _start(params, tokens_BT, lengths_B, model=kinds['model'], size=size)
  rows = np.zeros((len(ids), 0), np.int32)
  while True:
    limit = min(max_tokens - rows.shape[1], _CHUNK)
    state, chunk_BC = _more(params, state, how, limit, **kinds)
    rows = np.concatenate([rows, np.asarray(chunk_BC)[:, :limit]], axis=1)
    texts = [_text(tokenizer, *pair) for pair in zip(ids, rows)]
    cuts = [_first(text, stop) for text in texts]
    done_B = np.asarray(state['done']) | [cut is not None for cut in cuts]
    if rows.shape[1] == max_tokens or done_B.all():
      return [text[:cut] for text, cut in zip(texts, cuts)]
    state['done'] = jnp.asarray(done_B)


def _bucket(length):
  """Few lengths, so that few programs are compiled."""
  return max(_SHORTEST, 1 << int(length - 1).bit_length())


def _text(tokenizer, ids, row):
  """What `row` adds to the text of `ids`, before the end of text."""
  new = row.tolist()
  if tokenizer.eos_id in new:
    new = new[: new.index(tokenizer.eos_id)]
  # Decoded together: alone, a first piece may lose the space before it.
  head, text = tokenizer.decode(ids), tokenizer.decode([*ids, *new])
  return text[len(head) :] if text.startswith(head) else tokenizer.decode(new)


def _first(text, stop):
  """Where the first stop string begins, or None."""
  return min((text.find(s) for s in stop if s in text), default=None)


@functools.partial(jax.jit, static_argnames=('model', 'size'))
def _start(params, tokens_BT, lengths_B, *, model, size):
  """Reads the prompts.

  Returns:
    'cache'; 'logits' [B, V] of the token to come, 'position' [B], its place;
    'done' [B], whether the text has ended; 'step', tokens drawn so far.
  """
  logits_BV, cache = cached.prefill(model, params, tokens_BT, lengths_B, size)
  return {
    'cache': cache,
    'logits': logits_BV,
    'position': lengths_B,
    'done': jnp.zeros(lengths_B.shape, bool),
    'step': jnp.int32(0),
  }


@functools.partial(
  jax.jit,
  static_argnames=('model', 'kind', 'end', 'vocab_size'),
  donate_argnames=('state',),
)
def _more(params, state, how, limit, *, model, kind, end, vocab_size):
  """Draws up to `limit` tokens of every row, `end` after a row's last.

  Returns:
    The state, and the tokens int32 `[B, _CHUNK]`.
  """
  chunk_BC = jnp.full((state['done'].size, _CHUNK), end, jnp.int32)

  def unfinished(carry):
    number, state, _ = carry
    return (number < limit) & ~jnp.all(state['done'])

  def one(carry):
    number, state, chunk_BC = carry
    # Rows that pad the vocabulary are no tokens.
    logits_BV = state['logits'][:, :vocab_size]
    token_B = draw(logits_BV, state['step'], kind, **how)
    token_B = jnp.where(state['done'], end, token_B)
    logits_BV, cache = cached.decode_step(
      model, params, state['cache'], token_B, state['position']
    )
    state = {
      'cache': cache,
      'logits': logits_BV,
      'position': state['position'] + 1,
      'done': state['done'] | (token_B == end),
      'step': state['step'] + 1,
    }
    return number + 1, state, chunk_BC.at[:, number].set(token_B)

  return lax.while_loop(unfinished, one, (0, state, chunk_BC))[1:]


def draw(
  logits_BV: jax.Array,
  step: jax.Array,
  kind: str,
  temperature: jax.Array,
  top_p: jax.Array,
  key: jax.Array,
) -> jax.Array:
  """One token of every row, int32 `[B]`.

  Args:
    logits_BV: float32.
    step: number of the draw.
    kind: 'greedy', 'sample' or 'nucleus', what the next two ask for.
    temperature: as in `generate`.
    top_p: as in `generate`.
    key: of the seed; a row draws from its own number and the step.
  """
  if kind == 'greedy':
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  scaled_BV = logits_BV / temperature
  if kind == 'nucleus':
    scaled_BV = jnp.where(_nucleus(scaled_BV, top_p), scaled_BV, -jnp.inf)
  batch, vocab_size = logits_BV.shape

  def noise_of(row):
    own = jax.random.fold_in(jax.random.fold_in(key, row), step)
    return jax.random.gumbel(own, (vocab_size,))

  noise_BV = jax.vmap(noise_of)(jnp.arange(batch))
  return jnp.argmax(scaled_BV + noise_BV, axis=-1).astype(jnp.int32)


def _nucleus(scaled_BV, top_p):
  """Which tokens are among the likeliest that reach `top_p` together."""
  order_BV = jnp.argsort(scaled_BV, axis=-1, descending=True)
  ranked_BV = jnp.take_along_axis(scaled_BV, order_BV, axis=-1)
  share_BV = jax.nn.softmax(ranked_BV, axis=-1)
  # What is likelier than a token; nothing is, than the first.
  before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
  rows_B1 = jnp.arange(scaled_BV.shape[0])[:, None]
  kept_BV = (before_BV < top_p).at[:, 0].set(True)
  return jnp.zeros_like(kept_BV).at[rows_B1, order_BV].set(kept_BV)
