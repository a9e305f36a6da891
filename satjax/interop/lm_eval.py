"""A model as lm-evaluation-harness sees it.

Texts become the ids that AutoTokenizer gives them with the files of an export,
so that the harness's own model for Hugging Face directories (`HFLM`) gives the
same numbers. A text gets a begin of text where those files put one (sentence
pieces, and a tokenizer.json whose post-processor does), and none otherwise: the
byte tokenizer puts none. What has no context is scored after the begin of text
that the files name, whether they put it or not, else after the end. Bytes and
sentence pieces stay ours in two things: a special token that a text spells is
read as its characters, and a space before a text is kept.

Letters as in `model.ops`, and R requests of a batch.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from satjax import console, errors, sharding
from satjax.config.groups import ModelConfig
from satjax.data import tokenizers
from satjax.generation import generate
from satjax.model import cached, decoder
from satjax.tree import PyTree

# Of the keys that a task may set; others would be ignored, and are refused.
_GENERATION = {'until', 'max_gen_toks', 'do_sample', 'temperature', 'top_p'}

Request = tuple[list[int], list[int]]  # ids of a context, and of what follows
Score = tuple[float, bool]  # log-probability in nats, and whether it is greedy


def adaptor(
  model: ModelConfig,
  params: PyTree,
  tokenizer: tokenizers.Tokenizer,
  *,
  max_length: int,
  mesh: jax.sharding.Mesh,
  end_ids: Sequence[int] = (),
) -> Any:
  """An `lm_eval.api.model.LM` for `lm_eval.simple_evaluate`.

  Args:
    params: dense parameters, or a sub-network's.
    max_length: tokens that the model reads at once; longer contexts are cut
      from the left.
    mesh: where `params` live, or are put.
    end_ids: of the tokens that end a text; (): the tokenizer's alone.

  Raises:
    ConfigError: the harness is not installed.
  """
  harness = errors.import_optional('lm_eval.api.model', '--tasks', 'eval')

  class Satjax(_Adaptor, harness.TemplateLM):
    """Splits texts as the harness does, and scores as `_Adaptor` does."""

  return Satjax(model, params, tokenizer, max_length, mesh, end_ids)


def reader(
  tokenizer: tokenizers.Tokenizer,
) -> tuple[Callable[[str, bool | None], list[int]], int]:
  """How AutoTokenizer reads a text, with the files of an export.

  Returns:
    A function from a text and whether special tokens are put around it (None:
    unless it begins with one) to ids; and the id that stands before what has no
    context.
  """
  files = tokenizer.files()
  prefix = tokenizer.bos_id
  if prefix is None:
    named = tokenizer.named_tokens.get('bos_token')
    prefix = tokenizer.markers.get(named, tokenizer.eos_id)
  if tokenizer.name == 'byte' or 'tokenizer.json' not in files:
    config = json.loads(files['tokenizer_config.json'])
    begin = [prefix] if config.get('add_bos_token') else []
    return lambda text, special=None: [
      *(begin if special in (None, True) else []),
      *tokenizer.encode(text).tolist(),
    ], prefix
  import tokenizers as library

  whole = library.Tokenizer.from_buffer(files['tokenizer.json'])
  whole.no_truncation()
  whole.no_padding()
  begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  begin_text = whole.id_to_token(prefix)

  def encode(text, special=None):
    if special is None:
      special = not text.startswith(begin_text)
    ids = whole.encode(text, add_special_tokens=False).ids
    return [*begin, *ids] if special else ids

  return encode, prefix


class _Adaptor:
  """The methods that TemplateLM leaves open."""

  max_gen_toks = 256  # of a task that does not say

  def __init__(self, model, params, tokenizer, max_length, mesh, end_ids):
    super().__init__()
    params = jax.device_put(params, sharding.tree_sharding(mesh, params))
    self._model, self._params = model, cached.cast(model, params)
    self._tokenizer, self._end_ids = tokenizer, end_ids
    self._encode, self._prefix = reader(tokenizer)
    self.max_length, self._mesh = max_length, mesh
    # Of one pass over the model, padding included; texts that are continued
    # take twice as much room.
    self._batch_tokens = 1024 if jax.default_backend() == 'cpu' else 8192

  @property
  def eot_token_id(self) -> int:
    return self._tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int:
    return self._prefix

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **_: Any
  ) -> list[int]:
    return self._encode(string, add_special_tokens)

  def loglikelihood(self, requests, **_):
    return super().loglikelihood(requests, disable_tqdm=True)  # see `_score`

  def _loglikelihood_tokens(self, requests, **_):
    """Scores `((context, continuation), ids, ids)`."""
    for (_, text), _, ids in requests:
      if not 0 < len(ids) <= self.max_length:
        raise errors.DataError(
          f'a continuation has {len(ids)} tokens, {errors.brief(text)}; from 1'
          f' to {self.max_length} fit into the model; shorten it, or evaluate a'
          ' model that reads more'
        )
    scores = self._score([pair[1:] for pair in requests], 'log-likelihoods')
    for (texts, _, _), found in zip(requests, scores):
      self.cache_hook.add_partial('loglikelihood', texts, found)
    return scores

  def loglikelihood_rolling(self, requests, **_):
    """Log-probability of whole texts, window by window."""
    from lm_eval import utils

    windows, owners = [], []
    for number, request in enumerate(requests):
      ids = self._encode(request.args[0], None)
      for window in utils.get_rolling_token_windows(
        token_list=ids,
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      ):
        windows.append(utils.make_disjoint_window(window))
        owners.append(number)
    totals = [0.0] * len(requests)
    for owner, found in zip(owners, self._score(windows, 'rolling windows')):
      totals[owner] += found[0]
    for request, total in zip(requests, totals):
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
    return totals

  def _score(self, requests: list[Request], what: str) -> list[Score]:
    """Scores continuations given their contexts, which are cut from the left.

    Requests that differ in their last token alone share one pass of the model,
    as the choices of a multiple-choice question do whose answers are letters.
    """
    rows = collections.defaultdict(list)
    for number, (context, continuation) in enumerate(requests):
      # The model reads all but the last token.
      row = tuple((context + continuation)[-(self.max_length + 1) : -1])
      rows[row].append(number)
    inputs = sorted(rows, key=len, reverse=True)
    lengths = [len(row) for row in inputs]
    found: list[Any] = [None] * len(requests)
    waiting = None  # so that the device computes while the host looks
    with console.Progress(what) as bar:
      tick = bar.start(len(requests))
      for part, shape in batches(lengths, self._batch_tokens, self._mesh):
        batch = [(row, rows[row]) for row in inputs[part]]
        running = batch, self._run(requests, batch, shape)
        if waiting:
          tick(_collect(requests, *waiting, found))
        waiting = running
      if waiting:
        tick(_collect(requests, *waiting, found))
    return found

  def _run(self, requests, batch, shape):
    """Starts a pass; each request is a row, a place in it, and a last token."""
    tokens_BT = np.zeros(shape, np.int32)
    asked = []
    for number, (row, askers) in enumerate(batch):
      tokens_BT[number, : len(row)] = row
      asked += [(number, len(row) - 1, requests[i][1][-1]) for i in askers]
    asked_R3 = np.zeros((_power(len(asked)), 3), np.int32)
    asked_R3[: len(asked)] = asked
    with jax.sharding.set_mesh(self._mesh):
      tokens_BT = jax.device_put(tokens_BT, sharding.batch_sharding(self._mesh))
      return _forward(self._params, tokens_BT, asked_R3, model=self._model)

  def generate_until(self, requests, **_):
    """Continues texts up to the strings that a task names."""
    alike = collections.defaultdict(list)
    for number, request in enumerate(requests):
      alike[json.dumps(request.args[1], sort_keys=True)].append(number)
    texts = [''] * len(requests)
    with console.Progress('generation') as bar:
      tick = bar.start(len(requests))
      for numbers in alike.values():
        options = self._options(requests[numbers[0]].args[1])
        room = self.max_length - options.max_tokens
        ids = {
          i: self._encode(requests[i].args[0], None)[-room:]
          or [self.prefix_token_id]
          for i in numbers
        }
        for number, text in self._continue(ids, options):
          texts[number] = text
          tick(1)
    for request, text in zip(requests, texts):
      self.cache_hook.add_partial('generate_until', request.args, text)
    return texts

  def _continue(
    self, prompts: dict[int, list[int]], options: generate.Options
  ) -> Iterator[tuple[int, str]]:
    """The number of each prompt and its new text, decoded alone."""
    order = sorted(prompts, key=lambda i: -len(prompts[i]))
    sizes = [
      generate.bucket(len(prompts[i])) + options.max_tokens for i in order
    ]
    for part, (rows, _) in batches(sizes, 2 * self._batch_tokens, self._mesh):
      ids = [prompts[i] for i in order[part]]
      ids += ids[-1:] * (rows - len(ids))
      with jax.sharding.set_mesh(self._mesh):
        found = generate.run(
          self._model,
          self._params,
          self._tokenizer,
          ids,
          options,
          mesh=self._mesh,
        )
      for number, row in zip(order[part], found.rows):
        text = self._tokenizer.decode(row)
        for stop in options.stop:
          text = text.split(stop)[0]
        yield number, text

  def _options(self, asked: dict[str, Any]) -> generate.Options:
    """The harness's words for how to generate, in ours."""
    from lm_eval.models import utils

    found = dict(utils.normalize_gen_kwargs(asked, self.max_gen_toks))
    if foreign := sorted(found.keys() - _GENERATION):
      raise errors.ConfigError(
        f'a task sets generation_kwargs {foreign}; satjax knows'
        f' {sorted(_GENERATION)}; leave the others away'
      )
    max_tokens = found['max_gen_toks']
    if not 0 < max_tokens < self.max_length:
      raise errors.ConfigError(
        f'a task asks for {max_tokens} new tokens (max_gen_toks) of a model'
        f' that reads {self.max_length}; set max_gen_toks in its'
        f' generation_kwargs, from 1 to {self.max_length - 1}'
      )
    sampled = found['do_sample']
    return generate.Options(
      max_tokens,
      temperature=float(found['temperature']) if sampled else 0.0,
      top_p=float(found.get('top_p', 1.0)) if sampled else 1.0,
      stop=[text for text in found['until'] if text],
      end_ids=self._end_ids,
    )


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
  logit_BT = jnp.take_along_axis(logits_BTV, next_BT[..., None], -1)[..., 0]
  row_R, place_R, token_R = asked_R3.T
  last_R = logits_BTV[row_R, place_R, token_R] - total_BT[row_R, place_R]
  hit_R = best_BT[row_R, place_R] == token_R
  return logit_BT - total_BT, best_BT == next_BT, last_R, hit_R


def _collect(requests, batch, arrays, found):
  """Writes the scores of one batch to `found`; how many they are."""
  logp_BT, hit_BT, last_R, hit_R = jax.device_get(arrays)
  place = 0
  for number, (row, askers) in enumerate(batch):
    for asker in askers:
      inside = slice(len(row) - len(requests[asker][1]), len(row) - 1)
      logp = logp_BT[number, inside].sum(dtype=np.float64) + last_R[place]
      greedy = hit_BT[number, inside].all() and hit_R[place]
      found[asker] = float(logp), bool(greedy)
      place += 1
  return place
