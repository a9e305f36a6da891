"""Sampling text from a model: greedy, with a temperature, or from a nucleus.

Prompts are read at once, each token after them from a cache of keys and values
(`sampling`), or several at a time as a draft proposes them (`speculative`). The
host looks at the text after every few tokens alone.
"""

from collections.abc import Sequence
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from satjax import distributed, errors, sharding
from satjax.config.groups import ModelConfig
from satjax.data import tokenizers
from satjax.generation import sampling, speculative
from satjax.model import cached
from satjax.tree import PyTree

_CHUNK = 32  # tokens between two looks at the text
_SHORTEST = 16  # rows are padded to this length, or to a step of `bucket`


@dataclasses.dataclass(frozen=True)
class Options:
  """How texts are continued.

  Attributes:
    max_tokens: new ones of each prompt, at most.
    temperature: divides the logits before sampling; 0: the most likely token.
    top_p: sample among the most likely tokens alone, the fewest that have this
      probability together (Holtzman et al., 2020); 1: among all.
    seed: of the sampling. The draws of prompt i depend on it and on i, and not
      on the other prompts.
    stop: a continuation ends before the first of these strings.
    end_ids: of the tokens that end a text; (): the tokenizer's alone.
    is_answer: whether a continuation may not end before it has said something:
      its first token is no end and, if it ended with nothing to see even so,
      one with a text.

  Raises:
    ConfigError: one of them is out of range.
  """

  max_tokens: int = 128
  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0
  stop: Sequence[str] = ()
  end_ids: Sequence[int] = ()
  is_answer: bool = False

  def __post_init__(self):
    temperature, top_p = self.temperature, self.top_p
    if self.max_tokens < 0 or not temperature >= 0 or not 0 < top_p <= 1:
      raise errors.ConfigError(
        f'max_tokens {self.max_tokens} and temperature {temperature} must be at'
        f' least 0, and top_p {top_p} above 0 and at most 1'
      )
    if isinstance(self.stop, str) or not all(self.stop):
      raise errors.ConfigError(
        f'stop {self.stop!r} must be a sequence of strings, none of them empty'
      )

  def rule(self, tokenizer: tokenizers.Tokenizer) -> sampling.Rule:
    """What the compiled programs depend on."""
    kind = 'sample' if self.top_p == 1 else 'nucleus'
    kind = 'greedy' if self.temperature == 0 else kind
    ends = tuple(self.end_ids) or (tokenizer.eos_id,)
    return sampling.Rule(kind, ends, tokenizer.vocab_size)

  def numbers(self, barred: Sequence[int] = ()) -> sampling.Numbers:
    """What they are given."""
    return sampling.Numbers(
      jnp.float32(self.temperature),
      jnp.float32(self.top_p),
      jax.random.key(self.seed),
      jnp.array(barred, jnp.int32),
    )


@dataclasses.dataclass(frozen=True)
class Continuation:
  """Texts, and what they took.

  Attributes:
    texts: the continuation of each prompt.
    rows: its new ids, without the end of a text; maybe more than the text.
    seconds: wall time, with compilation where there was any.
    num_tokens: new ones, without the ends of texts.
    passes: of the model over a row, after those that read the prompts.
    proposed: tokens of the draft; 0 without one.
    accepted: of these, those that the model took.
  """

  texts: list[str]
  rows: Sequence[np.ndarray] = ()
  seconds: float = 0.0
  num_tokens: int = 0
  passes: int = 0
  proposed: int = 0
  accepted: int = 0


def run(
  model: ModelConfig,
  params: PyTree,
  tokenizer: tokenizers.Tokenizer,
  prompts: Sequence[str | np.ndarray],
  options: Options,
  draft: speculative.Draft | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Continuation:
  """Continues prompts as one batch, up to the end of text.

  Args:
    model: architecture and compute dtype.
    params: dense parameters, or a sub-network's.
    tokenizer: of the model.
    prompts: texts to go on from, which may be empty; or ids, their begin of
      text included.
    options: how.
    draft: a smaller model that proposes tokens; see `speculative`. The most
      likely tokens stay what they are, and samples have the distribution that
      they have without it, but are others.

  Raises:
    ConfigError: the draft does not fit.
  """
  begin = time.perf_counter()
  if draft is not None and draft.model.vocab_size < tokenizer.vocab_size:
    raise errors.ConfigError(
      f'the draft has {draft.model.vocab_size} tokens and the tokenizer'
      f' {tokenizer.vocab_size}; a draft needs the tokenizer of its target'
    )
  if not prompts or options.max_tokens == 0:
    seconds = time.perf_counter() - begin
    return Continuation([''] * len(prompts), seconds=seconds)
  ids = [
    tokenizers.begun(tokenizer, prompt) if isinstance(prompt, str) else prompt
    for prompt in prompts
  ]
  barred = options.rule(tokenizer).ends if options.is_answer else ()
  task = model, params, tokenizer, ids, options, draft, mesh
  rows, texts, state = _finish(tokenizer, ids, options, *start(*task, barred))
  if options.is_answer:
    rows, texts = _visible(task, barred, rows, texts)
  passes = state.get('passes', state['count'] - 1).sum()
  return Continuation(
    texts,
    rows,
    seconds=time.perf_counter() - begin,
    num_tokens=sum(map(len, rows)),
    passes=int(passes),
    proposed=int(passes) * draft.num_tokens if draft else 0,
    accepted=int(state['accepted'].sum()) if draft else 0,
  )


def compare(
  model: ModelConfig,
  params: PyTree,
  tokenizer: tokenizers.Tokenizer,
  prompts: Sequence[str],
  options: Options,
  draft: speculative.Draft,
  pairs: int = 5,
) -> tuple[list[Continuation], list[Continuation]]:
  """`run` with and without the draft, in turns, after one each to compile."""
  task = model, params, tokenizer, prompts, options
  runs = ([], draft), ([], None)
  for number in range(-1, pairs):
    for found, used in runs[:: -1 if number % 2 else 1]:
      found.append(run(*task, used))
  return tuple(found[1:] for found, _ in runs)


def _visible(task, barred, rows, texts):
  """Tokens and texts, anew where an answer ended with nothing to see."""
  _, _, tokenizer, ids, options, *_ = task
  is_blank = [
    not text.strip() and len(row) < options.max_tokens
    for text, row in zip(texts, rows)
  ]
  if not any(is_blank):  # none is white space, or a token without a text
    return rows, texts
  begun = start(*task, (*barred, *_blank(tokenizer)))
  again = _finish(tokenizer, ids, options, *begun)
  return (
    [new if blank else old for old, new, blank in zip(*pair, is_blank)]
    for pair in ((rows, again[0]), (texts, again[1]))
  )


def _blank(tokenizer):
  """The ids of which nothing is seen."""
  ids = range(tokenizer.vocab_size)
  return [i for i in ids if not tokenizer.decode([i]).strip()]


def start(model, params, tokenizer, ids, options, draft, mesh=None, barred=()):
  """The state after the prompts, and the program that goes on from it."""
  rule, numbers = options.rule(tokenizer), options.numbers(barred)
  length_B = np.array([len(row) for row in ids], np.int32)
  longest = bucket(int(length_B.max()))
  slots = longest + -(-options.max_tokens // _CHUNK) * _CHUNK
  slots += draft.num_tokens if draft else 0
  tokens_BS = np.zeros((len(ids), slots), np.int32)
  for row, values in zip(tokens_BS, ids):
    row[: len(values)] = values
  if mesh is not None:
    tokens_BS = jax.device_put(tokens_BS, sharding.batch_sharding(mesh))
  params = cached.cast(model, params)
  state = sampling.start(
    params,
    tokens_BS,
    length_B,
    numbers,
    model=model,
    rule=rule,
    longest=longest,
  )
  if draft is None:
    more = functools.partial(sampling.more, model=model, rule=rule)
    return state, lambda state, limit: more(params, state, numbers, limit)
  small = cached.cast(draft.model, draft.params)
  state = speculative.start(small, state, model=draft.model, longest=longest)
  more = functools.partial(
    speculative.more,
    most=options.max_tokens,
    models=(model, draft.model),
    num_tokens=draft.num_tokens,
    rule=rule,
  )
  return state, lambda state, n: more((params, small), state, numbers, n)


def bucket(length: int) -> int:
  """The next length in steps of a third to a half: 16, 24, 32, 48, 64...

  Few lengths, so that few programs are compiled.
  """
  size = 1 << (max(length, _SHORTEST) - 1).bit_length()
  return size * 3 // 4 if length <= size * 3 // 4 >= _SHORTEST else size


def _finish(tokenizer, ids, options, state, more):
  """New ids and text of each row, and the rest of the last state."""
  limit = 0
  while True:
    limit = min(limit + _CHUNK, options.max_tokens)
    state = more(state, limit)
    seen = distributed.fetch(
      {name: x for name, x in state.items() if name not in ('cache', 'draft')}
    )
    rows = [
      _before_end(tokens[len(row) :][:count], options.rule(tokenizer).ends)
      for row, tokens, count in zip(
        ids, seen['tokens'], np.minimum(seen['count'], options.max_tokens)
      )
    ]
    texts = [_text(tokenizer, *pair) for pair in zip(ids, rows)]
    cuts = [_first(text, options.stop) for text in texts]
    done_B = seen['done'] | [cut is not None for cut in cuts]
    if limit == options.max_tokens or done_B.all():
      return rows, [text[:cut] for text, cut in zip(texts, cuts)], seen
    state['done'] = jnp.asarray(done_B)


def _before_end(row, ends):
  """The tokens up to an end of text, without it."""
  return row[: np.append(np.isin(row, ends), True).argmax()]


def _text(tokenizer, ids, row):
  """What `row` adds to the text of `ids`."""
  # Decoded together: alone, a first piece may lose the space before it.
  head, text = tokenizer.decode(ids), tokenizer.decode([*ids, *row])
  return text[len(head) :] if text.startswith(head) else tokenizer.decode(row)


def _first(text, stop):
  """Where the first stop string begins, or None."""
  return min((text.find(s) for s in stop if s in text), default=None)
