"""Speculative decoding beside plain decoding: the same tokens, or shares."""

import functools
import pathlib
import shutil

import jax
import numpy as np
import pytest

from satjax import cli, errors, tree
from satjax.generation import generate, sampling, speculative
from satjax.interop import models as stored
from satjax.model import cached
from tests import models
from tests.generation import test_generate as plain
from tests.generation.test_generate import PROMPTS, TOKENIZER, Recorder

# Grouped queries, biases and norms; rows of five lengths, the longest of which
# is one that prompts are padded to. Nearly all tests compile the same programs.
MODEL = plain.make_model(scan=True, qkv_bias=True, qk_norm=True)
OTHER = plain.make_model(scan=True, num_layers=1, embed_dim=4, vocab_size=258)
ALL = [*PROMPTS, 'y' * 63]


@functools.cache
def make_params():
  """Of `MODEL`; the second layer does less than the first."""
  params = models.make_params(MODEL)
  less = np.float32([1.0, 0.2])

  def damp(path, x):
    ends = path.endswith(('attention/output', 'mlp/down'))
    return x * less.reshape(2, *[1] * (x.ndim - 1)) if ends else x

  return tree.map_with_path(damp, params)


@functools.cache
def similar(scale):
  """The target with noise in its weights: some of its tokens are the same."""
  random = np.random.default_rng(1)

  def noisy(x):
    return x + np.float32(scale) * random.normal(size=x.shape).astype(x.dtype)

  return jax.tree.map(noisy, make_params())


def make_draft(name, num_tokens=3):
  if name == 'first layers':
    return speculative.first_layers(MODEL, make_params(), 1, num_tokens)
  if name == 'other':
    return speculative.Draft(OTHER, models.make_params(OTHER), num_tokens)
  scale = {'itself': 0.0, 'similar': 0.02}[name]
  return speculative.Draft(MODEL, similar(scale), num_tokens)


def run(draft, prompts=tuple(ALL), params=None, **options):
  params = make_params() if params is None else params
  options = generate.Options(**{'max_tokens': 40} | options)
  return generate.run(MODEL, params, Recorder(), prompts, options, draft)


@functools.cache
def expected():
  return run(None)


@pytest.mark.parametrize(
  ('name', 'lowest', 'highest'),
  [
    ('other', 0.0, 0.2),
    ('similar', 0.2, 0.95),
    ('first layers', 0.2, 0.95),
    ('itself', 1.0, 1.0),
  ],
)
def test_greedy_tokens_are_those_of_plain_decoding(name, lowest, highest):
  found = run(make_draft(name))
  assert found.texts == expected().texts
  assert found.num_tokens == expected().num_tokens == 40 * len(ALL)
  assert lowest <= found.accepted / found.proposed <= highest
  assert found.proposed == 3 * found.passes
  # The first token comes with the prompt; a last round may go too far by 3.
  later = expected().passes
  assert later == 39 * len(ALL)
  assert later <= found.passes + found.accepted <= later + 3 * len(ALL)


@pytest.mark.slow
@pytest.mark.parametrize('num_tokens', [1, 7])
def test_greedy_tokens_do_not_depend_on_how_many_are_proposed(num_tokens):
  found = run(make_draft('similar', num_tokens))
  assert found.texts == expected().texts
  assert found.proposed == num_tokens * found.passes


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {'num_kv_heads': 4, 'tied': True},
    {'sliding_window': 5, 'qk_norm': True},
    {'scan': False},
  ],
  ids=str,
)
def test_other_models_and_several_stacks(changes):
  model = plain.make_model(**{'num_layers': 3, 'scan': True} | changes)
  params = models.make_params(model)
  options = generate.Options(max_tokens=40)
  without = generate.run(model, params, Recorder(), ALL, options)
  blocks = params['blocks']
  stacks = (
    jax.tree.map(lambda x: x[:1], blocks),
    jax.tree.map(lambda x: x[1:], blocks),
  )
  for target in (params, {**params, 'blocks': stacks}):
    draft = speculative.first_layers(model, target, 2)
    assert sum(len(x['mlp_norm']) for x in tree.stacks(draft.params)) == 2
    found = generate.run(model, target, Recorder(), ALL, options, draft)
    assert found.texts == without.texts
    assert 0 < found.accepted < found.proposed


def test_a_token_that_was_refused_leaves_nothing_in_the_cache():
  draft, params = make_draft('other'), make_params()
  ids = [np.array(plain.ids_of(prompt)) for prompt in ALL]
  options = generate.Options(max_tokens=40)
  state, more = generate.start(MODEL, params, TOKENIZER, ids, options, draft)
  state = jax.device_get(more(state, 9))
  assert state['accepted'].sum() < state['passes'].sum()
  known_B, tokens_BS = state['length'] + state['count'], state['tokens']
  for model, weights, cache in (
    (MODEL, params, state['cache']),
    (draft.model, draft.params, state['draft']),
  ):
    prefill = jax.jit(cached.prefill, static_argnums=(0, 4))
    _, fresh = prefill(model, weights, tokens_BS, known_B, tokens_BS.shape[1])
    for name in ('key', 'value'):
      for row, known in enumerate(known_B - 1):
        np.testing.assert_allclose(
          cache[0][name][:, row, :, :known],
          fresh[0][name][:, row, :, :known],
          rtol=1e-4,
          atol=1e-4,
        )


def test_the_end_of_text_ends_a_row_and_no_other():
  params = plain.ending(MODEL, ord('q'))
  prompts = ['q', 'z', *PROMPTS[2:], 'aq']
  without = run(None, prompts, params)
  assert without.texts[0] == '' and 0 < without.num_tokens < 40 * 5
  for weights in (params, make_params()):
    found = run(speculative.Draft(MODEL, weights, 3), prompts, params)
    assert found.texts == without.texts
    assert found.num_tokens == without.num_tokens
  # An end of text that the draft alone proposes ends nothing.
  assert run(speculative.Draft(MODEL, params, 3)).texts == expected().texts


@pytest.mark.parametrize(
  'max_tokens', [33, 38, pytest.param(1, marks=pytest.mark.slow)]
)
def test_max_tokens_are_the_most(max_tokens):
  found = run(make_draft('similar'), max_tokens=max_tokens)
  for text, longest in zip(found.texts, expected().texts):
    assert text.split(',')[:-1] == longest.split(',')[:max_tokens]
  assert found.num_tokens == max_tokens * len(ALL)


def test_stop_strings_cut_where_the_first_begins():
  ids = expected().texts[0].split(',')
  stop = [','.join(ids[-4:-1]), ','.join(ids[3:6])]
  found = run(make_draft('similar'), stop=stop)
  assert found.texts == run(None, stop=stop).texts != expected().texts


class Tiny:
  """Five tokens, of which none ends a text."""

  vocab_size, bos_id, eos_id = 5, 4, -1

  def encode(self, text):
    return np.array([int(x) for x in text])

  def decode(self, ids):
    return ''.join(str(i) for i in ids)


TARGET = plain.make_model(scan=True, num_layers=1, vocab_size=8)
SMALL = plain.make_model(scan=True, num_layers=1, vocab_size=7, embed_dim=4)
ROWS = 2048


def sample(prompts, **options):
  """Four tokens of each prompt: the first, and those of one round or more."""
  draft = speculative.Draft(SMALL, models.make_params(SMALL), 2)
  options = generate.Options(4, **{'temperature': 2.5} | options)
  params = models.make_params(TARGET)
  return generate.run(TARGET, params, Tiny(), prompts, options, draft)


def exact_shares(model, options):
  """`[5, 5, 5]`: of the last three tokens of `sample`, nothing cached."""
  triples = np.indices((5, 5, 5)).reshape(3, -1).T
  tokens_BT = np.concatenate([np.tile([4, 0], (125, 1)), triples], axis=1)
  batch = {'tokens': tokens_BT.astype(np.int32)}
  logits_BTV = plain.program(model)(models.make_params(model), batch)
  weights_BTV = sampling.weigh(
    logits_BTV, options.rule(Tiny()), options.numbers()
  )
  share_BTV = np.asarray(jax.nn.softmax(weights_BTV, axis=-1), np.float64)
  share = share_BTV.reshape(5, 5, 5, 5, 5)  # three tokens, place, next token
  return np.einsum(
    'a,ab,abc,abcd->bcd',
    share[0, 0, 0, 1],
    share[:, 0, 0, 2],
    share[:, :, 0, 3],
    share[:, :, :, 4],
  )


def chi_square(texts, share):
  """Pearson's statistic of the texts, over the cells that may occur."""
  counts = np.zeros(share.shape)
  np.add.at(counts, tuple(np.array([[*map(int, x[1:])] for x in texts]).T), 1)
  wanted = share * len(texts)
  if counts[wanted == 0].any():
    return np.inf
  kept = wanted > 0
  return np.sum((counts - wanted)[kept] ** 2 / wanted[kept])


@pytest.mark.parametrize(
  'top_ps', [(0.8, 1e-9), pytest.param((1.0,), marks=pytest.mark.slow)]
)
def test_samples_have_the_shares_of_the_target(top_ps):
  for top_p in top_ps:
    found = sample(['0'] * ROWS, top_p=top_p)
    options = generate.Options(4, temperature=2.5, top_p=top_p)
    share = exact_shares(TARGET, options)
    cells = np.count_nonzero(share) - 1
    # The mean of the statistic, and five of its standard deviations.
    bound = cells + 5 * np.sqrt(2 * cells)
    assert chi_square(found.texts, share) <= bound
    if top_p > 0.5:
      assert cells > 20 and 0.2 < found.accepted / found.proposed < 0.9
    # The draft's own tokens would not pass.
    assert chi_square(found.texts, exact_shares(SMALL, options)) > 5 * bound


@pytest.mark.slow
def test_a_sample_depends_on_its_seed_and_its_place_alone():
  options = {'top_p': 0.8, 'seed': 3}
  first = sample(['0'] * ROWS, **options).texts
  assert sample(['0'] * ROWS, **options).texts == first
  assert sample(['0', '12'] * (ROWS // 2), **options).texts[::2] == first[::2]
  assert sample(['0'] * ROWS, **options | {'seed': 4}).texts != first


def test_a_draft_that_does_not_fit_is_refused():
  for count in (0, 2):
    with pytest.raises(errors.ConfigError, match=f'draft of {count} layers'):
      speculative.first_layers(MODEL, make_params(), count)
  with pytest.raises(errors.ConfigError, match='0 draft tokens'):
    make_draft('similar', 0)
  draft = speculative.Draft(TARGET, models.make_params(TARGET))
  with pytest.raises(errors.ConfigError, match='8 tokens .* 258'):
    run(draft)


@pytest.mark.slow
def test_the_command_compares(tmp_path, capsys):
  model = plain.make_model(scan=True)
  stored.save(
    stored.Model(model, models.make_params(model)),
    tmp_path / 'model',
    tokenizer=TOKENIZER,
  )
  command = ['generate', f'--model={tmp_path}/model', '--max_tokens=5']
  assert cli.main(command) == 0
  text = capsys.readouterr().out
  drafted = [*command, '--num_draft=2', '--compare']
  assert cli.main([*drafted, f'--draft={tmp_path}/model']) == 0
  found = capsys.readouterr()
  assert found.out == text
  assert found.err.startswith('draft: 4 of 4 tokens accepted (100.0%), 3.00 ')
  assert '1 of 1 texts as without it' in found.err
  assert ' times as fast as without it (' in found.err
  assert found.err.count('\n') == 1

  assert cli.main([*command, '--draft=2']) == 78
  assert cli.main([*command, '--compare']) == 78
  assert cli.main([*command, '--draft=before_growth:3']) == 78
  shutil.copytree(tmp_path / 'model', tmp_path / 'other')
  path = tmp_path / 'other' / 'tokenizer.json'
  path.write_text(path.read_text().replace('"!": 33', '"!": 34'))
  assert cli.main([*drafted, f'--draft={tmp_path}/other']) == 78
  assert 'another vocabulary' in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_takes_the_model_before_growth(tmp_path, capsys):
  root = pathlib.Path(__file__).parents[2]
  command = [
    f'--config={root}/configs/tiny.py',
    '--config.sparsity.head_rate=0.0',
    '--config.sparsity.channel_rate=0.0',
    '--config.train.num_steps=6',
    '--config.train.batch_size=8',
    '--config.optimizer.warmup_steps=2',
    "--config.growth.hops=((1536, 'stack', 2),)",
  ]
  assert cli.main(['train', *command, f'--workdir={tmp_path}']) == 0
  command = ['generate', f'--workdir={tmp_path}', '--prompt=def ']
  capsys.readouterr()
  assert cli.main(command) == 0
  text = capsys.readouterr().out
  for draft in ('before_growth:3', '1'):
    assert cli.main([*command, f'--draft={draft}']) == 0
    found = capsys.readouterr()
    assert found.out == text
    assert 'tokens accepted' in found.err


@pytest.mark.slow
def test_two_hundred_prompts_go_on_as_without_a_draft():
  folder = pathlib.Path(pathlib.__file__).parent
  texts = [path.read_text() for path in sorted(folder.glob('*.py'))[:100]]
  prompts = [
    text[start : start + 1 + number % 90]
    for number, text in enumerate(texts)
    for start in (0, len(text) // 2)
  ]
  assert len(prompts) == 200
  found = run(make_draft('similar'), prompts, max_tokens=48)
  assert found.texts == run(None, prompts, max_tokens=48).texts
  assert 0.2 < found.accepted / found.proposed < 0.95
