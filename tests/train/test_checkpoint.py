"""What is restored is what was saved, or an older state, or an error."""

import functools
import logging
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import errors
from satjax.train import checkpoint
from satjax.train.checkpoint import Checkpoints

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def make_state(seed):
  """A few leaves of each type that a run saves."""
  random = np.random.default_rng(seed)
  return {
    'params': {
      'embed': jnp.asarray(random.normal(size=(32, 64)), jnp.float32),
      'half': jnp.asarray(random.normal(size=(5, 3)), jnp.bfloat16),
    },
    'mask': jnp.asarray(random.random(9) < 0.5),
    'small': jnp.asarray(random.integers(0, 255, 7), jnp.uint8),
    'rows': jnp.asarray(random.integers(0, 99, (2, 4)), jnp.int32),
    'step': jnp.array(seed, jnp.int32),
  }


def shapes_of(state):
  """Shapes to restore, on one device."""
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state
  )


def abstract_of(record):
  assert 'step' in record
  return shapes_of(make_state(0))


def assert_same(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.array(a), np.array(b))


@pytest.fixture
def opened():
  """Opens folders of checkpoints and closes them at the end."""
  managers = []

  def open_folder(folder, keep=5):
    managers.append(Checkpoints(pathlib.Path(folder).parent, keep=keep))
    return managers[-1]

  yield open_folder
  for manager in managers:
    manager.close()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Steps 1 and 2; make a copy before doing harm."""
  workdir = tmp_path_factory.mktemp('saved')
  manager = Checkpoints(workdir, keep=5)
  for step in (1, 2):
    manager.save(step, make_state(step), {'note': f'after step {step}'})
  manager.close()
  return workdir / 'checkpoints'


@pytest.fixture
def folder(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'checkpoints'))


def data_files(step_folder):
  """The files of the arrays, largest first."""
  files = (step_folder / 'state').rglob('d/*')
  return sorted(files, key=lambda path: -path.stat().st_size)


def test_round_trip_is_bitwise(folder, opened):
  restored = opened(folder).restore(abstract_of)
  assert restored.step == 2
  assert_same(restored.state, make_state(2))
  assert restored.record['note'] == 'after step 2'
  assert restored.record['step'] == 2


def test_a_step_may_be_asked_for(folder, opened):
  restored = opened(folder).restore(abstract_of, step=1)
  assert restored.step == 1
  assert_same(restored.state, make_state(1))
  assert restored.record['note'] == 'after step 1'


def test_a_step_that_is_not_there_is_an_error(folder, opened):
  with pytest.raises(errors.DataError, match=r'step 3 .* \[1, 2\]'):
    opened(folder).restore(abstract_of, step=3)
  assert opened(folder).steps() == [1, 2]


def test_no_checkpoint_is_none(tmp_path, opened):
  manager = opened(tmp_path / 'new' / 'checkpoints')
  assert manager.restore(abstract_of) is None
  assert manager.steps() == []
  with pytest.raises(errors.DataError, match='none'):
    manager.restore(abstract_of, step=1)


def test_the_newest_ones_are_kept(tmp_path, opened):
  manager = opened(tmp_path / 'checkpoints', keep=2)
  for step in (1, 5, 9, 12):
    manager.save(step, make_state(step), {})
  manager.wait()
  assert manager.steps() == [9, 12]
  assert_same(manager.restore(abstract_of).state, make_state(12))


def test_the_state_that_is_saved_is_that_of_its_step(tmp_path, opened):
  # Each step donates the buffers that the save before it reads.
  @functools.partial(jax.jit, donate_argnums=0)
  def step_fn(state):
    return {'x': state['x'] * 1.5 + 1, 'count': state['count'] + 1}

  def start():
    return {'x': jnp.arange(20_000.0), 'count': jnp.zeros((), jnp.int32)}

  manager, state = opened(tmp_path / 'checkpoints', keep=20), start()
  for step in range(1, 21):
    state = step_fn(state)
    manager.save(step, state, {})
  manager.wait()
  assert manager.steps() == list(range(1, 21))
  shapes = shapes_of(start())
  expected = start()
  for step in range(1, 21):
    expected = step_fn(expected)
    found = manager.restore(lambda _: shapes, step=step)
    assert_same(found.state, jax.tree.map(jnp.copy, expected))


def flip_bit(path, place):
  """Flips a bit at a place from 0, the first byte, to below 1, the last."""
  content = bytearray(path.read_bytes())
  content[int(place * len(content))] ^= 1 << int(place * 1000) % 8
  path.write_bytes(content)


HARM = {
  'empty': lambda path: path.write_bytes(b''),
  'half': lambda path: path.write_bytes(
    path.read_bytes()[: path.stat().st_size // 2]
  ),
  'zeros': lambda path: path.write_bytes(bytes(path.stat().st_size)),
  'gone': lambda path: path.unlink(),
  **{
    f'bit at {place}': functools.partial(flip_bit, place=place)
    for place in (0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.9)
  },
}


@pytest.mark.parametrize('harm', HARM)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, opened, harm):
  HARM[harm](data_files(folder / '2')[0])
  manager = opened(folder)
  restored = manager.restore(abstract_of)
  assert restored.step == 1
  assert_same(restored.state, make_state(1))
  # The bad one is kept for inspection, and its number is free again.
  assert (folder / '2.bad' / 'state').is_dir()
  assert manager.steps() == [1]
  manager.save(2, make_state(2), {})
  manager.wait()
  assert_same(manager.restore(abstract_of).state, make_state(2))


def test_no_flipped_bit_goes_unnoticed(saved, tmp_path, opened):
  files = sorted(p for p in (saved / '2').rglob('*') if p.is_file())
  random = np.random.default_rng(0)
  for number, path in enumerate(3 * files):
    copy = tmp_path / str(number) / 'checkpoints'
    shutil.copytree(saved, copy)
    flip_bit(copy / path.relative_to(saved), random.random())
    restored = opened(copy).restore(abstract_of)
    # Some files are not read; then nothing is lost.
    assert_same(restored.state, make_state(restored.step))
    assert restored.record['note'] == f'after step {restored.step}'


@pytest.mark.parametrize('part', ['record', 'state'])
def test_a_missing_part_gives_way_too(folder, opened, part):
  shutil.rmtree(folder / '2' / part)
  assert opened(folder).restore(abstract_of).step == 1


def test_a_record_that_was_changed_is_noticed(folder, opened):
  path = folder / '2' / 'record' / 'metadata'
  text = path.read_text()
  assert 'after step 2' in text
  path.write_text(text.replace('after step 2', 'after step 6'))
  assert opened(folder).restore(abstract_of).step == 1


def test_the_same_step_may_be_damaged_twice(folder, opened):
  manager = opened(folder)
  for _ in range(2):
    flip_bit(data_files(folder / '2')[0], 0.5)
    assert manager.restore(abstract_of).step == 1
    manager.save(2, make_state(2), {})
    manager.wait()
  assert manager.restore(abstract_of).step == 2


def test_all_damaged_is_an_error_that_lists_them(folder, opened):
  for step in '12':
    flip_bit(data_files(folder / step)[0], 0.5)
  with pytest.raises(errors.DataError) as caught:
    opened(folder).restore(abstract_of)
  text = str(caught.value)
  for part in ('step 2:', 'step 1:', 'STEP.bad', str(folder.parent), 'step 0'):
    assert part in text
  assert {p.name for p in folder.iterdir()} >= {'1.bad', '2.bad'}
  # The same command again does not begin anew.
  with pytest.raises(errors.DataError, match=r'2\.bad'):
    opened(folder).restore(abstract_of)


def test_a_copy_under_another_step_is_none_of_that_step(folder, opened):
  shutil.copytree(folder / '2', folder / '3')
  assert opened(folder).restore(abstract_of).step == 2
  assert (folder / '3.bad').is_dir()


def test_a_folder_in_the_place_of_a_file_gives_way_too(folder, opened):
  path = folder / '2' / 'record' / 'metadata'
  path.unlink()
  path.mkdir()
  assert opened(folder).restore(abstract_of).step == 1


def test_a_damaged_step_that_was_asked_for_is_an_error(folder, opened):
  flip_bit(data_files(folder / '1')[0], 0.5)
  with pytest.raises(errors.DataError, match='step 1'):
    opened(folder).restore(abstract_of, step=1)
  assert opened(folder).restore(abstract_of).step == 2


def test_a_reader_moves_nothing(folder, opened):
  flip_bit(data_files(folder / '2')[0], 0.5)
  before = sorted(folder.rglob('*'))
  assert opened(folder, keep=None).restore(abstract_of).step == 1
  assert sorted(folder.rglob('*')) == before


def test_every_flipped_bit_changes_the_fingerprint_of_its_leaf():
  state = make_state(0)
  wide = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
  state['deep'] = jnp.asarray(wide)
  right = checkpoint.fingerprint(state)
  names = {
    'params/embed': ('params', 'embed'),
    'params/half': ('params', 'half'),
    'small': ('small',),
    'rows': ('rows',),
    'step': ('step',),
    'deep': ('deep',),
  }
  random = np.random.default_rng(0)
  for number in range(100):
    path = list(names)[number % len(names)]
    *groups, key = names[path]
    target = state[groups[0]] if groups else state
    good = target[key]
    content = np.array(good)
    flat = content.reshape(-1).view(np.uint8)
    flat[random.integers(flat.size)] ^= np.uint8(1 << random.integers(8))
    target[key] = jnp.asarray(content)
    found = checkpoint.fingerprint(state)
    assert {p for p in right if found[p] != right[p]} == {path}
    target[key] = good
  assert checkpoint.fingerprint(state) == right


def test_a_flipped_flag_changes_the_fingerprint():
  state = {'mask': jnp.zeros((3, 4), bool)}
  prints = {checkpoint.fingerprint(state)['mask']}
  for place in np.ndindex(3, 4):
    prints.add(
      checkpoint.fingerprint({'mask': state['mask'].at[place].set(True)})[
        'mask'
      ]
    )
  assert len(prints) == 13


def test_numbers_that_change_places_change_the_fingerprint():
  x = jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4)
  prints = [
    checkpoint.fingerprint({'x': y})['x']
    for y in (x, x[::-1], x[:, ::-1], x[..., ::-1], jnp.roll(x, 1))
  ]
  assert len(set(prints)) == 5


def test_the_fingerprint_does_not_depend_on_the_sharding():
  devices = jax.devices()
  if len(devices) < 2:
    pytest.skip('one device')
  state = make_state(0)
  mesh = jax.make_mesh(
    (2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,), devices=devices[:2]
  )
  right = checkpoint.fingerprint(state)
  for spec in ((), ('x',), (None, 'x')):
    sharding = jax.NamedSharding(mesh, jax.P(*spec))
    embed = jax.device_put(state['params']['embed'], sharding)
    found = checkpoint.fingerprint({'params': {'embed': embed}})
    assert found['params/embed'] == right['params/embed']


@pytest.mark.parametrize(
  'error',
  [
    MemoryError(),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'),
    OSError(24, 'Too many open files'),
    PermissionError(13, 'Permission denied'),
    ValueError('RESOURCE_EXHAUSTED: Error reading local file'),
    # A mount that is gone.
    ValueError("FAILED_PRECONDITION: Failed to read [os_error_code='107']"),
    ValueError("NOT_FOUND: No such device [os_error_code='19']"),
    TypeError('a bug'),
    AttributeError('a bug'),
  ],
  ids=repr,
)
def test_what_says_nothing_of_the_files_is_raised_and_nothing_renamed(
  folder, opened, monkeypatch, error
):
  manager = opened(folder)
  before = sorted(folder.rglob('*'))

  def fail(*args, **kwargs):
    raise error

  monkeypatch.setattr(checkpoint.ocp.CheckpointManager, 'restore', fail)
  with pytest.raises(type(error)):
    manager.restore(abstract_of)
  assert sorted(folder.rglob('*')) == before


def test_a_bug_in_the_shapes_to_restore_renames_nothing(folder, opened):
  before = sorted(folder.rglob('*'))

  def broken(record):
    raise ValueError('a bug')

  def wider(record):
    shapes = abstract_of(record)
    rows = shapes['rows']
    rows = jax.ShapeDtypeStruct((3, 4), rows.dtype, sharding=rows.sharding)
    return shapes | {'rows': rows}

  def fewer(record):
    shapes = abstract_of(record)
    del shapes['mask']
    return shapes

  manager = opened(folder)
  with pytest.raises(ValueError, match='a bug'):
    manager.restore(broken)
  with pytest.raises(errors.DataError, match=r'rows .*\[2, 4\].*\[3, 4\]'):
    manager.restore(wider)
  with pytest.raises(errors.DataError, match='mask .* no such array'):
    manager.restore(fewer)
  assert sorted(folder.rglob('*')) == before


def test_a_save_that_has_no_room_is_a_storage_error(tmp_path, caplog):
  """Of an asynchronous save, when it is waited for; in a line."""
  big = {'x': jnp.asarray(np.random.default_rng(0).random(500_000))}
  manager = Checkpoints(tmp_path, keep=3)
  manager.save(1, make_state(1), {})
  manager.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
  try:
    with pytest.raises(errors.StorageError, match='File too large') as caught:
      manager.save(2, big, {})
      manager.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert len(str(caught.value).splitlines()) == 1
  assert 'make room' in str(caught.value)
  assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
  again = Checkpoints(tmp_path)
  assert again.steps() == [1]
  assert_same(again.restore(abstract_of).state, make_state(1))
  again.close()


def test_some_steps_are_kept_whatever_their_age(tmp_path):
  manager = Checkpoints(tmp_path, keep=1, always=(2, 7))
  for step in (1, 2, 3):
    manager.save(step, make_state(step), {})
  manager.wait()
  assert manager.steps() == [2, 3]
  manager.set_aside(3, 'checkpoints', 'decayed')
  assert manager.restore(abstract_of).step == 2
  manager.close()
  again = Checkpoints(tmp_path)
  assert again.restore(abstract_of, 3, 'decayed').step == 3
  again.close()
