"""LoRA in a run: what trains, what stands still, and what comes out of it."""

import functools
import math
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from satjax import cli, errors, files, flops, tree
from satjax.config.groups import LoraConfig
from satjax.generation import generate
from satjax.interop import huggingface, models
from satjax.lab.bench import paired
from satjax.lab.plan import stretches
from satjax.lab.report import page
from satjax.model import decoder, lora
from satjax.sparsity import subnetwork
from satjax.train import (
  checkpoint,
  loop,
  metrics,
  phases,
  refresh,
  saved,
  staging,
  subjects,
  views,
  window,
)
from satjax.train import loss as loss_lib
from satjax.train import setup as setup_lib
from tests.train import helpers

BLOCKS = ('query', 'key', 'value', 'output', 'gate', 'up', 'down')
ALL = (*BLOCKS, 'embed', 'unembed')
READS = ('query', 'key', 'value', 'gate', 'up')
SMALL = {
  'model__num_layers': 1,
  'model__embed_dim': 16,
  'model__head_dim': 4,
  'model__mlp_dim': 32,
  'lora__rank': 3,
  'lora__alpha': 6.0,
  'lora__targets': ALL,
  'optimizer__peak_lr': 1e-2,
  'optimizer__warmup_steps': 0,
  'train__batch_size': 8,  # a row for each of the devices of the tests
}
# A window of three steps after the other.
SPARSE = {
  'sparsity__head_rate': 0.5,
  'sparsity__channel_rate': 0.5,
  'sparsity__refresh_every': 3,
  'sparsity__split': 1.0,
}
SLOW = pytest.mark.slow


def make_config(**overrides):
  return helpers.make_config(**(SMALL | overrides))


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close(actual, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected
  )


def randomised(adapters, dtype=np.float32):
  """No factor is zero."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), dtype), adapters
  )


@functools.cache
def setup_of(config):
  return helpers.one_device(config)


def begin(config, dtype=np.float32):
  """Setup and first window; its adapters are random."""
  setup = setup_of(config)
  state = helpers.initial_state(setup)
  params = jax.tree.map(lambda x: x.astype(dtype), state.params)
  now = window.first(setup, setup.place(state.replace(params=params)))
  assert jax.tree.leaves(now.state.params)[0].dtype == dtype
  adapters = setup.place(randomised(now.state.params, dtype))
  now.state = now.state.replace(params=adapters)
  return setup, now


def train(setup, now, steps, dtype=np.float32, first=0):
  """Trains on random batches; the window, and the losses."""
  program = step_of(setup)
  losses = []
  for step in range(first, steps):
    batch = helpers.random_batch(setup.config, step, dtype)
    now = window.turn_over(setup, now, step, batch, weighs=False)
    now.state, scalars = program(now.state, batch, now.forward_extra)
    losses.append(float(scalars['loss']))
  return now, losses


@functools.cache
def step_of(setup):
  return jax.jit(setup_lib.make_step(setup), donate_argnums=0)


# --- the step ---------------------------------------------------------------


@pytest.mark.parametrize(
  'dtype', ['float32', pytest.param('bfloat16', marks=SLOW)]
)
def test_adapters_change_nothing_at_first(dtype):
  config = make_config(model__dtype=dtype)
  setup = setup_of(config)
  now = window.first(setup, helpers.initial_state(setup))
  batch = helpers.random_batch(config, 0)
  view = views.view_of(config, now.stage)
  seen, rest = view(now.state.params, now.state, now.forward_extra)
  assert rest is None
  run = jax.jit(functools.partial(decoder.apply, config.model))
  assert_equal(run(seen, batch), run(now.frozen_base, batch))
  assert_equal(window.whole_params(setup, now, 0), now.frozen_base)


@pytest.mark.parametrize('parts', [pytest.param(1, marks=SLOW), 2])
def test_gradients_are_those_of_the_sum_by_the_chain_rule(parts):
  """The oracle differentiates whole matrices; in float64."""
  with jax.enable_x64(True):
    config = helpers.in_float64(
      make_config(
        model__num_kv_heads=2,
        train__microbatch_size=8 // parts,
        optimizer__name='sgd',
        optimizer__b1=0.0,
        optimizer__weight_decay=0.0,
        optimizer__clip_norm=0.0,
        model__num_layers=2,
      )
    )
    setup, now = begin(config, np.float64)
    batch = helpers.random_batch(config, 0, np.float64)
    before = jax.tree.map(np.array, now.state.params)
    scale = 6.0 / 3
    merged = lora.merge(before, now.frozen_base, scale)

    def loss(params):
      logits = decoder.apply(config.model, params, batch)
      total = loss_lib.cross_entropy_sum(logits, batch)
      return total / batch['weights'].sum()

    value, whole = jax.jit(jax.value_and_grad(loss))(merged)
    state, scalars = step_of(setup)(now.state, batch, now.forward_extra)
    np.testing.assert_allclose(scalars['loss'], value, rtol=1e-12)
    found = jax.tree.map(lambda a, b: (a - b) / 1e-2, before, state.params)
    gradients, factors = tree.flatten(whole), tree.flatten(before)
    for path in lora.paths(config.lora, config.model):
      rows, columns = (factors[f'{path}/{n}'] for n in ('rows', 'columns'))
      depth = 2 if path.startswith('blocks/') else 1
      of_product = gradients[path].reshape(depth, -1, 16)
      flat = rows.reshape(depth, -1, 3)
      columns = columns.reshape(depth, 3, 16)
      expected = {
        'rows': np.einsum('lfd,lrd->lfr', of_product, columns),
        'columns': np.einsum('lfr,lfd->lrd', flat, of_product),
      }
      for name, gradient in expected.items():
        np.testing.assert_allclose(
          tree.flatten(found)[f'{path}/{name}'],
          scale * gradient.reshape(factors[f'{path}/{name}'].shape),
          rtol=1e-7,
          atol=1e-13,
          err_msg=path,
        )


@pytest.mark.parametrize(
  'options',
  [
    {},
    SPARSE,
    pytest.param(SPARSE | {'sparsity__execution': 'masked'}, marks=SLOW),
  ],
  ids=['dense', 'compact', 'masked'],
)
def test_the_model_stands_still_bitwise(options):
  config = make_config(**options)
  setup = setup_of(config)
  start = helpers.initial_state(setup)
  before = jax.device_get(start.params)
  first = window.first(setup, start)
  adapters = jax.device_get(first.state.params)
  assert not jax.tree.leaves(start.opt_state)
  now, _ = train(setup, first, 7)
  assert_equal(now.frozen_base, before)
  after = window.whole(setup, now, 7).params
  for path, x in tree.flatten(after).items():
    assert np.any(x != tree.flatten(adapters)[path]), path


def test_the_view_computes_what_the_merged_model_computes():
  with jax.enable_x64(True):
    config = helpers.in_float64(make_config(model__num_kv_heads=2))
    setup, now = begin(config, np.float64)
    batch = helpers.random_batch(config, 0)
    view = views.view_of(config, now.stage)
    seen, _ = view(now.state.params, now.state, now.forward_extra)
    merged = window.whole_params(setup, now, 0)
    run = jax.jit(functools.partial(decoder.apply, config.model))
    found, expected, base = (
      run(p, batch) for p in (seen, merged, now.frozen_base)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(found - base).max() > 0.1


@pytest.mark.parametrize('rate', [0.0, pytest.param(0.5, marks=SLOW)])
def test_a_step_costs_what_the_compiler_counts(rate):
  """No gradient of the size of a matrix is formed."""
  sizes = {
    'model__embed_dim': 128,
    'model__head_dim': 32,
    'model__mlp_dim': 512,
    'lora__rank': 8,
    'sparsity__head_rate': rate,
    'sparsity__channel_rate': rate,
  }

  def both(layers):
    config = make_config(**(sizes | {'model__num_layers': layers}))
    setup = setup_of(config)
    phase = phases.phase_at(config, 0)
    batch = helpers.random_batch(config, 0)
    state, held = staging.shapes(setup, phase.stage)
    now = window.staged(phase.stage, state, held)
    if phase.is_sparse:
      chosen = refresh.shapes(config, now.neurons, batch, phase)
      call = subnetwork.ahead
      now = window.open_window(setup, now, chosen, phase, 0, call)
    lowered = step_of(setup).lower(now.state, batch, now.forward_extra)
    return lowered.cost_analysis()['flops'], phases.step_flops(config, 0)

  (two, two_told), (one, one_told) = both(2), both(1)
  # The compiler also counts norms, rotations, the optimizer and the half of
  # the square of scores that is hidden.
  assert 1.0 <= (two - one) / (two_told - one_told) < 1.1


def test_a_step_costs_forward_and_back_and_its_adapters():
  model = make_config().model
  adapters = LoraConfig(rank=3, alpha=1.0, targets=('query', 'key', 'down'))
  layer = flops.Layer(heads=2, kv_heads=1, channels=5)
  found, whole = (
    flops.train_flops_per_token(model, 10, [layer] * 2, lora=lora)
    for lora in (adapters, None)
  )
  matrices = 16 * (2 * 2 * 4 + 2 * 1 * 4 + 3 * 5)
  factors = 3 * (3 * 16 + 2 * 4 + 1 * 4 + 5)
  lost = 2 * 2 * matrices + 2 * 16 * model.vocab_size
  assert found == whole - lost + 3 * 2 * 2 * factors


# --- with SAT ---------------------------------------------------------------


@functools.cache
def sparse_run(execution, **options):
  options = SPARSE | {'train__num_steps': 5} | options
  config = make_config(**options, sparsity__execution=execution)
  with jax.enable_x64(True):
    setup, now = begin(helpers.in_float64(config), np.float64)
    steps = config.train.num_steps
    now, losses = train(setup, now, steps, np.float64)
    return jax.device_get(window.whole(setup, now, steps)), losses


VARIANTS = {
  'plain': {},
  'grouped': {'model__num_kv_heads': 2},
  'decayed': {'sparsity__omitted': 'decayed'},
  'mean': {'sparsity__omitted_forward': 'mean'},
  'a ladder of uneven layers': {
    'model__num_layers': 2,
    'train__num_steps': 8,
    'sparsity__split': 0.5,
    'sparsity__rungs': 1,
    'sparsity__dense_layers': (1, 0),
    'sparsity__rescale': 'inverse',
  },
}


@pytest.mark.parametrize(
  'name',
  [
    name if name in ('plain', 'grouped') else pytest.param(name, marks=SLOW)
    for name in VARIANTS
  ],
)
def test_compact_equals_masked(name):
  options = VARIANTS[name]
  compact, losses = sparse_run('compact', **options)
  masked, masked_losses = sparse_run('masked', **options)
  np.testing.assert_allclose(losses, masked_losses, rtol=1e-9)
  tolerance = {'rtol': 1e-8, 'atol': 1e-10}
  assert_close(compact.params, masked.params, **tolerance)
  assert_close(compact.opt_state, masked.opt_state.inner, **tolerance)


def opened(**options):
  """A window with a selection, what it has kept, and its batch."""
  config = make_config(**SPARSE, **options)
  setup, now = begin(config)
  batch = helpers.random_batch(config, 0)
  now = window.turn_over(setup, now, 0, batch, weighs=False)
  return setup, now, jax.device_get(now.chosen.kept), batch


def test_adapters_may_stay_dense_over_a_sparse_model():
  """Those of matrices that read: their neurons write nothing."""
  setup, now, kept, batch = opened(
    lora__targets=READS, sparsity__execution='masked'
  )
  config = setup.config

  def rested(path, x):
    axes = tree.axes_of(path, x.ndim)
    unit = next((n for n in kept if n in axes), None)
    if unit is None:
      return x
    mask = kept[unit].reshape(kept[unit].shape + (1,) * (x.ndim - 2))
    return jnp.where(mask, x, 0)

  base = tree.map_with_path(rested, now.frozen_base)

  def loss(seen):
    logits = decoder.apply(config.model, seen, batch)
    return loss_lib.cross_entropy_sum(logits, batch)

  def dense(adapters):
    return loss(lora.merge(adapters, base, config.lora.scale))

  def ours(adapters):
    view = views.view_of(config, now.stage)
    return loss(view(adapters, now.state, now.forward_extra)[0])

  both = [
    jax.jit(jax.value_and_grad(f))(now.state.params) for f in (dense, ours)
  ]
  assert_close(both[0], both[1], rtol=1e-3, atol=1e-4)
  assert not kept['mlp'].all() and not kept['heads'].all()


def test_adapters_of_omitted_neurons_rest_bitwise():
  setup, now, kept, batch = opened()
  before = jax.device_get(window.whole(setup, now, 0))
  now.state, _ = step_of(setup)(now.state, batch, now.forward_extra)
  after = jax.device_get(window.whole(setup, now, 1))
  checked = 0
  for path, old in tree.flatten(before.params).items():
    new = tree.flatten(after.params)[path]
    axes = tree.axes_of(path, old.ndim)
    unit = next((n for n in kept if n in axes), None)
    if unit is None:
      assert (old != new).any()
    else:
      mask = kept[unit]
      np.testing.assert_array_equal(old[~mask], new[~mask])
      assert (old[mask] != new[mask]).any()
      checked += 1
  assert checked == 7


def test_neurons_are_chosen_by_the_model_beside_the_adapters():
  options = {
    'sparsity__importance': 'magnitude',
    'sparsity__selection': 'top_k',
  }
  _, now, kept, _ = opened(**options)
  mlp = now.frozen_base['blocks']['mlp']
  square_LF = sum(np.sum(np.square(mlp[name]), axis=2) for name in mlp)
  for layer, mask in enumerate(kept['mlp']):
    assert square_LF[layer][mask].min() >= square_LF[layer][~mask].max()


# --- going on ---------------------------------------------------------------


@pytest.fixture(scope='module', params=[{}, SPARSE], ids=['dense', 'sparse'])
def stopped(request, tmp_path_factory):
  """A workdir of 4 steps, in the middle of a window.

  Returns:
    Folder, setup, the window as of then, and the states and losses after it.
  """
  folder = tmp_path_factory.mktemp('stopped')
  config = make_config(**request.param)
  files.write_json(folder / 'config.json', config.to_dict())
  setup, now = begin(config)
  now, _ = train(setup, now, 4)
  state = window.whole(setup, now, 4)
  checkpoints = checkpoint.Checkpoints(folder, keep=1)
  shapes = {n: (x.shape, x.dtype.name) for n, x in now.extra.items()}
  checkpoints.save(4, {'state': state, 'extra': now.extra}, {'extra': shapes})
  checkpoints.close()
  then = jax.device_get(
    (now.frozen_base, state.params, window.whole_params(setup, now, 4))
  )
  now, losses = train(setup, now, 7, first=4)
  return (
    folder,
    setup,
    then,
    jax.device_get(window.whole(setup, now, 7)),
    losses,
  )


def test_a_checkpoint_is_the_merged_model_and_its_adapters(stopped, tmp_path):
  folder, _, (base, adapters, merged), _, _ = stopped
  run = saved.restore(folder)
  assert run.step == 4
  assert_equal(run.adapters, adapters)
  assert_equal(run.params, merged)
  scale = run.config.lora.scale
  assert_equal(run.params, lora.merge(run.adapters, base, scale))
  same = tree.flatten(jax.tree.map(np.array_equal, run.params, base))
  changed = {path.rsplit('/', 1)[-1] for path, kept in same.items() if not kept}
  assert changed == set(ALL)
  models.save(run.model, tmp_path / 'merged', tokenizer=run.tokenizer)
  assert_equal(huggingface.load(tmp_path / 'merged')[1], run.params)


def test_a_restored_window_goes_on_bit_for_bit(stopped):
  folder, setup, (base, _, _), state, losses = stopped
  checkpoints = checkpoint.Checkpoints(folder)
  found = checkpoints.restore(setup_lib.abstract_checkpoint(setup))
  checkpoints.close()
  again = window.restored(setup, **found.state, record=found.record)
  assert_equal(again.frozen_base, base)
  again, more = train(setup, again, 7, first=4)
  assert more == losses
  assert_equal(window.whole(setup, again, 7), state)


@pytest.mark.slow
def test_eight_devices_share_the_adapters_and_equal_one():
  options = {'sparsity__shards': 2, **SPARSE}
  mesh = {'mesh__data': 2, 'mesh__fsdp': 2, 'mesh__tensor': 2}
  many = make_config(**options, **mesh)
  setup = setup_lib.make_setup(many)
  found, found_losses, _ = helpers.run(many, steps=4, setup=setup)
  alone, losses, _ = helpers.run(make_config(**options), steps=4)
  np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
  up = found.params['blocks']['mlp']['up']
  assert up['rows'].sharding.spec == P(None, 'tensor', None)
  assert up['columns'].sharding.spec == P(None, None, 'fsdp')
  assert_close(
    jax.device_get(found.params), jax.device_get(alone.params), atol=1e-3
  )


# --- whole runs -------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A base model, and a run of eight steps that started from it."""
  folder = tmp_path_factory.mktemp('lora')
  config = make_config(model__vocab_size=260)
  params = decoder.init_params(config.model, jax.random.key(0))
  huggingface.save(folder / 'base', config.model, params)
  sparse = SPARSE | {'sparsity__split': 0.5, 'sparsity__rungs': 1}
  config = make_config(
    **sparse,
    model__init_from=str(folder / 'base'),
    model__scan=False,
    train__num_steps=8,
    train__checkpoint_every=4,
    train__eval_every=4,
    train__eval_batches=1,
  )
  loop.train(config, folder / 'run')
  return folder


@pytest.mark.slow
def test_an_interrupted_run_equals_the_uninterrupted_one(trained, tmp_path):
  shutil.copytree(trained / 'run', tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '8')
  config = saved.restore(trained / 'run').config
  records = loop.train(config, tmp_path / 'run')
  whole, parts = (
    saved.restore(folder / 'run') for folder in (trained, tmp_path)
  )
  assert whole.step == parts.step == 8
  assert_equal(parts.params, whole.params)
  assert_equal(parts.adapters, whole.adapters)
  losses = [
    [r['train/loss'] for r in found if 'train/loss' in r]
    for found in (metrics.read(trained / 'run'), records)
  ]
  assert losses[0] == losses[1] and len(losses[0]) == 8


@pytest.mark.slow
def test_a_run_is_evaluated_sampled_and_reported(trained):
  run = saved.restore(trained / 'run')
  last = metrics.read(trained / 'run')[-1]
  (source,) = run.config.data.eval
  found = subjects.evaluate(subjects.of_run(trained / 'run'), max_batches=1)
  loss = found['eval'][source]['loss']
  assert loss == pytest.approx(last[f'eval/{source}/loss'], rel=1e-6)
  how = generate.Options(max_tokens=4)
  new = generate.run(run.model.config, run.params, run.tokenizer, ['def'], how)
  assert new.num_tokens <= 4 and isinstance(new.texts[0], str)
  assert 'run' in page.tables(page.read([trained / 'run']))
  records = [r for r in metrics.read(trained / 'run') if 'flops' in r]
  assert records[-1]['flops'] == pytest.approx(stretches.plan(run.config).flops)


@pytest.mark.slow
def test_an_export_of_adapters_has_a_card_of_its_own(trained, tmp_path):
  run, cards = f'--workdir={trained / "run"}', {}
  for kind, more in (('merged', []), ('adapter', ['--adapter'])):
    out = tmp_path / kind
    assert cli.main(['export', run, f'--out={out}', *more]) == 0
    cards[kind] = (out / 'README.md').read_text()
  assert 'added to the weights' in cards['merged']
  assert 'added to the weights' not in cards['adapter']
  assert 'library_name: peft' in cards['adapter']
  out = tmp_path / 'none'
  assert (
    cli.main(['export', run, f'--out={out}', '--adapter', '--no_card']) == 0
  )
  assert not (out / 'README.md').exists()


def test_the_plan_says_what_trains():
  found = stretches.plan(make_config(**SPARSE))
  assert {s.phase.stage.mode for s in found.stretches} == {'lora'}
  assert '| lora |' in stretches.render(found)
  whole = stretches.plan(make_config(**SPARSE, lora__rank=0))
  assert found.flops < whole.flops


# --- settings ---------------------------------------------------------------


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'growth__hops': ((128, 'stack', 2),)}, ['growth.hops', 'export']),
    ({'optimizer__name': 'muon'}, ["'muon'", 'adamw']),
    (SPARSE | {'sparsity__omitted_forward': 'exact'}, ["'exact'", "'mean'"]),
    (SPARSE | {'sparsity__rest': 'host'}, ["'host'", "'device'"]),
    ({'lora__targets': ()}, ['lora.targets', "'query'"]),
    ({'lora__targets': ('query', 'q_proj')}, ['q_proj', "'query'"]),
    ({'lora__targets': ('up', 'up')}, ['lora.targets', 'once']),
    ({'lora__rank': -1}, ['lora.rank', 'at least 0']),
    ({'lora__alpha': 0.0}, ['lora.alpha', 'above 0']),
  ],
)
def test_what_is_refused(options, words):
  with pytest.raises(errors.ConfigError) as caught:
    make_config(**options)
  for word in words:
    assert word in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1
  if 'growth__hops' in options or 'optimizer__name' in options:
    make_config(**options, lora__rank=0)


def test_a_benchmark_of_adapters_is_refused():
  with pytest.raises(errors.ConfigError, match='lora.rank 3'):
    paired.bench(make_config(), torch=())


def test_a_is_uniform_by_its_inputs_and_b_is_zero():
  config = make_config(lora__rank=64, model__num_kv_heads=2)
  adapters = lora.init(config.lora, config.model, jax.random.key(0))
  inputs = {'output': 4 * 4, 'down': 32}  # of the others, embed_dim
  for path, x in tree.flatten(adapters).items():
    *_, target, factor = path.split('/')
    is_a = (factor == 'rows') == (target in inputs)
    if not is_a:
      assert not x.any()
      continue
    if target == 'embed':  # whose rows are looked up, one for each token
      assert np.std(x) == pytest.approx(1, rel=0.1)
      continue
    bound = 1 / math.sqrt(inputs.get(target, 16))
    assert 0.98 * bound < np.abs(x).max() <= bound
    assert np.std(x) == pytest.approx(bound / math.sqrt(3), rel=0.1)
