"""Log-probabilities of many continuations, batched by length.

Requests that differ in their last token alone share one pass of the model, as
the choices of a multiple-choice question do whose answers are letters. Letters
as in `model.ops`, and R requests of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from satjax import sharding
from satjax.config.groups import ModelConfig
from satjax.generation import generate
from satjax.model import decoder
from satjax.tree import PyTree

Request = tuple[list[int], list[int]]  # ids of a context, and of what follows
Score = tuple[float, bool]


def score(
  model: ModelConfig,
  params: PyTree,
  requests: Sequence[Request],
  *,
  max_length: int,
  batch_tokens: int,
  mesh: jax.sharding.Mesh,
  tick: Callable[[int], None] = lambda done: None,
) -> list[Score]:
  """Scores continuations given their contexts.

  The model is that of `decoder.apply`; `lm_eval.adaptor` says what the other
  arguments mean. `tick` is called with the number of requests that are done.

  Args:
    requests: contexts of at least one token, continuations of at least one and
      at most `max_length`.

  Returns:
    Of each request the log-probability in nats of its continuation, and
    whether each token of it is the most likely one.
  """
  rows: dict[tuple[int, ...], list[int]] = {}
  for number, (context, continuation) in enumerate(requests):
    # The model reads all but the last token.
    row = tuple((context + continuation)[-(max_length + 1) : -1])
    rows.setdefault(row, []).append(number)
  inputs = sorted(rows, key=len, reverse=True)
  found: list[Any] = [None] * len(requests)
  waiting = None  # so that the device computes while the host looks
  for part, shape in batches(list(map(len, inputs)), batch_tokens, mesh):
    batch = [(row, rows[row]) for row in inputs[part]]
    running = batch, _run(model, params, requests, batch, shape, mesh)
    if waiting:
      _collect(requests, *waiting, found, tick)
    waiting = running
  if waiting:
    _collect(requests, *waiting, found, tick)
  return found


def batches(
  lengths: Sequence[int], batch_tokens: int, mesh: jax.sharding.Mesh
) -> Iterator[tuple[slice, tuple[int, int]]]:
  """Cuts rows that are sorted by falling length, so that few shapes occur.

  A batch has `batch_tokens` at most, unless a single row has more, and as many
  rows for each device of the mesh.

  Yields:
    The rows of a batch, and its number of rows and its length, both padded.
  """
  multiple = mesh.shape['data'] * mesh.shape['fsdp']
  start = 0
  while start < len(lengths):
    length = generate.bucket(lengths[start])
    most = max(1, batch_tokens // length // multiple) * multiple
    left = len(lengths) - start
    if left < most:
      most = min(most, -(-_power(left) // multiple) * multiple)
    yield slice(start, start + most), (most, length)
    start += most


def _power(number: int) -> int:
  """The next power of two."""
  return 1 << (number - 1).bit_length()


def _run(model, params, requests, batch, shape, mesh):
  """Starts one pass; a request is a row, a place in it, and its last token."""
  tokens_BT = np.zeros(shape, np.int32)
  asked = []
  for number, (row, askers) in enumerate(batch):
    tokens_BT[number, : len(row)] = row
    asked += [(number, len(row) - 1, requests[i][1][-1]) for i in askers]
  asked_R3 = np.zeros((_power(len(asked)), 3), np.int32)
  asked_R3[: len(asked)] = asked
  with jax.sharding.set_mesh(mesh):
    tokens_BT = jax.device_put(tokens_BT, sharding.batch_sharding(mesh))
    return _forward(params, tokens_BT, asked_R3, model=model)


@functools.partial(jax.jit, static_argnames=('model',))
def _forward(params, tokens_BT, asked_R3, *, model):
  """Log-probability of every next token, and whether it is the likeliest one.

  Both of the tokens of the rows, `[B, T]`, where the last column means nothing;
  then both of the tokens that are asked for, `[R]`.
  """
  logits_BTV = decoder.apply(model, params, {'tokens': tokens_BT})
  total_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  best_BT = jnp.argmax(logits_BTV, axis=-1)
  next_BT = jnp.roll(tokens_BT, -1, axis=1)
  next_BT1 = next_BT[..., None]
  logit_BT = jnp.take_along_axis(logits_BTV, next_BT1, axis=-1)[..., 0]
  row_R, place_R, token_R = asked_R3.T
  last_R = logits_BTV[row_R, place_R, token_R] - total_BT[row_R, place_R]
  hit_R = best_BT[row_R, place_R] == token_R
  return logit_BT - total_BT, best_BT == next_BT, last_R, hit_R


def _collect(requests, batch, arrays, found, tick):
  """Writes the scores of one batch to `found`."""
  logp_BT, hit_BT, last_R, hit_R = jax.device_get(arrays)
  place = 0
  for number, (row, askers) in enumerate(batch):
    for asker in askers:
      inside = slice(len(row) - len(requests[asker][1]), len(row) - 1)
      logp = logp_BT[number, inside].sum(dtype=np.float64) + last_R[place]
      greedy = hit_BT[number, inside].all() and hit_R[place]
      found[asker] = float(logp), bool(greedy)
      place += 1
  tick(place)
