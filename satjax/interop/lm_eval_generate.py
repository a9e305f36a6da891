"""Continuations of many prompts that are ids already, batched by length.

`generate` reads texts and begins each with a begin of text; the harness brings
ids, and compares the new tokens decoded alone.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from satjax import sharding
from satjax.config.groups import ModelConfig
from satjax.data import tokenizers
from satjax.generation import sampling
from satjax.generation.generate import Options
from satjax.interop import lm_eval_scores
from satjax.tree import PyTree

_CHUNK = 16  # tokens between two looks at the text
_SEEN = ('tokens', 'count', 'done')


def complete(
  model: ModelConfig,
  params: PyTree,
  tokenizer: tokenizers.Tokenizer,
  prompts: Sequence[list[int]],
  options: Options,
  *,
  batch_tokens: int,
  mesh: jax.sharding.Mesh,
  tick: Callable[[int], None] = lambda done: None,
) -> list[str]:
  """Continues prompts, up to the end of text or a stop string.

  Args:
    model: architecture and compute dtype.
    params: as in `decoder.apply`, cast by `cached.cast`.
    tokenizer: ids to text.
    prompts: ids, at least one each.
    options: as of `generate.generate`.
    batch_tokens: of a batch, prompts and new tokens, padding included.
    mesh: its devices share out the rows.
    tick: called with the number of prompts that are done.

  Returns:
    The text of the new tokens of each prompt, decoded alone.
  """
  order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
  sizes = [len(prompts[i]) + options.max_tokens for i in order]
  shards = mesh.shape['data'] * mesh.shape['fsdp']
  texts = [''] * len(prompts)
  for part, shape in lm_eval_scores.batches(sizes, batch_tokens, shards):
    ids = [prompts[i] for i in order[part]]
    tokens_BS = np.zeros(shape, np.int32)
    for row, values in zip(tokens_BS, ids):
      row[: len(values)] = values
    lengths_B = np.zeros(shape[0], np.int32)
    lengths_B[: len(ids)] = [len(values) for values in ids]
    with jax.sharding.set_mesh(mesh):
      tokens_BS = jax.device_put(tokens_BS, sharding.batch_sharding(mesh))
      new = _finish(model, params, tokenizer, tokens_BS, lengths_B, options)
    for number, text in zip(order[part], new):
      texts[number] = text
    tick(len(ids))
  return texts


def _finish(model, params, tokenizer, tokens_BS, lengths_B, options):
  """The new text of each row; no token is drawn for rows of length 0."""
  rule, numbers = options.rule(tokenizer), options.numbers()
  state = sampling.start(
    params,
    tokens_BS,
    np.maximum(lengths_B, 1),
    numbers,
    model=model,
    rule=rule,
    longest=lm_eval_scores.bucket(int(lengths_B.max())),
  )
  state['done'] |= lengths_B == 0
  limit = 0
  while True:
    limit = min(limit + _CHUNK, options.max_tokens)
    state = sampling.more(params, state, numbers, limit, model=model, rule=rule)
    seen = jax.device_get({name: state[name] for name in _SEEN})
    texts = [
      tokenizer.decode(row[start:][: min(count, options.max_tokens)])
      for row, start, count in zip(seen['tokens'], lengths_B, seen['count'])
    ]
    cuts = [
      min((text.find(s) for s in options.stop if s in text), default=None)
      for text in texts
    ]
    done_B = seen['done'] | [cut is not None for cut in cuts]
    if limit == options.max_tokens or done_B.all():
      return [text[:cut] for text, cut in zip(texts, cuts)]
    state['done'] = jnp.asarray(done_B)
