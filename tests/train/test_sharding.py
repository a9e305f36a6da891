"""On a mesh a sub-network is as local as the dense model, and smaller."""

import contextlib
import functools
import importlib.util

import jax
from jax.experimental import topologies
import numpy as np
import pytest

from satjax import errors, sharding, tree
from satjax.config.groups import MeshConfig
from satjax.interop import huggingface, weights
from satjax.lab.plan import collectives
from satjax.lab.plan import compiled as plan_compile
from satjax.sparsity import subnetwork
from satjax.train import checkpoint, phases, programs, refresh, window
from satjax.train import setup as setup_lib
from tests import models
from tests.train import helpers

# Numbers that appear on no other axis, so that a shape tells what it is.
MODEL = {
  'model__embed_dim': 48,
  'model__num_heads': 8,
  'model__num_kv_heads': 8,
  'model__head_dim': 6,
  'model__mlp_dim': 112,
  'model__scan': True,
  'train__batch_size': 8,
}
HALF = {
  'sparsity__head_rate': 0.5,
  'sparsity__channel_rate': 0.5,
  'sparsity__channel_multiple': 8,
}
MESHES = [
  pytest.param((1, 8, 1), marks=pytest.mark.slow),
  (1, 4, 2),
  pytest.param((2, 2, 2), marks=pytest.mark.slow),
  pytest.param((4, 1, 2), marks=pytest.mark.slow),
]


def make_config(mesh, **changes):
  names = ('mesh__data', 'mesh__fsdp', 'mesh__tensor')
  return helpers.make_config(**(MODEL | dict(zip(names, mesh)) | changes))


def make_setup(config):
  count = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
  return setup_lib.make_setup(config, jax.devices()[:count])


def step_collectives(config):
  """What a step sends, and which of it are weights or their gradients."""
  setup, phase = make_setup(config), phases.phase_at(config, 0)
  batch = helpers.random_batch(config, 0)
  program = programs.compile_phase(setup, batch, phase)
  rounds = plan_compile.loop_rounds(phase)
  found = collectives.read(program.as_text(), rounds)
  layer, split = phase.layers[0], config.mesh.tensor
  rows = {
    n // split for n in (layer.heads * config.model.head_dim, layer.channels)
  }
  words = config.model.vocab_size // split
  weights = [
    one
    for one in found
    if one.shape[1:] and {*one.shape[:2]} & rows and words not in one.shape
  ]
  return found, weights


def assert_cheaper(sparse, dense, keep):
  """No more collectives of any kind, and `keep` of the bytes of weights."""
  sparse_all, dense_all = (collectives.total(c[0]) for c in (sparse, dense))
  for kind, found in sparse_all.items():
    assert found['count'] <= dense_all[kind]['count'], kind
  sparse_bytes, dense_bytes = (
    sum(one.bytes * one.times for one in weights)
    for _, weights in (sparse, dense)
  )
  assert 0 < sparse_bytes <= (keep + 0.01) * dense_bytes


@pytest.mark.parametrize('mesh', MESHES)
def test_a_sparse_step_sends_only_what_it_keeps(mesh, capfd):
  dense = step_collectives(make_config(mesh))
  config = make_config(
    mesh,
    **HALF,
    sparsity__omitted_forward='skip',
    sparsity__shards=mesh[2],
  )
  sparse = step_collectives(config)
  assert_cheaper(sparse, dense, keep=0.5)
  whole = {config.model.mlp_dim, config.model.mlp_dim // mesh[2]}
  gathers = [
    [one for one in found if one.kind == 'all-gather']
    for found in (sparse[0], dense[1])
  ]
  assert not [one for one in gathers[0] if whole & {*one.shape}]
  # The check above looks at something: 2 layers, 7 matrices.
  assert sum(one.times for one in gathers[1]) >= (14 if mesh[1] > 1 else 0)
  assert 'Involuntary full rematerialization' not in capfd.readouterr().err


HALF_OF_LAYERS = {'model__num_layers': 4, 'sparsity__layer_rate': 0.5}


@pytest.mark.parametrize('mesh', MESHES)
def test_layers_at_rest_send_no_more_than_dense_ones(mesh):
  """Nothing under 'skip'; weights once, for one pass, under 'exact'."""
  dense = step_collectives(make_config(mesh, model__num_layers=4))
  for how, share in (('skip', 0.5), ('exact', 0.8), ('through', 1.0)):
    config = make_config(
      mesh,
      **HALF_OF_LAYERS,
      sparsity__omitted_forward=how,
      sparsity__shards=mesh[2],
    )
    sparse = step_collectives(config)
    assert_cheaper(sparse, dense, keep=share)
    totals = [collectives.total(found) for found, _ in (sparse, dense)]
    for kind, found in totals[0].items():
      assert found['bytes'] <= totals[1][kind]['bytes'], (how, kind)


def exchanged(config, shards):
  """The collectives of every program that opens or closes a window."""
  setup, phase = make_setup(config), phases.phase_at(config, 0)
  state = setup_lib.abstract_state(setup, phase.stage)
  batch = setup.batch_shapes(helpers.random_batch(config, 0), phase.stage)
  kept = refresh.shapes(config, state.params, batch, phase).kept
  found = []

  def call(program, *args):
    compiled = program.lower(*args).compile()
    found.extend(collectives.read(compiled.as_text()))
    return subnetwork.ahead(program, *args)

  order = setup.replicate(call(subnetwork.orders, kept, shards))
  stacks = phases.stacks(phase)
  place = setup.place_leaf
  parts = subnetwork.split(state, order, stacks, place=place, call=call)
  subnetwork.merge(*parts, order, stacks, place=place, call=call)
  return found


@pytest.mark.parametrize('mesh', [(1, 4, 2), (2, 2, 2)])
def test_rows_of_a_selection_never_leave_their_device(mesh):
  config = make_config(mesh, **HALF, sparsity__shards=2)
  assert exchanged(config, 2) == []
  # So the test bites: numbered over the whole axis, rows do travel.
  assert exchanged(config, 1)


@pytest.mark.parametrize('mesh', [(1, 4, 2), (2, 2, 2)])
def test_layers_of_a_selection_never_leave_their_device(mesh):
  layers = HALF_OF_LAYERS | HALF
  config = make_config(mesh, **layers, sparsity__shards=2)
  assert exchanged(config, 2) == []
  # Layers alone are whole on every device: no row of theirs is chosen.
  assert exchanged(make_config(mesh, **HALF_OF_LAYERS), 1) == []


def test_parts_of_a_state_lie_where_the_table_of_axes_wants_them():
  config = make_config((1, 4, 2), **HALF, sparsity__shards=2)
  setup = make_setup(config)
  now = window.first(setup, helpers.initial_state(setup))
  batch = setup.put_batch(helpers.random_batch(config, 0))
  now = window.turn_over(setup, now, 0, batch, weighs=False)
  order = now.order
  kinds = {'split': now.state, 'rest': now.parked}
  for name, part in kinds.items():
    for path, leaf in tree.flatten(part).items():
      assert setup.place_leaf(path, leaf) is leaf, (name, path)
  full = window.whole(setup, now, 0)
  for path, leaf in tree.flatten(full).items():
    assert setup.place_leaf(path, leaf) is leaf, path
  assert {rows.shape[1] for rows in order.values()} == {2}


@functools.cache
def trained(mesh, how=None):
  """Losses of a few steps, the selection of each, and the state after them.

  Of neurons or, if `how` says what they do, of layers.
  """
  layers = HALF_OF_LAYERS | {'sparsity__omitted_forward': how}
  config = make_config(
    mesh,
    **(layers if how else HALF | {'sparsity__importance': 'maxip'}),
    sparsity__shards=2,
    sparsity__split=1.0,
    sparsity__refresh_every=3,
    sparsity__selection='sample',
    train__num_steps=6,
  )
  setup = make_setup(config)
  now = window.first(setup, helpers.initial_state(setup))
  losses, kept = [], []
  step = jax.jit(setup_lib.make_step(setup))
  for number in range(6):
    batch = setup.put_batch(helpers.random_batch(config, number))
    now = window.turn_over(setup, now, number, batch, weighs=False)
    with jax.sharding.set_mesh(setup.mesh):
      now.state, scalars = step(now.state, batch, now.forward_extra)
    losses.append(float(scalars['loss']))
    kept.append(jax.device_get(now.chosen.kept))
  return losses, kept, jax.device_get(window.whole(setup, now, 6))


@pytest.mark.parametrize(
  'mesh',
  [
    pytest.param((1, 1, 2), marks=pytest.mark.slow),
    pytest.param((1, 2, 2), marks=pytest.mark.slow),
    (2, 2, 2),
    pytest.param((8, 1, 1), marks=pytest.mark.slow),
  ],
)
def test_selection_and_loss_do_not_depend_on_the_mesh(mesh):
  losses, kept, _ = trained((1, 1, 1))
  same_losses, same_kept, _ = trained(mesh)
  np.testing.assert_allclose(same_losses, losses, rtol=1e-5)
  for one, two in zip(kept, same_kept):
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], two[name], name)
  assert any((kept[0][n] != kept[3][n]).any() for n in kept[0])


@pytest.mark.parametrize(
  'how',
  [
    pytest.param('skip', marks=pytest.mark.slow),
    pytest.param('exact', marks=pytest.mark.slow),
    'through',
  ],
)
def test_layers_on_eight_devices_train_as_on_one(how):
  losses, kept, state = trained((1, 1, 1), how)
  same_losses, same_kept, same_state = trained((2, 2, 2), how)
  np.testing.assert_allclose(same_losses, losses, rtol=1e-5)
  for one, two in zip(kept, same_kept):
    np.testing.assert_array_equal(one['layers'], two['layers'])
  assert any((one['layers'] != kept[0]['layers']).any() for one in kept)
  found = tree.flatten(same_state)
  for path, leaf in tree.flatten(state).items():
    np.testing.assert_allclose(found[path], leaf, 1e-3, 1e-4, err_msg=path)


@pytest.mark.slow
@pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'), reason='needs the extra tpu'
)
def test_tensor_and_fsdp_stay_within_a_slice(monkeypatch):
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  pod = topologies.get_topology_desc('v5e:4x4', 'tpu', num_slices=2)
  mesh = MeshConfig(data=-1, fsdp=8, tensor=2)
  grid = sharding.make_mesh(mesh, pod.devices).devices
  assert grid.shape == (2, 8, 2)
  for number, copy in enumerate(grid):
    assert {device.slice_index for device in copy.flat} == {number}
  mesh = MeshConfig(data=1, fsdp=16, tensor=2)
  with pytest.raises(errors.ConfigError, match='over 2 slices'):
    sharding.make_mesh(mesh, pod.devices)


@pytest.mark.parametrize('mesh', [(1, 1, 1), (1, 2, 1), (1, 2, 4)])
def test_a_checkpoint_is_restored_onto_any_other_mesh(tmp_path, mesh):
  setup = make_setup(make_config((2, 2, 2)))
  state = setup_lib.initial_state(setup)
  with contextlib.closing(checkpoint.Checkpoints(tmp_path, keep=1)) as saved:
    saved.save(0, {'state': state, 'extra': {}}, {'extra': {}})
    saved.wait()
    setup = make_setup(make_config(mesh))
    found = saved.restore(setup_lib.abstract_checkpoint(setup)).state['state']
  for path, leaf in tree.flatten(found).items():
    assert setup.place_leaf(path, leaf) is leaf, path
    np.testing.assert_array_equal(leaf, tree.flatten(state)[path], path)


def test_a_model_directory_is_read_part_by_part(tmp_path, monkeypatch):
  config = make_config((1, 4, 2))
  params = models.make_params(config.model)
  huggingface.save(tmp_path, config.model, params, dtype='bfloat16')
  changes = {'model__init_from': str(tmp_path), 'data__tokenizer': 'byte'}
  config = make_config((1, 4, 2), **changes)
  sizes, is_finite = [], weights.is_finite

  def measured(part):
    sizes.append(part.size)
    return is_finite(part)

  monkeypatch.setattr(weights, 'is_finite', measured)
  state = setup_lib.initial_state(make_setup(config))
  model = config.model
  assert max(sizes) == model.vocab_size * model.embed_dim // 8
  for path, leaf in tree.flatten(params).items():
    found = tree.flatten(state.params)[path]
    assert found.dtype == np.float32
    expected = leaf.astype('bfloat16').astype(np.float32)
    np.testing.assert_array_equal(found, expected, path)
  for path, leaf in tree.flatten(state).items():
    assert make_setup(config).place_leaf(path, leaf) is leaf, path


def test_shards_must_fit_the_mesh():
  with pytest.raises(errors.ConfigError, match='use shards=2'):
    make_config((1, 4, 2), **HALF)
  make_config((1, 4, 2))
  make_config((1, 4, 2), **HALF, sparsity__execution='masked')
