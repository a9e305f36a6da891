"""Sampling with a cache, beside a model that reads every row again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import errors
from satjax.data import tokenizers
from satjax.generation import generate
from satjax.model import cached, decoder
from tests import models

TOKENIZER = tokenizers.ByteTokenizer()
SHAPES = {
  'grouped': {},
  'one key a head, tied': {'num_kv_heads': 4, 'tied': True},
  'biases, norms, scaled': {
    'qkv_bias': True,
    'qk_norm': True,
    'rope_scaling': ('linear', 2.0),
  },
}
PROMPTS = ['', 'import ', 'x' * 31, 'def f(x):\n  return x + 1\n' * 2]


def make_model(**changes):
  return models.make(**{'vocab_size': 272, 'scan': False} | changes)


@functools.cache
def program(model):
  return jax.jit(functools.partial(decoder.apply, model))


def logits_of(model, params, ids, length=96):
  """Float32 `[len(ids), V]`, nothing cached; one compiled length."""
  tokens = np.zeros((1, length), np.int32)
  tokens[0, : len(ids)] = ids
  return np.asarray(program(model)(params, {'tokens': tokens}))[0, : len(ids)]


def ids_of(prompt):
  return [TOKENIZER.bos_id, *TOKENIZER.encode(prompt).tolist()]


def slow(model, params, prompt, max_tokens):
  """The oracle: the greedy ids after a prompt, up to the end of text."""
  ids = ids_of(prompt)
  start = len(ids)
  while len(ids) < start + max_tokens:
    logits_V = logits_of(model, params, ids)[-1, : TOKENIZER.vocab_size]
    ids.append(int(logits_V.argmax()))
    if ids[-1] == TOKENIZER.eos_id:
      return ids[start:-1]
  return ids[start:]


class Recorder(tokenizers.ByteTokenizer):
  """Text that shows every id, so that two texts are two rows of ids."""

  def decode(self, ids):
    return ''.join(f'{i},' for i in ids)


def run(model, prompts, params=None, tokenizer=None, **options):
  params = models.make_params(model) if params is None else params
  how = generate.Options(**options)
  return generate.run(
    model, params, tokenizer or Recorder(), prompts, how
  ).texts


@pytest.mark.parametrize(
  'shape',
  [
    pytest.param(name, marks=() if number == 2 else pytest.mark.slow)
    for number, name in enumerate(SHAPES)
  ],
)
def test_logits_are_those_of_the_decoder(shape):
  model = make_model(**SHAPES[shape])
  params = models.make_params(model)
  rows = [(ids_of(p) + [7, 8, 9, 10, 11, 12])[:46] for p in PROMPTS]
  read_B = np.array([len(row) - 6 for row in rows], np.int32)
  tokens_BT = np.full((4, 48), 5, np.int32)  # what pads is never seen
  for row, ids, length in zip(tokens_BT, rows, read_B):
    row[:length] = ids[:length]
  prefill = jax.jit(cached.prefill, static_argnums=(0, 4))
  logits_BV, cache = prefill(model, params, tokens_BT, read_B, 56)
  kinds = {leaf.shape for leaf in jax.tree.leaves(cache)}
  assert kinds == {(2, 4, model.num_kv_heads, 56, 4)}
  extend = jax.jit(cached.extend, static_argnums=0)
  positions_BT = read_B[:, None] + np.arange(3, dtype=np.int32)
  # A token that is taken back leaves nothing behind.
  _, cache = extend(model, params, cache, np.full((4, 3), 99), positions_BT)
  found = [logits_BV[:, None]]
  for start in (0, 3):
    ids_BT = np.array([row[n + start :][:3] for row, n in zip(rows, read_B)])
    logits_BTV, cache = extend(
      model, params, cache, ids_BT, positions_BT + start
    )
    found.append(logits_BTV)
  for row, n, found_TV in zip(rows, read_B, np.concatenate(found, axis=1)):
    expected_TV = logits_of(model, params, row)[n - 1 :]
    scale = np.abs(expected_TV).max()
    np.testing.assert_allclose(
      found_TV, expected_TV, rtol=1e-5, atol=1e-5 * scale
    )


@pytest.mark.parametrize('shape', list(SHAPES)[:1])
def test_greedy_tokens_are_those_without_a_cache(shape):
  model = make_model(**SHAPES[shape])
  params = models.make_params(model)
  found = run(model, PROMPTS, max_tokens=36)
  for text, prompt in zip(found, PROMPTS):
    assert text == Recorder().decode(slow(model, params, prompt, 36))
  assert len(set(found)) == len(PROMPTS)  # each has a text of its own


@pytest.mark.slow
def test_scan_and_several_stacks_change_nothing():
  model = make_model()
  params = models.make_params(model)
  layers = [
    jax.tree.map(lambda x, i=i: x[i : i + 1], params['blocks']) for i in (0, 1)
  ]
  # The first layer gets a channel more than the second, all zero.
  wide = [(0, 0), (0, 1), (0, 0)]
  mlp = {name: np.pad(x, wide) for name, x in layers[0]['mlp'].items()}
  parts = {**params, 'blocks': ({**layers[0], 'mlp': mlp}, layers[1])}
  scanned = dataclasses.replace(model, scan=True)
  expected = run(model, PROMPTS, max_tokens=36)
  assert run(scanned, PROMPTS, parts, max_tokens=36) == expected


@pytest.mark.slow
def test_bfloat16_keeps_its_cache_in_it():
  model = make_model(dtype='bfloat16')
  params = cached.cast(model, models.make_params(make_model()))
  assert params['blocks']['mlp']['up'].dtype == jnp.bfloat16
  assert params['final_norm'].dtype == jnp.float32
  tokens_BT = np.array([ids_of('import')], np.int32)
  prefill = jax.jit(cached.prefill, static_argnums=(0, 4))
  logits_BV, cache = prefill(model, params, tokens_BT, np.array([7]), 8)
  assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {
    jnp.dtype('bfloat16')
  }
  assert logits_BV.dtype == jnp.float32
  exact = logits_of(
    make_model(), models.make_params(make_model()), tokens_BT[0]
  )[-1]
  assert np.abs(logits_BV[0] - exact).max() < 5e-2 * np.abs(exact).max()


def ending(model, after):
  """Parameters that end the text once the token `after` was drawn."""
  params = models.make_params(model)
  aim = params['embed'][after]
  blocks = jax.tree.map(jnp.zeros_like, params['blocks'])
  unembed = params['unembed'].at[TOKENIZER.eos_id].set(aim * 100)
  return {**params, 'blocks': blocks, 'unembed': unembed}


def test_the_end_of_text_ends_a_row_and_no_other():
  model = make_model()
  params = ending(model, ord('q'))
  alone = [slow(model, params, prompt, 40) for prompt in ('q', 'z')]
  assert alone[0] == [] and len(alone[1]) > 0
  found = run(model, ['q', 'z', *PROMPTS[2:]], params, max_tokens=40)
  assert found[:2] == [Recorder().decode(ids) for ids in alone]


def test_ids_go_on_as_their_text_does_up_to_an_end_of_their_own():
  """What a chat needs: markers in a prompt, and the marker of its end."""
  model = make_model()
  params = models.make_params(model)
  (text,) = run(model, ['import '], params, max_tokens=20)
  shown = text.split(',')[:-1]
  for at, count in (((), 20), ((7,), 7), ((7, 1), 1), ((1, 7), 1)):
    end_ids, expected = [int(shown[i]) for i in at], shown[:count]
    how = generate.Options(max_tokens=20, end_ids=end_ids)
    ids = np.array(ids_of('import '))
    found = generate.run(model, params, Recorder(), [ids], how)
    assert found.texts == [''.join(f'{number},' for number in expected)]


def test_an_answer_does_not_end_before_it_begins():
  model = make_model()
  params = models.make_params(model)
  (text,) = run(model, ['import '], params, max_tokens=20)
  first, second = map(int, text.split(',')[:2])
  assert run(model, ['import '], params, end_ids=[first, second]) == ['']
  options = {'end_ids': [first, second], 'is_answer': True, 'max_tokens': 20}
  (answer,) = run(model, ['import '], params, **options)
  assert answer and not {first, second} & {*map(int, answer.split(',')[:-1])}


def test_an_answer_does_not_end_after_white_space():
  model = make_model()
  params = models.make_params(model)
  (text,) = run(model, ['import '], params, max_tokens=20)
  first, second = map(int, text.split(',')[:2])

  class Blank(Recorder):
    def decode(self, ids):
      return ''.join(' ' if i == first else f'{i},' for i in ids)

  task = model, ['import ', 'x'], params, Blank()
  options = {'end_ids': [second], 'max_tokens': 20}
  texts = run(*task, **options)
  assert texts[0] == ' ' and texts[1].strip()
  answers = run(*task, **options, is_answer=True)
  assert answers[0].strip() and answers[0][0] != ' '
  assert answers[1] == texts[1]
  # What is cut short has not ended.
  assert run(*task, end_ids=[second], max_tokens=1, is_answer=True)[0] == ' '


class Bare(Recorder):
  """A tokenizer that puts nothing before a text."""

  bos_id = None


def test_without_a_begin_a_prompt_is_its_text_and_none_is_an_end():
  model = make_model()
  params = models.make_params(model)
  for prompt, ids in (('ab', [97, 98]), ('', [Bare.eos_id])):
    (found,) = run(model, [prompt], params, Bare(), max_tokens=5)
    how = generate.Options(max_tokens=5)
    same = generate.run(model, params, Recorder(), [np.array(ids)], how)
    assert found == same.texts[0]


def test_max_tokens_are_the_most():
  model = make_model()
  assert run(model, PROMPTS, max_tokens=0) == [''] * 4
  assert run(model, []) == []
  (longest,) = run(model, ['import '], max_tokens=40)
  assert longest.count(',') == 40
  for count in (33, 34, 63, 64):  # around the tokens between two looks
    (found,) = run(model, ['import '], max_tokens=count)
    assert found.count(',') == count and found.startswith(longest[:99])


def test_a_prompt_goes_on_as_it_does_alone():
  model = make_model()
  alone = run(model, ['import '], max_tokens=36)
  assert run(model, PROMPTS, max_tokens=36)[1:2] == alone


def test_stop_strings_cut_where_the_first_begins():
  model = make_model()
  free = run(model, PROMPTS, max_tokens=40)
  ids = free[0].split(',')
  middle, late = ','.join(ids[3:6]), ','.join(ids[-3:])
  found = run(model, PROMPTS, max_tokens=40, stop=[late, middle])
  assert found[0] == free[0][: free[0].index(middle)]
  assert found[1] == free[1].split(middle)[0].split(late)[0]
  assert run(model, PROMPTS, max_tokens=40, stop=['no such']) == free


SAMPLING = {'max_tokens': 12, 'temperature': 0.8, 'seed': 3}


def test_a_sample_depends_on_its_seed_and_its_place_alone():
  model = make_model(num_layers=1)
  options = SAMPLING | {'top_p': 0.9}
  first = run(model, PROMPTS[:2], **options)
  assert run(model, PROMPTS[:2], **options) == first
  assert run(model, ['other', PROMPTS[1]], **options)[1] == first[1]
  assert run(model, PROMPTS[:2], **options | {'seed': 4}) != first
  same = run(model, ['import '] * 2, **options)
  assert same[0] != same[1]
  params, decode = models.make_params(model), Recorder().decode
  greedy = [decode(slow(model, params, p, 12)) for p in PROMPTS[:2]]
  # A tiny nucleus, or a temperature of almost 0, leaves nothing to chance.
  for changes in ({'top_p': 1e-9}, {'temperature': 1e-6}):
    assert run(model, PROMPTS[:2], **options | changes) == greedy != first


@pytest.mark.parametrize(
  'options',
  [
    {'max_tokens': -1},
    {'temperature': -0.1},
    {'temperature': float('nan')},
    {'top_p': 0.0},
    {'top_p': 1.1},
    {'stop': ['']},
    {'stop': 'text'},
  ],
  ids=str,
)
def test_options_out_of_range_are_named(options):
  ((name, value),) = options.items()
  with pytest.raises(errors.ConfigError, match=f'{name} '):
    generate.Options(**options)
