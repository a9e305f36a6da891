"""Plans for accelerators that are not here, in closed form."""

import dataclasses
import json
import math

import jax
import pytest

from configs import llama2_7b_cpt, tiny
from satjax import cli, errors
from satjax.config.run import Config
from satjax.lab.plan import advice as plan_advice
from satjax.lab.plan import collectives
from satjax.lab.plan import compiled as plan_compile
from satjax.lab.plan import devices as plan_devices
from satjax.lab.plan import memory as plan_memory
from satjax.lab.plan import step_time as plan_time
from satjax.lab.plan import table as plan_table
from satjax.lab.plan import topology as plan_topology
from satjax.lab.plan.collectives import Collective
from satjax.train import programs
from satjax.train import setup as setup_lib
from tests import options


def make_config(base=tiny, **changes):
  config = base.get_config()
  config.growth.hops = ()
  for key, value in changes.items():
    group, name = key.split('__')
    config[group][name] = value
  return Config.from_dict(config)


def memory(config, count=8, step=0):
  mesh = plan_memory.abstract_mesh(config, count)
  programs = plan_memory.distinct(config)
  return plan_memory.memory(config, programs[step].phase, mesh)


@pytest.mark.parametrize('axes', [(1, 8, 1), (2, 2, 2)])
def test_the_state_is_that_of_a_run(axes):
  changes = dict(zip(('mesh__data', 'mesh__fsdp', 'mesh__tensor'), axes))
  off = {'sparsity__head_rate': 0.0, 'sparsity__channel_rate': 0.0}
  config = make_config(**changes, **off, train__batch_size=8)
  state = setup_lib.initial_state(setup_lib.make_setup(config))
  held = [x.addressable_shards[0].data for x in jax.tree.leaves(state)]
  assert memory(config).state == sum(x.nbytes for x in held)


def test_what_is_left_out_rests_beside_the_state():
  sparse, dense = (memory(make_config(), 1, step) for step in (0, -1))
  assert dense.parked == 0 < sparse.parked
  # Nothing is stored twice but the step counts.
  assert sparse.state + sparse.parked == pytest.approx(dense.state, abs=64)
  assert sparse.total < dense.total


def test_the_host_takes_what_the_step_does_not_read():
  skip = {'sparsity__omitted_forward': 'skip'}
  at_host = memory(make_config(sparsity__rest='host', **skip), 1)
  assert at_host.parked == 0 < memory(make_config(**skip), 1).parked
  exact = {'sparsity__omitted_forward': 'exact'}
  read = memory(make_config(sparsity__rest='host', **exact), 1).parked
  assert read == pytest.approx(memory(make_config(**exact), 1).parked / 3, 0.1)


LAYERS = {
  'model__num_layers': 4,
  'sparsity__head_rate': 0.0,
  'sparsity__channel_rate': 0.0,
  'sparsity__layer_rate': 0.5,
}


@pytest.mark.parametrize('rest', ['device', 'host'])
@pytest.mark.parametrize(
  'changes',
  [
    *({'omitted_forward': how} for how in ('skip', 'exact', 'through')),
    {'omitted_forward': 'through', 'embed': 'rest'},
    {'omitted_forward': {'mlp': 'through'}, 'channel_rate': 0.5},
    {'omitted_forward': 'exact', 'channel_rate': 0.5, 'head_rate': 0.5},
  ],
)
def test_layers_at_rest_are_where_a_run_has_them(rest, changes):
  changes = {f'sparsity__{key}': value for key, value in changes.items()}
  config = make_config(**LAYERS | changes, sparsity__rest=rest)
  setup = setup_lib.make_setup(config, jax.devices()[:1])
  phase = plan_memory.distinct(config)[0].phase
  opened = programs.shapes(setup, plan_memory.BATCH, phase)
  seen = jax.tree.leaves((opened.state, opened.forward_extra))
  held = {
    id(x): math.prod(x.shape) * x.dtype.itemsize
    for x in seen
    if x.sharding is None or x.sharding.memory_kind != 'pinned_host'
  }
  held = sum(held.values()) + plan_compile.parked_bytes(opened)
  closed = memory(config, 1)
  assert closed.state + closed.parked == pytest.approx(held, abs=128)


def test_what_layers_at_rest_leave_for_the_backward_pass():
  dense, skip, exact, through = (
    memory(make_config(**LAYERS, sparsity__omitted_forward=how), 1, step)
    for how, step in (('skip', -1), ('skip', 0), ('exact', 0), ('through', 0))
  )
  assert skip.activations == exact.activations == dense.activations / 2
  assert skip.activations < through.activations < dense.activations
  assert through.total < dense.total


def test_layers_that_count_have_a_copy_where_they_rest_on_the_device():
  def needed(how, rest, dtype='bfloat16'):
    changes = {'omitted_forward': how, 'rest': rest}
    changes = {f'sparsity__{key}': value for key, value in changes.items()}
    return memory(make_config(**LAYERS, **changes, model__dtype=dtype), 1)

  skip, host, device = (
    needed(*case).gradients
    for case in (('skip', 'device'), ('exact', 'host'), ('exact', 'device'))
  )
  model = make_config(**LAYERS).model
  matrices = 4 * model.num_heads * model.head_dim + 3 * model.mlp_dim
  assert skip == host == device - 2 * 2 * matrices * model.embed_dim
  whole = needed('exact', 'device', 'float32')
  assert whole.gradients == needed('skip', 'host', 'float32').gradients


def test_a_refresh_puts_arrays_together_one_at_a_time():
  config = make_config(sparsity__rest='host', train__loss_chunk=1)
  largest = 4 * config.model.mlp_dim * config.model.embed_dim
  largest *= config.model.num_layers
  embedding = 4 * config.model.vocab_size * config.model.embed_dim
  needed, dense = (memory(config, 1, step) for step in (0, -1))
  assert needed.exchange == 2 * max(largest, embedding)
  assert dense.exchange == 0
  assert needed.between == needed.state + needed.parked + needed.exchange
  assert needed.total >= needed.between


def test_what_saves_memory():
  def bytes_with(**changes):
    changes |= {'mesh__fsdp': 8, 'train__batch_size': 64}
    return memory(make_config(base=llama2_7b_cpt, **changes), 8, -1)

  plain, bare = bytes_with(), bytes_with(model__remat='none')
  assert bare.activations > 8 * plain.activations
  chunked = bytes_with(train__loss_chunk=1024)
  assert chunked.logits < plain.logits / 4
  small = bytes_with(train__microbatch_size=8)
  assert small.activations == plain.activations / 8
  assert small.total < plain.total
  assert plain.state == pytest.approx(12 * 6.74e9 / 8, rel=1e-2)


def test_a_mesh_that_does_not_match_is_refused():
  config = make_config(mesh__data=1, mesh__fsdp=4)
  with pytest.raises(errors.ConfigError, match='needs 4 devices'):
    plan_memory.abstract_mesh(config, 8)
  config = make_config(mesh__fsdp=8)
  with pytest.raises(errors.ConfigError, match='use a multiple of 8'):
    plan_memory.abstract_mesh(config, 8)


def test_names_of_topologies():
  pod = plan_devices.parse('2*v5e:16x16')
  assert (pod.name, pod.label) == ('v5e:16x16', '2*v5e:16x16')
  assert (pod.count, pod.slices) == (512, 2)
  assert plan_devices.parse('v5p:4x4x8').count == 128
  node = plan_devices.parse('h200:8')
  assert (node.count, node.chip.flops) == (8, 989e12)


@pytest.mark.parametrize('name', ['v5e', 'b5:4x4', 'v5e:4x', 'v5e:0x4', '8'])
def test_other_names_are_refused(name):
  with pytest.raises(errors.ConfigError, match=f'--topology={name}'):
    plan_devices.parse(name)


@pytest.mark.parametrize('name', plan_devices.CHIPS)
def test_every_chip_has_its_flops(name):
  assert plan_devices.parse(f'{name}:8').chip.flops > 1e14


def test_without_a_compiler_there_is_a_remedy(monkeypatch):
  from jax.experimental import topologies

  def missing(*_, **__):
    raise RuntimeError('JAX TPU support not installed; cannot generate')

  monkeypatch.setattr(topologies, 'get_topology_desc', missing)
  with pytest.raises(plan_devices.NoCompiler, match=r"'.\[tpu\]'"):
    plan_devices.compiler_devices(plan_devices.parse('v5e:4x4'))


@pytest.mark.parametrize(
  ('message', 'gib'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required'
      ' for HLO temporaries (26.29G) exceeds available HBM (15.75G).',
      26.29,
    ),
    ('Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm.', 20.5),
    ('Used 512.00M of 15.75G hbm', 0.5),
    ('no figure', 0),
  ],
)
def test_the_figure_of_a_refusal(message, gib):
  assert plan_compile.needed_bytes(message) == pytest.approx(gib * 2**30)


def seconds(config, count, chip, **changes):
  mesh = plan_memory.abstract_mesh(config, count)
  phase = plan_memory.distinct(config)[-1].phase
  return plan_time.step_time(config, phase, mesh, chip, **changes)


def test_a_step_takes_what_its_scarcest_resource_takes():
  config = make_config(llama2_7b_cpt, mesh__fsdp=8)
  chip = plan_devices.CHIPS['h200']
  time = seconds(config, 8, chip)
  # 41.25 GFLOPs a token of 2048 (performance.md): more at 4096; remat a third.
  flops = 256 * 4096 * 42.9e9 * 4 / 3 / 8
  assert time.compute == pytest.approx(flops / (0.6 * 989e12), rel=0.02)
  assert (time.bound, time.total) == ('compute', time.compute)
  slow = seconds(config, 8, dataclasses.replace(chip, network=1e9))
  assert (slow.bound, slow.total) == ('network', slow.network)
  assert slow.compute == time.compute


def test_what_leaves_a_node_is_slower():
  config, chip = make_config(), plan_devices.CHIPS['h200']

  def network(group):
    one = Collective('all-gather', (8,), 'u8', 10**9, 1, group)
    return seconds(config, 1, chip, exchanged=[one]).network

  assert network(16) > 8 * network(8)


def test_layers_at_rest_take_part_in_the_passes_they_have():
  changes = LAYERS | {'model__num_layers': 32, 'mesh__fsdp': 8}
  changes |= {'train__microbatch_size': 64, 'sparsity__rungs': 1}

  def gathers(how, step=0):
    config = make_config(
      llama2_7b_cpt, **changes, sparsity__omitted_forward=how
    )
    mesh = plan_memory.abstract_mesh(config, 8)
    phase = plan_memory.distinct(config)[step].phase
    found = plan_time.exchanges(config, phase, mesh)
    return sum(x.times * x.bytes for x in found if x.kind == 'all-gather')

  skip, exact, through, dense = map(
    gathers, ('skip', 'exact', 'through', 'skip'), (0, 0, 0, -1)
  )
  assert skip < exact < through == dense
  assert exact - skip == through - exact


def test_layers_that_count_come_from_the_host_for_each_pass():
  def host(how):
    config = make_config(
      **LAYERS, sparsity__omitted_forward=how, sparsity__rest='host'
    )
    mesh = plan_memory.abstract_mesh(config, 1)
    phase = plan_memory.distinct(config)[0].phase
    chip = plan_devices.CHIPS['h200']
    return plan_time.step_time(config, phase, mesh, chip).host

  skip, exact, through = map(host, ('skip', 'exact', 'through'))
  assert 0 < skip < exact
  assert through - exact == pytest.approx(exact - skip)


def test_fsdp_exchanges_the_matrices_three_times():
  config = make_config(llama2_7b_cpt, mesh__fsdp=8, train__microbatch_size=64)
  mesh = plan_memory.abstract_mesh(config, 8)
  phase = plan_memory.distinct(config)[-1].phase
  found = plan_time.exchanges(config, phase, mesh)
  sums = {}
  for one in found:
    sums[one.kind] = sums.get(one.kind, 0) + one.times * one.bytes
  once = 4 * 2 * 6.74e9  # microbatches, bfloat16
  assert sums['all-gather'] == pytest.approx(2 * once, rel=0.01)
  assert sums['reduce-scatter'] == pytest.approx(once, rel=0.01)
  assert 'all-reduce' not in sums


@pytest.mark.parametrize(
  ('axes', 'kind'),
  [
    ((1, 32), 'reduce-scatter'),
    ((1, 64), 'all-reduce'),  # 4096 / 64 is no multiple of 128
    ((2, 32), 'all-reduce'),
  ],
)
def test_gradients_of_narrow_shards_and_copies_are_summed_whole(axes, kind):
  config = make_config(llama2_7b_cpt, mesh__data=axes[0], mesh__fsdp=axes[1])
  mesh = plan_memory.abstract_mesh(config, axes[0] * axes[1])
  phase = plan_memory.distinct(config)[-1].phase
  found = plan_time.exchanges(config, phase, mesh, lanes=128)
  assert {x.kind for x in found} == {'all-gather', kind}


@pytest.mark.parametrize('name', ['h200:8', 'v5e:4x4'])
def test_advice_fits_and_needs_its_flags_alone(name):
  topology = plan_devices.parse(name)
  config = make_config(llama2_7b_cpt, train__num_steps=200, sparsity__rungs=1)
  assert plan_advice.price(config, topology)[0] > topology.chip.memory
  advice = plan_advice.cheapest(config, topology)
  assert plan_advice.price(advice, topology)[0] < topology.chip.memory
  flags = plan_advice.flags(config, advice)
  assert flags
  changed = config.to_dict()
  for flag in flags:
    key, _, value = flag.removeprefix('--config.').partition('=')
    group, name = key.split('.')
    kind = type(changed[group][name])
    changed[group][name] = kind(value)
  assert Config.from_dict(changed) == advice


def test_parameters_stay_within_a_slice():
  config = make_config(train__batch_size=16, mesh__data=1)
  found = plan_advice.candidates(config, plan_devices.parse('2*v5e:2x2'))
  assert {c.mesh.data for c in found} == {2, 4, 8}


def test_there_is_no_advice_where_nothing_fits():
  config = make_config(llama2_7b_cpt, train__num_steps=200, sparsity__rungs=1)
  assert plan_advice.cheapest(config, plan_devices.parse('v5e:2x2')) is None


@pytest.mark.parametrize('forward', ['skip', 'exact'])
def test_a_compiler_finds_the_same_state(forward):
  config = make_config(
    mesh__fsdp=4,
    mesh__tensor=2,
    sparsity__shards=2,
    sparsity__omitted_forward=forward,
  )
  compiled, exchanged = plan_compile.compile_at(config, 0, jax.devices())
  closed = memory(config)
  batch = 5 * 4 * config.tokens_per_step / 4
  # Weights that an exact forward pass reads are arguments of the step.
  read = closed.parked / 3 if forward == 'exact' else 0
  arguments = closed.state + batch + read
  assert compiled['argument_bytes'] == pytest.approx(arguments, rel=0.01)
  parked = pytest.approx(closed.parked - read, abs=64)
  assert compiled['parked_bytes'] == parked
  assert compiled['temporary_bytes'] > 0 and not compiled['refusal']
  kinds = {x.kind for x in exchanged}
  assert {'all-gather', 'all-reduce'} <= kinds


@pytest.mark.parametrize('data, fsdp', [(1, 4), (2, 2)])
def test_what_counts_though_it_rests_is_sent_once(data, fsdp):
  """Compiled for a CPU, whose other exchanges are not those of a TPU."""
  compiled, closed = [], []
  for forward in ('skip', 'exact'):
    config = make_config(
      mesh__data=data,
      mesh__fsdp=fsdp,
      mesh__tensor=2,
      sparsity__shards=2,
      sparsity__omitted_forward=forward,
    )
    mesh = plan_memory.abstract_mesh(config, 8)
    phase = plan_memory.distinct(config)[0].phase
    _, found = plan_compile.compile_at(config, 0, jax.devices())
    compiled.append(collectives.total(found))
    closed.append(collectives.total(plan_time.exchanges(config, phase, mesh)))
  for kind in ('all-gather', 'all-reduce', 'reduce-scatter'):
    exact, skip = (found[kind]['bytes'] for found in compiled[::-1])
    more = exact - skip
    assert closed[1][kind]['bytes'] - closed[0][kind]['bytes'] == more
    assert more or kind == 'reduce-scatter'


def test_a_refusal_of_the_compiler_is_a_row(monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: Used 18.6G of 15.75G hbm\nand more'
    )

  monkeypatch.setattr(programs, 'compile_step', refuse)
  monkeypatch.setattr(plan_devices, 'compiler_devices', lambda _: jax.devices())
  monkeypatch.setattr(plan_advice, 'cheapest', lambda *_: None)
  config = make_config(mesh__data=8, train__batch_size=8)
  topology = plan_devices.parse('v5e:2x4')
  result = plan_topology.plan(config, topology, lambda _: None)
  refused, *others = result['phases']
  assert not refused['fits'] and refused['modelled_seconds'] is None
  assert refused['total_bytes'] == pytest.approx(18.6 * 2**30)
  assert others and not any(row['compiler'] for row in others)
  text = plan_table.render(result)
  assert '| NO |' in text and 'does not fit: RESOURCE_EXHAUSTED' in text
  assert '19.97' in text and 'Nothing that was tried fits' in text


def run(tmp_path, capsys, *arguments):
  """What the command prints and writes; the small model in closed form."""
  out = tmp_path / 'plan.json'
  config = ['--config=configs/tiny.py', '--config.growth.hops=()']
  code = cli.main(['plan', *config, f'--out={out}', *arguments])
  assert code == 0
  text = capsys.readouterr().out
  assert out.with_suffix('.md').read_text().strip() in text
  return text, json.loads(out.read_text())


def test_the_command_writes_what_it_prints(tmp_path, capsys):
  text, found = run(tmp_path, capsys, '--topology=h200:2')
  assert 'It fits.' in text and 'modelled, not measured' in text
  assert found['chips'] == 2 and found['advice'] is None
  phase = found['phases'][0]
  assert phase['fits'] and phase['compiler'] is None
  parts = phase['closed_form_bytes']
  assert phase['total_bytes'] == parts['total'] > parts['state']


def test_the_command_advises_where_the_mesh_does_not_match(tmp_path, capsys):
  flag = '--config.mesh.data=3'
  text, found = run(tmp_path, capsys, '--topology=h200:2', flag)
  assert 'needs 3 devices' in text and not found['phases']
  flags = found['advice']['flags']
  given = options.changed([flag], *flags)
  again, _ = run(tmp_path, capsys, '--topology=h200:2', *given)
  assert 'It fits.' in again


def test_a_plain_plan_has_the_memory_of_its_mesh(capsys):
  assert cli.main(['plan', '--config=configs/tiny.py']) == 0
  assert 'Closed form, on one device' in capsys.readouterr().out


def test_out_needs_a_topology(capsys):
  assert cli.main(['plan', '--config=configs/tiny.py', '--out=x.json']) == 78
  assert '--topology' in capsys.readouterr().err
