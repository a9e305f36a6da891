"""Offline growth: the bits of growth in memory, refusals, nothing torn."""

import dataclasses
import json
import os
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from satjax import console, errors, flops, tree
from satjax.config import specs as specs_lib
from satjax.growth import apply
from satjax.interop import grow as grow_lib
from satjax.interop import huggingface, probe, weights
from tests.interop import test_huggingface as samples

BASE = samples.GROUPED  # 2 layers
STACK = (('stack', 2),)
COPIES = {
  'stack': STACK,
  'partial': (('partial', '12-2*2'),),
  'map': (('map', (0, 1, 0, 1, 1)),),
  'zero': (('zero', 2),),
  'length': (('length', 2),),
  'twice': (('stack', 2), ('solar', 1)),
}
# Few shapes: the computed cases compile more than they compute.
SMALL = dataclasses.replace(
  BASE, num_heads=2, head_dim=4, mlp_dim=8, vocab_size=8
)
WIDER = {'mlp_dim': 16}
COMPUTED = {
  'noise': (('stack', {'factor': 2, 'noise': 0.2}),),
  'new': (('solar', {'drop': 0, 'noise': 0.2, 'noise_on': 'new'}),),
  'scaled': (('interpolate', {'factor': 2, 'branch_scale': 0.5}),),
  'random': (('random', 2),),
  'even': (('direct', WIDER),),
  'uneven': (('direct', WIDER | {'split': 'uneven'}),),
  'aki': (('aki', WIDER),),
  'zero_width': (('zero', WIDER | {'embed_dim': 12}),),
  'compound': (('direct', WIDER), ('length', 2), ('zero', 2)),
}


def write(directory, config=BASE, dtype=np.float32, **options):
  params = samples.random_params(config, dtype)
  huggingface.save(directory, config, params, **options)
  return params


def expected(params, config, specs, dtype, seed=0):
  """Growth in memory: in float32, then cast."""
  operators, after = specs_lib.resolve_all(specs, config, seed)
  wide = tree.map_with_path(lambda _, x: np.asarray(x, np.float32), params)
  grown = apply.grow_tree(wide, operators, jax.random.key(seed))
  return after, tree.map_with_path(
    lambda _, x: np.asarray(x).astype(dtype), grown
  )


def assert_grown(tmp_path, specs, config=BASE, dtype=np.float32, seed=0, **how):
  params = write(tmp_path / 'old', config, dtype, **how)
  summary = grow_lib.grow(
    tmp_path / 'old', tmp_path / 'new', specs, seed=seed, max_shard_bytes=1000
  )
  after, grown = expected(params, config, specs, dtype, seed)
  stored, loaded = huggingface.load(tmp_path / 'new')
  assert stored == after == summary.after
  samples.assert_same_bits(loaded, grown)
  assert len(list((tmp_path / 'new').glob('*.safetensors'))) > 1


@pytest.mark.parametrize('specs', COMPUTED.values(), ids=COMPUTED)
def test_streamed_growth_has_the_bits_of_growth_in_memory(tmp_path, specs):
  assert_grown(tmp_path, specs, SMALL, seed=3)


@pytest.mark.parametrize('specs', COPIES.values(), ids=COPIES)
def test_copied_layers_have_the_bits_of_growth_in_memory(tmp_path, specs):
  assert_grown(tmp_path, specs, max_shard_bytes=1000)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize('specs', [STACK, COMPUTED['noise']])
def test_the_stored_dtype_stays_and_arithmetic_is_in_float32(
  tmp_path, dtype, specs
):
  assert_grown(tmp_path, specs, SMALL, dtype)


def test_a_tied_model_stays_tied(tmp_path):
  assert_grown(
    tmp_path, COMPUTED['even'], dataclasses.replace(SMALL, tied=True)
  )
  assert 'lm_head.weight' not in samples.tensors_in(tmp_path / 'new')


def test_tensors_are_not_held_together(tmp_path, monkeypatch):
  params = write(tmp_path / 'old')
  held, most, read = 0, 0, weights.read_tensor

  def count(directory, header):
    nonlocal held, most
    matrix = read(directory, header)
    is_source = directory.name == 'old'
    held = held + matrix.nbytes if is_source else 0  # a file is compared
    most = max(most, held)
    return matrix

  monkeypatch.setattr(weights, 'read_tensor', count)
  grow_lib.grow(tmp_path / 'old', tmp_path / 'new', STACK, max_shard_bytes=2000)
  assert most <= 2000
  monkeypatch.undo()
  _, loaded = huggingface.load(tmp_path / 'new')
  up = loaded['blocks']['mlp']['up']
  np.testing.assert_array_equal(up[2:], params['blocks']['mlp']['up'])


def test_config_says_what_grew_and_keeps_what_is_still_true(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  write(old, SMALL, tokenizer=samples.BYTES, seq_len=64)
  samples.rewrite_json(
    old,
    'config.json',
    pad_token_id=3,
    initializer_range=0.02,
    _name_or_path='somebody/small',
    auto_map={'AutoModel': 'code.Model'},
    rope_scaling={'type': 'default', 'rope_theta': BASE.rope_theta},
    head_dim=None,
  )
  specs = (*COMPUTED['zero_width'], ('length', 4), ('stack', 2))
  summary = grow_lib.grow(old, new, specs)
  stored = json.loads((new / 'config.json').read_text())
  assert stored['hidden_size'] == 12 and stored['num_hidden_layers'] == 4
  assert stored['head_dim'] == 4
  assert stored['rms_norm_eps'] == pytest.approx(SMALL.norm_eps * 8 / 12)
  assert stored['max_position_embeddings'] == 256
  assert summary.context == (64, 256)
  assert stored['rope_theta'] == summary.after.rope_theta > SMALL.rope_theta
  assert stored['rope_parameters']['rope_theta'] == stored['rope_theta']
  assert (stored['bos_token_id'], stored['eos_token_id']) == (256, 257)
  assert (stored['pad_token_id'], stored['initializer_range']) == (3, 0.02)
  assert not {'_name_or_path', 'auto_map', 'rope_scaling'} & stored.keys()


def test_small_files_go_along_and_weights_do_not(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  write(old, tokenizer=samples.BYTES)
  taken = ['chat_template.jinja', 'merges.txt', 'tokenizer.model']
  left = ['pytorch_model.bin', 'pytorch_model.bin.index.json', 'model.py']
  for name in taken + left:
    (old / name).write_text(name)
  (old / 'folder.json').mkdir()
  grow_lib.grow(old, new, STACK)
  taken += ['tokenizer.json', 'tokenizer_config.json', 'generation_config.json']
  for name in taken:
    assert (new / name).read_bytes() == (old / name).read_bytes()
  assert sorted(path.name for path in new.iterdir()) == sorted(
    [*taken, 'config.json', 'checksums.json', 'model.safetensors']
  )


def test_a_model_of_ours_is_replaced_and_one_of_others_is_not(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  write(old)
  grow_lib.grow(old, new, STACK, max_shard_bytes=1000)
  grow_lib.grow(old, new, COPIES['partial'])
  assert huggingface.load(new)[0].num_layers == 4
  assert not list(new.glob('model-*'))
  samples.rewrite_json(new, 'config.json', written_by=...)
  with pytest.raises(errors.StorageError, match='did not write'):
    grow_lib.grow(old, new, STACK)


@pytest.mark.parametrize(
  'specs, said',
  [
    ((('stack', 1.3),), 'num_layers 2 cannot grow to 2.6'),
    ((('stack', {'num_layers': 1}),), 'smaller than the source'),
    ((('direct', {'mlp_dim': 9}),), 'mlp_dim 10 cannot grow to 9'),
    ((('map', (0, 1, 2)),), r'layer_map \(0, 1, 2\) names layer 2'),
    ((('map', (0, -1)),), 'the source of every target layer'),
    ((('partial', '12-3'),), "'3' is no group of layers 1 to 2"),
    ((('direct', {'num_heads': 5}),), 'whole groups'),
    ((('stakc', 2),), "'stakc' is no growth operator"),
    ((('learn', 2),), r"'learn' trains its maps.*config\.growth\.hops"),
    (
      (('random', {'factor': 2, 'ramp_tokens': 100}),),
      r'ramp_tokens = 100 .*leave it out',
    ),
    ((('stack', 5001),), 'factor = 5001.0; allowed'),
    ((('stack', 1000), ('stack', 6)), 'num_hidden_layers = 12000; allowed'),
  ],
)
def test_growth_that_does_not_fit_writes_nothing(tmp_path, specs, said):
  write(tmp_path / 'old')
  with pytest.raises(errors.ConfigError, match=said):
    grow_lib.grow(tmp_path / 'old', tmp_path / 'new', specs)
  assert not (tmp_path / 'new').exists()


def test_a_source_that_is_not_whole_is_refused_before_anything_is_written(
  tmp_path,
):
  old, new = tmp_path / 'old', tmp_path / 'new'

  def refused(said, error=errors.DataError):
    with pytest.raises(error, match=said):
      grow_lib.grow(old, new, STACK)
    assert not new.exists()

  refused('config.json is missing')
  write(old)
  samples.rewrite_json(old, 'config.json', max_position_embeddings='long')
  refused("max_position_embeddings = 'long'; allowed: at least 1")
  samples.rewrite_json(old, 'config.json', max_position_embeddings=...)
  samples.rewrite(old, lambda t: t.update(bias=np.zeros(3, np.float32)))
  refused('bias: found F32 .3., expected no such tensor')
  samples.rewrite(old, lambda t: t.pop('bias'))
  samples.rewrite(old, lambda t: t.pop('model.norm.weight'))
  refused('model.norm.weight: found nothing')
  (old / 'model.safetensors').unlink()
  refused('no weights found')
  write(old)
  (old / 'merges.txt').symlink_to(tmp_path)
  (old / 'vocab.txt').symlink_to(tmp_path / 'elsewhere')
  refused('vocab.txt is a link that leaves')


def test_the_source_is_never_the_target(tmp_path):
  write(tmp_path)
  os.symlink(tmp_path, tmp_path / 'same')
  before = (tmp_path / 'model.safetensors').read_bytes()
  for out in (tmp_path, tmp_path / 'same', tmp_path / 'x' / '..'):
    with pytest.raises(errors.ConfigError, match='choose another one'):
      grow_lib.grow(tmp_path, out, STACK)
  assert (tmp_path / 'model.safetensors').read_bytes() == before


def test_a_disk_without_room_is_refused_before_anything_is_written(
  tmp_path, monkeypatch
):
  write(tmp_path / 'old')
  free = shutil.disk_usage(tmp_path)._replace(free=5000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: free)
  with pytest.raises(errors.StorageError, match='5e-06 GB are free; make room'):
    grow_lib.grow(tmp_path / 'old', tmp_path / 'deep' / 'new', STACK)
  assert not (tmp_path / 'deep').exists()


def test_numbers_that_can_not_be_used_leave_nothing(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  params = write(old)
  name = 'model.layers.1.mlp.up_proj.weight'
  samples.rewrite(old, lambda t: t.update({name: samples.with_nan(t[name])}))
  with pytest.raises(errors.DataError, match=f'{name}: found NaN'):
    grow_lib.grow(old, new, STACK)
  assert not list(new.iterdir())
  huge = tree.map_with_path(lambda _, x: np.full_like(x, 6e4), params)
  huge = tree.map_with_path(lambda _, x: x.astype(np.float16), huge)
  huggingface.save(old, BASE, huge)
  with pytest.raises(errors.DataError, match='too large for float16'):
    grow_lib.grow(old, new, (('stack', {'factor': 2, 'branch_scale': 2}),))
  assert not list(new.iterdir())


@pytest.mark.parametrize('max_shard_bytes', [1000, 2**30])
def test_what_a_killed_run_leaves_does_not_load_and_is_cleared_away(
  tmp_path, monkeypatch, max_shard_bytes
):
  old, new = tmp_path / 'old', tmp_path / 'new'
  write(old)
  read, left = weights.read_tensor, 30

  def die(directory, header):
    nonlocal left
    left -= directory.name == 'old'
    if left < 0:
      (torn,) = new.glob('.saving-*')
      shutil.copytree(torn, new / '.saving-killed')  # as a signal leaves it
      raise KeyboardInterrupt
    return read(directory, header)

  monkeypatch.setattr(weights, 'read_tensor', die)
  with pytest.raises(KeyboardInterrupt):
    grow_lib.grow(old, new, STACK, max_shard_bytes=max_shard_bytes)
  monkeypatch.undo()
  assert [path.name for path in new.iterdir()] == ['.saving-killed']
  for directory in (new, new / '.saving-killed'):
    with pytest.raises(errors.DataError):
      huggingface.load(directory)
  grow_lib.grow(old, new, STACK)
  assert huggingface.load(new)[0].num_layers == 4
  assert not list(new.glob('.saving-*'))


def test_work_is_announced_and_told_as_it_is_done(tmp_path, monkeypatch):
  write(tmp_path / 'old')
  totals, done = set(), []

  def advance(bar, more):
    totals.add(bar.total)
    done.append(more)

  monkeypatch.setattr(console.Progress, 'advance', advance)
  grow_lib.grow(tmp_path / 'old', tmp_path / 'new', STACK)
  assert totals == {sum(done)} and len(done) == 2 * (3 + 4 * 9)


def rows_of(specs, config=BASE, **changes):
  config = dataclasses.replace(config, **changes)
  operators, after = specs_lib.resolve_all(specs, config)
  summary = grow_lib.Summary(operators, config, after, (64, 64))
  return grow_lib.render(summary)


def test_the_table_tells_layers_sizes_and_what_to_expect():
  text = rows_of(STACK, num_layers=22)
  assert '| num_layers | 22 | 44 |' in text
  assert '| 21 | 21 |  |\n| 22 | 0 | new |' in text
  assert 'R_c = 0.977' in text and 'not preserved' in text
  text = rows_of((('zero', 2),), num_layers=22)
  assert '| 42 | 21 |  |\n| 43 | 21 | new, zeroed |' in text
  assert 'preserved by design' in text
  text = rows_of((('random', 2), ('stack', 2)))
  assert text.count('new, random') == 4 and 'directory holds no mask' in text
  assert '| 2 | - | new, random |\n| 3 | - | new, random |' in text
  text = rows_of((('aki', {'embed_dim': 16}),), num_layers=4)
  assert '| 2 | 2 and 3 |  |\n| 3 | 3 |  |' in text
  text = rows_of((('zero', {'embed_dim': 16}), ('length', {'rope_theta': 2.0})))
  assert '| norm_eps | 1e-05 | 5e-06 |' in text
  assert '| rope_theta | 500000 | 2 |' in text


def test_sizes_and_parameters_are_those_of_the_files(tmp_path):
  write(tmp_path / 'old')
  summary = grow_lib.grow(tmp_path / 'old', tmp_path / 'new', STACK)
  for config, name in ((summary.before, 'old'), (summary.after, 'new')):
    tensors = samples.tensors_in(tmp_path / name)
    size = sum(tensor.size for tensor in tensors.values())
    assert flops.num_params(config) == size
    assert f' {size:,} |' in grow_lib.render(summary)


def test_the_probe_measures_how_far_the_logits_moved(tmp_path, monkeypatch):
  write(tmp_path / 'old', SMALL, ml_dtypes.bfloat16)
  changes = {}
  for name, specs in (('zero', (('zero', 2),)), ('stack', STACK)):
    grow_lib.grow(tmp_path / 'old', tmp_path / name, specs)
    found = probe.measure(tmp_path / 'old', tmp_path / name)
    changes[name] = float(re.search('of a logit: (.+?),', found)[1])
    assert 'modulo the vocabulary of 8)' in found
  assert changes['zero'] < 1e-4 < 0.1 < changes['stack']
  logits = {'old': np.full((1, 3, 300), 2.0), 'new': np.full((1, 3, 300), -1.0)}
  monkeypatch.setattr(probe, '_logits', logits.get)
  found = probe.measure('old', 'new')
  assert 'change of a logit: 3, where the largest logit was 2 ' in found
  assert found.endswith('the bytes of a text).')


def test_the_probe_is_left_out_where_memory_is_short(tmp_path, monkeypatch):
  write(tmp_path)
  assert probe.why_not(tmp_path) is None
  numbers = sum(np.prod(shape) for shape in tree.shapes(BASE).values())
  monkeypatch.setattr(probe, '_available_memory', lambda: 4 * numbers)
  assert '--probe=on' in probe.why_not(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize('name', ['zero_width', 'compound'])
def test_transformers_runs_the_grown_model_with_our_logits(tmp_path, name):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  import satjax

  write(tmp_path / 'old')
  specs = (COMPUTED | COPIES)[name]
  grow_lib.grow(tmp_path / 'old', tmp_path / 'new', specs, max_shard_bytes=4000)
  theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'new', dtype='auto', output_loading_info=True
  )
  assert not any(report.values()), report
  ours = satjax.load(tmp_path / 'new')
  tokens = np.random.default_rng(0).integers(0, 12, (2, 17))
  with torch.no_grad():
    logits = theirs.eval()(torch.tensor(tokens)).logits.numpy()
  found = np.asarray(ours.apply(ours.params, tokens))
  scale = np.abs(logits).max()
  np.testing.assert_allclose(found, logits, atol=1e-5 * scale, rtol=1e-4)
