"""A probe: what leaving out costs, and an allocation that costs less."""

import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from satjax import cli, errors, flops
from satjax.config import allocation as allocation_file
from satjax.config import stages
from satjax.interop import models as interop
from satjax.interop import settings
from satjax.lab.probe import probe as probe_lib
from satjax.lab.probe.allocation import Allocation, Costs
from satjax.lab.probe.allocation import settings as settings_of
from satjax.lab.probe.damage import Prober
from satjax.lab.report import probes
from satjax.model import decoder
from satjax.train import loss as loss_lib
from satjax.train import phases, workdir
from tests import models

MODEL = models.make(
  num_layers=6, num_heads=4, num_kv_heads=2, mlp_dim=16, vocab_size=260
)
SHAPE = {
  name: getattr(MODEL, name)
  for name in (*allocation_file.SHAPE, 'tied', 'rope_theta')
}


def planted(idle):
  """Parameters of a model in which some layers write next to nothing."""
  params = models.make_params(MODEL)
  scale_L = jnp.where(jnp.isin(jnp.arange(6), jnp.array(idle)), 1e-3, 1.0)
  blocks = params['blocks']
  attention, mlp = dict(blocks['attention']), dict(blocks['mlp'])
  attention['output'] = attention['output'] * scale_L[:, None, None, None]
  mlp['down'] = mlp['down'] * scale_L[:, None, None]
  return {**params, 'blocks': blocks | {'attention': attention, 'mlp': mlp}}


@functools.cache
def rows(seed):
  """Targets are what the model expects, so that whatever is missing hurts."""
  tokens = np.random.default_rng(seed).integers(0, 260, (4, 16), np.int32)
  batch = {'tokens': tokens, 'weights': np.ones((4, 16), np.float32)}
  logits = decoder.apply(MODEL, planted((2, 3)), batch)
  return batch | {'targets': np.asarray(logits.argmax(-1), np.int32)}


def prober(idle=(2, 3)):
  return Prober(MODEL, planted(idle), rows(0), rows(1))


COSTS = Costs(MODEL, 16, 4)
TEXT = {'source': 'stdlib:docs', 'tokens': 64}
RESULTS = pathlib.Path(__file__).parents[3] / 'experiments/results/damage'


def test_losses_are_those_of_the_smaller_model():
  subject = prober()
  params = planted((2, 3))
  kept = np.array([True, False, True, True, False, True])
  smaller = {
    **params,
    'blocks': jax.tree.map(lambda x: x[kept], params['blocks']),
  }
  expected = float(loss_lib.next_token_loss(MODEL, smaller, rows(1))) / 64
  assert subject.loss({'layers': kept}) == pytest.approx(expected, rel=1e-5)
  channels = subject.keep('mlp', 'maxip', 8)
  assert np.all(channels.sum(1) == 8)
  gone = dict(params['blocks']['mlp'])
  gone['down'] = gone['down'] * channels[:, :, None]
  other = {**params, 'blocks': {**params['blocks'], 'mlp': gone}}
  expected = float(loss_lib.next_token_loss(MODEL, other, rows(1))) / 64
  assert subject.loss({'mlp': channels}) == pytest.approx(expected, rel=1e-5)


def test_an_estimate_finds_the_layers_that_do_nothing():
  subject = prober(idle=(1, 4))
  for estimate in (
    subject.estimate('layers'),
    subject.estimate('mlp', subject.keep('mlp', 'maxip', 8)),
    subject.estimate('heads', subject.keep('heads', 'taylor', 2)),
  ):
    assert {*np.argsort(estimate)[:2]} == {1, 4}


@pytest.mark.parametrize('saving', [0.1, 0.3, 0.5])
@pytest.mark.parametrize('sizes', [1, 2, 4])
def test_an_allocation_saves_what_is_asked_in_few_sizes(saving, sizes):
  random = np.random.default_rng(7)
  costs = random.uniform(0, 1, (6, len(COSTS.options)))
  found = COSTS.cheapest(costs, random.uniform(0, 1, 6), saving, sizes)
  assert COSTS.saving(found.kept) >= saving
  assert len(found.groups) <= sizes
  assert not all(found.left_out)


def test_an_allocation_is_the_cheapest_of_those_that_cost_as_much():
  random = np.random.default_rng(3)
  costs = random.uniform(0, 1, (6, len(COSTS.options)))
  omit = random.uniform(0, 1, 6)
  found = COSTS.cheapest(costs, omit, 0.3, 6)

  def damage(layers, left_out):
    options = [COSTS.options.index(x) for x in layers]
    own = costs[np.arange(6), options]
    return np.where(left_out, omit, own).sum()

  spent = COSTS.spent(found.kept)
  for _ in range(300):
    layers = tuple(COSTS.options[i] for i in random.integers(0, 4, 6))
    left_out = tuple(map(bool, random.uniform(size=6) < 0.3))
    other = Allocation(layers, left_out)
    if other.kept and COSTS.spent(other.kept) <= spent:
      assert damage(layers, left_out) >= damage(found.layers, found.left_out)


def test_equal_rates_are_the_lowest_that_save_as_much():
  for axes in (('heads', 'mlp'), ('mlp',), ('layers',)):
    found = COSTS.equal(0.2, axes)
    assert COSTS.saving(found.kept) >= 0.2
    assert len({*found.layers}) == 1
    less = COSTS.equal(0.05, axes)
    assert COSTS.saving(less.kept) <= COSTS.saving(found.kept)
  assert COSTS.equal(0.9, ('heads',)) is None


def test_a_probe_beats_equal_rates_where_layers_differ():
  found = probe_lib.probe(prober(), COSTS, 0.25, 3)
  chosen = found['allocation']
  assert chosen['saving'] >= 0.25
  assert {2, 3} <= {n for g in chosen['groups'] for n in g['left_out']}
  equal = [row for row in found['equal'] if 'mlp' in row['left_out']]
  reached = [row['damage'] for row in equal if 'damage' in row]
  assert chosen['damage'] < min(reached)
  # No rate of channels alone saves as much, and that is said.
  alone = COSTS.equal(0.25, ('mlp',))
  assert (alone is None) == (len(reached) < len(equal))
  shown = found | {'of': {'model': 'm'}, 'model': SHAPE, 'text': TEXT}
  assert (alone is None) == ('not as much' in probes.text(shown))
  assert json.loads(json.dumps(found)) == found
  again = probe_lib.probe(prober(), COSTS, 0.25, 3)
  assert again == found


def test_what_cannot_be_cut_is_let_be():
  model = models.make(num_layers=1, num_heads=1, num_kv_heads=1, mlp_dim=8)
  params = models.make_params(model)
  batch = {name: x % 16 for name, x in rows(0).items() if name != 'weights'}
  batch['weights'] = rows(0)['weights']
  costs = Costs(model, 16, 4)
  found = probe_lib.probe(Prober(model, params, batch, batch), costs, 0.1, 4)
  assert {row['axis'] for row in found['damage']} == {'mlp'}
  group = {'layers': [0, 1], 'heads': 1, 'channels': 4, 'left_out': []}
  assert found['allocation']['groups'] == [group]
  assert found['sparsity']['importance'].keys() == {'mlp'}


def test_a_loss_that_is_no_number_is_refused():
  params = planted((2, 3)) | {'final_norm': jnp.full(8, jnp.nan)}
  subject = Prober(MODEL, params, rows(0), rows(1))
  with pytest.raises(errors.DataError, match='the whole model is nan'):
    probe_lib.probe(subject, COSTS, 0.2, 4)


def config_of(values):
  """A configuration of the model with some keys of `sparsity`."""
  config = base.get_config()
  with config.ignore_type():
    for key, value in SHAPE.items():
      config.model[key] = value
    for key, value in values.items():
      config.sparsity[key] = value
    config.sparsity.omitted_forward = allocation_file.FORWARD
  return settings.resolve(config.to_dict())


def test_a_run_leaves_out_what_the_allocation_says():
  layers = [COSTS.layer(4, 16)] * 2 + [COSTS.layer(2, 8)] * 4
  left_out = (False, False, True, True, False, False)
  found = Allocation(tuple(layers), left_out)
  metrics = {'heads': 'wanda_out', 'mlp': 'maxip', 'layers': 'influence'}
  config = config_of(settings_of(COSTS, found, metrics))
  phase = phases.phase_of(config, 0, stages.stages(config)[0])
  assert phase.layers == found.layers
  assert phase.omitted == (0, 2)
  executed = phases.phase_flops(config, phase) / config.tokens_per_step
  model, length = config.model, config.data.seq_len
  expected = flops.train_flops_per_token(model, length, found.kept)
  assert executed == pytest.approx(expected)
  scores = config.sparsity.scale('layers', 6)
  assert tuple(x > 0 for x in scores) == left_out


def test_an_allocation_of_equal_layers_names_none():
  layer = COSTS.layer(2, 8)
  equal = Allocation((layer,) * 6, (False,) * 6)
  found = settings_of(COSTS, equal, {'heads': 'taylor', 'mlp': 'maxip'})
  assert not found['layer_scale']
  assert not config_of(found).sparsity.names_layers


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  interop.save(interop.Model(MODEL, planted((2, 3))), folder)
  return folder


@pytest.fixture(scope='module')
def probed(directory, tmp_path_factory):
  out = tmp_path_factory.mktemp('probe') / 'probe.json'
  options = ('--saving=0.2', '--seq_len=16', '--channel_multiple=4')
  command = ['probe', f'--model={directory}', *options, f'--out={out}']
  assert cli.main(command) == 0
  return out


def test_a_run_takes_an_allocation(probed, directory, tmp_path, capsys):
  changes = (
    *('data.seq_len=16', 'data.train=stdlib:docs', 'data.eval=stdlib:docs'),
    *('train.num_steps=3', 'train.batch_size=8', 'train.eval_batches=1'),
    f'model.init_from={directory}',
  )
  command = [
    *('train', '--config=configs/base.py', f'--workdir={tmp_path}'),
    f'--allocation={probed}',
    *(f'--config.{change}' for change in changes),
  ]
  assert cli.main(command) == 0, capsys.readouterr().err
  said = json.loads(probed.read_text())
  config = workdir.read_config(tmp_path)
  assert config.sparsity.omitted_forward == 'skip'
  for key in ('head_rate', 'channel_rate', 'layer_rate', 'selection'):
    assert getattr(config.sparsity, key) == said['sparsity'][key]
  phase = phases.phase_at(config, 0)
  groups = said['allocation']['groups']
  assert [(x.heads, x.channels) for x in phase.layers] == [
    (group['heads'], group['channels'])
    for group in groups
    for _ in range(*group['layers'])
  ]
  assert sum(phase.omitted) == sum(len(g['left_out']) for g in groups)
  dense = flops.train_flops_per_token(config.model, config.data.seq_len)
  executed = phases.phase_flops(config, phase) / config.tokens_per_step
  saved = 1 - executed / dense
  assert saved == pytest.approx(said['allocation']['saving'])


@pytest.mark.parametrize(
  'config, refused',
  [
    ('configs/methods.py:sat:configs/base.py', False),
    ('configs/methods.py:sat_exact:configs/base.py', True),
    ('configs/methods.py:lisa:configs/base.py', True),
  ],
)
def test_an_allocation_is_of_what_is_skipped(config, refused, probed, capsys):
  model = [f'--config.model.{key}={value}' for key, value in SHAPE.items()]
  command = ['plan', f'--config={config}', *model, f'--allocation={probed}']
  code, error = failed(capsys, *command)
  assert code == (78 if refused else 0), error
  assert ('--config.sparsity.omitted_forward=skip' in error) == refused


def test_rates_that_save_less_than_was_probed_say_so(probed, capsys):
  config = ('--config=configs/tiny.py', '--config.growth.hops=()')
  model = [f'--config.model.{key}={value}' for key, value in SHAPE.items()]

  def said(*changes):
    command = ['plan', *config, *model, f'--allocation={probed}', *changes]
    assert cli.main(command) == 0
    return capsys.readouterr().err

  assert 'saves' not in said('--config.data.seq_len=16')
  found = said('--config.data.seq_len=2048')
  assert re.search('saves .* here, and .* on rows of 16 tokens', found)
  assert '--seq_len=2048' in found


def test_rates_of_whole_heads_say_nothing_of_heads():
  layers = tuple(COSTS.layer(4, n) for n in (8, 8, 16, 8, 8, 4))
  found = settings_of(COSTS, Allocation(layers, (False,) * 6), {'mlp': 'maxip'})
  assert 'granularity' not in found and found['channel_multiple'] == 4


def test_layers_that_are_left_out_make_no_group_of_their_own():
  costs = np.ones((6, len(COSTS.options))) * np.linspace(1, 2, 6)[:, None]
  costs[:, 0] = 0.0
  found = COSTS.cheapest(costs, [9, 9, 0, 0, 9, 9], 0.2, 4)
  assert found.left_out == (False, False, True, True, False, False)
  assert len(found.groups) == 1


def test_what_is_given_goes_before_an_allocation(probed):
  given = ['--config.sparsity.layer_rate=0.0']
  found = allocation_file.overrides(str(probed), given)
  assert [x for x in found if x.startswith('--config.sparsity.layer_rate')] == (
    given
  )


def test_a_report_shows_a_probe(probed, tmp_path, capsys):
  out = tmp_path / 'report.html'
  assert cli.main(['report', str(probed), f'--out={out}']) == 0
  printed = capsys.readouterr().out
  assert 'the allocation' in printed
  tables = printed.partition('\nwrote ')[0]
  assert max(map(len, tables.splitlines())) <= 80
  page = out.read_text()
  assert page.count('<svg role="img"') == 9 and 'By layer' in page
  assert '# Probe of' in probed.with_suffix('.md').read_text()


def test_few_tokens_are_said_to_be_few(probed):
  found = json.loads(probed.read_text())
  assert found['text']['tokens'] < 512
  assert 'Fewer than 512' in ' '.join(probes.text(found).split())
  found['text']['tokens'] = 512
  assert 'Fewer than' not in probes.text(found)


@pytest.mark.parametrize('name', ['smollm2', 'byte'])
def test_recorded_probes_are_shown_as_they_are(name):
  found = json.loads((RESULTS / f'{name}.json').read_text())
  page = (RESULTS / f'{name}.md').read_text()
  assert page == probes.markdown(found)


def test_a_file_of_rates_alone_is_no_report(probed, tmp_path, capsys):
  rates = json.loads(probed.read_text())
  del rates['damage'], rates['equal']
  file = tmp_path / 'allocation.json'
  file.write_text(json.dumps(rates))
  code, error = failed(capsys, 'report', str(file))
  assert code == 65 and 'has no damage, equal' in error and str(file) in error


def failed(capsys, *arguments):
  """Exit code and message of a command."""
  capsys.readouterr()
  return cli.main([*arguments]), capsys.readouterr().err


@pytest.mark.parametrize(
  'option, code, said',
  [
    ('--saving=-0.1', 78, 'saving -0.1; allowed: above 0'),
    ('--saving=nan', 78, 'saving nan; allowed: above 0'),
    ('--saving=1.5', 78, 'saving 1.5; allowed: above 0'),
    ('--saving=0.99', 78, 'saving 0.99 cannot be reached.* a step saves 0'),
    ('--rows=0', 78, 'rows 0 must be at least 1'),
    ('--sizes=0', 78, 'sizes 0 must be at least 1'),
    ('--seq_len=-1', 78, 'seq_len -1 must be at least 1'),
    ('--channel_multiple=0', 78, 'channel_multiple 0 must be at least 1'),
    ('--data=text:none.txt', 65, 'none.txt'),
    ('--out=x.html', 78, r'x\.html: JSON is .* such as out\.json'),
    ('--out=.', 78, 'JSON is written'),
    ('--out=/dev/null/x.json', 74, 'cannot write'),
    ('--rows=100000', 65, 'stdlib:docs has at most .* rows of 128 tokens'),
  ],
)
def test_bad_options_are_refused(option, code, said, directory, capsys):
  found, error = failed(capsys, 'probe', f'--model={directory}', option)
  assert found == code
  assert re.search(said, error), error


def test_what_is_no_model_is_refused(tmp_path, capsys):
  code, error = failed(capsys, 'probe', f'--model={tmp_path}')
  assert code == 65 and str(tmp_path) in error
  code, error = failed(capsys, 'probe')
  assert code == 78 and '--workdir=DIR and --model=MODEL_DIR' in error


@pytest.mark.parametrize(
  'content, said',
  [
    (None, 'cannot be read'),
    ('{', 'cannot be read'),
    ('[]', 'is no file of a probe'),
    ('{"kind": "satjax probe"}', 'is no file of a probe'),
  ],
)
def test_what_is_no_allocation_is_refused(content, said, tmp_path, capsys):
  file = tmp_path / 'a.json'
  if content is not None:
    file.write_text(content)
  config = '--config=configs/tiny.py'
  code, error = failed(capsys, 'plan', config, f'--allocation={file}')
  assert code == 78 and said in error and str(file) in error


def test_an_allocation_of_another_model_is_refused(probed, capsys):
  config = ('--config=configs/base.py', '--config.model.num_layers=6')
  code, error = failed(capsys, 'plan', *config, f'--allocation={probed}')
  assert code == 78
  assert 'is of a model with embed_dim 8, and config.model.embed_dim' in error
