"""Speculative decoding: a small model proposes tokens, the large one checks.

Leviathan et al., 2023; Chen et al., 2023. In a round the draft proposes
`num_tokens` tokens of each row; the target reads them all at once, keeps the
first ones by rejection sampling and adds one of its own. What is drawn has the
distribution of the target whatever the draft is, and greedy tokens are those
of plain decoding; but reading several tokens at once may round otherwise than
one by one, so that in bfloat16 either of two tokens that are as likely may
win. Rows of a batch go on at their own pace. A state is that of
`sampling`, and has 'draft', the draft's cache, 'passes' of the target over
each row, and 'accepted' tokens of the draft.
"""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp

from satjax import errors, tree
from satjax.config.groups import ModelConfig
from satjax.generation import sampling
from satjax.generation.sampling import Numbers, Rule, State
from satjax.model import cached
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Draft:
  """A model that proposes tokens, of the target's tokenizer.

  Attributes:
    model: architecture and compute dtype.
    params: of the model.
    num_tokens: proposed in a round.
  """

  model: ModelConfig
  params: PyTree
  num_tokens: int = 4

  def __post_init__(self):
    if self.num_tokens < 1:
      raise errors.ConfigError(
        f'{self.num_tokens} draft tokens in a round; at least 1'
      )


def first_layers(
  model: ModelConfig, params: PyTree, num_layers: int, num_tokens: int = 4
) -> Draft:
  """The first layers of a model as its draft, with its norm and unembedding.

  Raises:
    ConfigError: the model does not have so many layers, and more.
  """
  if not 0 < num_layers < model.num_layers:
    raise errors.ConfigError(
      f'a draft of {num_layers} layers; a model of {model.num_layers} can have'
      f' one of 1 to {model.num_layers - 1}'
    )
  kept, left = [], num_layers
  for stack in tree.stacks(params):
    if left:
      kept.append(jax.tree.map(lambda x, n=left: x[:n], stack))
      left -= len(jax.tree.leaves(kept[-1])[0])
  return Draft(
    dataclasses.replace(model, num_layers=num_layers),
    {**params, 'blocks': tuple(kept)},
    num_tokens,
  )


@functools.partial(jax.jit, static_argnames=('model', 'longest'))
def start(
  params: PyTree, state: State, *, model: ModelConfig, longest: int
) -> State:
  """A state of `sampling.start` whose prompts the draft has read too.

  `params` and `model` are the draft's.
  """
  prompt_BT, slots = state['tokens'][:, :longest], state['tokens'].shape[1]
  _, cache = cached.prefill(model, params, prompt_BT, state['length'], slots)
  zero_B = jnp.zeros_like(state['count'])
  return {**state, 'draft': cache, 'passes': zero_B, 'accepted': zero_B}


@functools.partial(
  jax.jit,
  static_argnames=('models', 'num_tokens', 'rule'),
  donate_argnames=('state',),
)
def more(
  params: tuple[PyTree, PyTree],
  state: State,
  numbers: Numbers,
  limit: int,
  most: int,
  *,
  models: tuple[ModelConfig, ModelConfig],
  num_tokens: int,
  rule: Rule,
) -> State:
  """Goes on until every row is done or has `limit` tokens.

  A row that is ahead goes on up to `most` tokens, or a few more: the state has
  `num_tokens` slots more than tokens may be drawn. Of `params` and `models`
  the target's come first.
  """

  def unfinished(state):
    return jnp.any(~state['done'] & (state['count'] < limit))

  def one(state):
    keys_B = sampling.keys(numbers, state['count'])
    fold = jax.vmap(jax.random.fold_in, (0, None))
    keys_RB = jnp.stack([fold(keys_B, i) for i in range(num_tokens + 2)])
    tokens_BG, draft_BGV, cache = _propose(
      models[1], params[1], state, keys_RB[2:], rule, numbers
    )
    state = {**state, 'draft': cache}
    share_BTV, state = _check(
      models[0], params[0], state, tokens_BG, rule, numbers
    )
    number_B, token_B = verify(
      share_BTV, draft_BGV, tokens_BG, keys_RB[:2], rule
    )
    active_B = ~state['done'] & (state['count'] < most)
    return _advance(state, tokens_BG, number_B, token_B, active_B, rule)

  return lax.while_loop(unfinished, one, state)


def _propose(model, params, state, keys_GB, rule, numbers):
  """Tokens `[B, G]` that the draft draws, their shares, and its cache."""
  position_B = state['length'] + state['count']

  def draw(logits_BV, keys_B):
    weights_BV = sampling.weigh(logits_BV, rule, numbers)
    token_B = sampling.pick(weights_BV, keys_B, rule)
    return token_B, jax.nn.softmax(weights_BV, axis=-1)

  def one(carry, part):
    token_B, at_B, cache = carry
    logits_B1V, cache = cached.extend(
      model, params, cache, token_B[:, None], at_B[:, None]
    )
    token_B, share_BV = draw(logits_B1V[:, 0], part)
    return (token_B, at_B + 1, cache), (token_B, share_BV)

  # Where all of a round was accepted, the draft has not read its last token.
  last_B2 = position_B[:, None] + jnp.array([-2, -1])
  pair_B2 = jnp.take_along_axis(state['tokens'], last_B2, axis=1)
  logits_B2V, cache = cached.extend(
    model, params, state['draft'], pair_B2, last_B2
  )
  token_B, share_BV = draw(logits_B2V[:, -1], keys_GB[0])
  (_, _, cache), (rest_GB, rest_GBV) = lax.scan(
    one, (token_B, position_B, cache), keys_GB[1:]
  )
  tokens_GB = jnp.concatenate([token_B[None], rest_GB])
  share_GBV = jnp.concatenate([share_BV[None], rest_GBV])
  return tokens_GB.T, share_GBV.swapaxes(0, 1), cache


def _check(model, params, state, tokens_BG, rule, numbers):
  """The target's shares `[B, G + 1, V]` where a token was proposed and after.

  Its cache has the proposed tokens then; those refused are written over.
  """
  last_B1 = (state['length'] + state['count'] - 1)[:, None]
  token_B1 = jnp.take_along_axis(state['tokens'], last_B1, axis=1)
  read_BT = jnp.concatenate([token_B1, tokens_BG], axis=1)
  at_BT = last_B1 + jnp.arange(read_BT.shape[1])
  logits_BTV, cache = cached.extend(
    model, params, state['cache'], read_BT, at_BT
  )
  weights_BTV = sampling.weigh(logits_BTV, rule, numbers)
  return jax.nn.softmax(weights_BTV, axis=-1), {**state, 'cache': cache}


def verify(
  share_BTV: jax.Array,
  draft_BGV: jax.Array,
  tokens_BG: jax.Array,
  keys_2B: jax.Array,
  rule: Rule,
) -> tuple[jax.Array, jax.Array]:
  """Rejection sampling (Leviathan et al., 2023, Algorithm 1).

  A token is accepted with probability min(1, p / q), where the target gives it
  p and the draft q. In place of the first that is not, one is drawn from
  max(0, p - q), normalised; after the last, from the target.

  Args:
    share_BTV: of the target, where a token was proposed and after the last.
    draft_BGV: of the draft; T is G + 1.
    tokens_BG: drawn from `draft_BGV`.
    keys_2B: to accept, and to draw; they have no part in `tokens_BG`.
    rule: of `sampling.pick`.

  Returns:
    How many tokens of each row are accepted, int32 `[B]`, and the next one.
  """
  at_BG1 = tokens_BG[..., None]
  p_BG = jnp.take_along_axis(share_BTV[:, :-1], at_BG1, axis=-1)[..., 0]
  q_BG = jnp.take_along_axis(draft_BGV, at_BG1, axis=-1)[..., 0]
  size = tokens_BG.shape[1:]
  chance_BG = jax.vmap(lambda key: jax.random.uniform(key, size))(keys_2B[0])
  accepted_BG = chance_BG * q_BG < p_BG
  number_B = jnp.cumprod(accepted_BG.astype(jnp.int32), axis=1).sum(axis=1)

  at_B11 = number_B[:, None, None]
  p_BV = jnp.take_along_axis(share_BTV, at_B11, axis=1)[:, 0]
  draft_BTV = jnp.pad(draft_BGV, ((0, 0), (0, 1), (0, 0)))
  q_BV = jnp.take_along_axis(draft_BTV, at_B11, axis=1)[:, 0]
  left_BV = jnp.maximum(p_BV - q_BV, 0)
  # Nothing is left of two that differ by rounding alone.
  some_B1 = jnp.any(left_BV > 0, axis=-1, keepdims=True)
  weights_BV = jnp.log(jnp.where(some_B1, left_BV, p_BV))
  return number_B, sampling.pick(weights_BV, keys_2B[1], rule)


def _advance(state, tokens_BG, number_B, token_B, active_B, rule):
  """The state with the accepted tokens of active rows, and one more."""
  rows_B = jnp.arange(number_B.size)
  new_BT = jnp.pad(tokens_BG, ((0, 0), (0, 1)))
  new_BT = new_BT.at[rows_B, number_B].set(token_B)
  steps_T = jnp.arange(new_BT.shape[1])
  at_BT = (state['length'] + state['count'])[:, None] + steps_T
  ended_BT = sampling.ended(new_BT, rule) & (steps_T <= number_B[:, None])
  return {
    **state,
    'tokens': state['tokens'].at[rows_B[:, None], at_BT].set(new_BT),
    'count': state['count'] + jnp.where(active_B, number_B + 1, 0),
    'done': state['done'] | (active_B & jnp.any(ended_BT, axis=1)),
    'passes': state['passes'] + active_B,
    'accepted': state['accepted'] + jnp.where(active_B, number_B, 0),
  }
