"""Documents by their places and lengths: what a GPU is told, without one."""

import functools
import logging
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax import sharding
from satjax.config.groups import MeshConfig
from satjax.model import attention, blocked_attention, cudnn
from tests.model.test_attention import draw

# The tests compile more than they compute.
compiled = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
LENGTH = 64  # of which rows hold two documents, or are taken one by one
# One document, two, the same with empty places at the end, and three.
FIT = np.repeat([[1, 1, 1], [1, 2, 2], [1, 1, 0]], [40, 3, 21], axis=1)
MANY = np.where(np.arange(LENGTH) < 9, 1, FIT + 1) * (FIT > 0)


@pytest.fixture
def gpu(monkeypatch):
  """A program may be lowered for a GPU that takes documents."""
  monkeypatch.setattr(cudnn.fused, 'check_cudnn_version', lambda: 91200)
  monkeypatch.setattr(cudnn.fused, 'check_compute_capability', lambda _: True)
  monkeypatch.setattr(attention, 'packs', lambda: True)


class ByHand:
  """The contract of JAX's function, by a mask: nothing else is defined."""

  MaskType = cudnn.fused.MaskType

  @staticmethod
  def dot_product_attention(
    query, key, value, q_seqlen, kv_seqlen, q_offsets, kv_offsets, **options
  ):
    assert options['mask_type'] == ByHand.MaskType.PADDING_CAUSAL
    assert key.shape == value.shape == query.shape
    assert q_offsets.shape[1] == q_seqlen.shape[1] + 1
    assert q_offsets is kv_offsets and q_seqlen is kv_seqlen
    at = jnp.arange(query.shape[1])
    begin, size = q_offsets[:, :-1, None], q_seqlen[..., None]
    within = (begin >= 0) & (at >= begin) & (at < begin + size)
    seen = jnp.any(within[:, :, None] & within[..., None], axis=1)
    seen &= at[:, None] >= at
    if window := options['sliding_window_length']:
      seen &= at[:, None] < at + window
    score = jnp.einsum('BTNH,BSNH->BNTS', query, key) * options['scale']
    weight = jax.nn.softmax(jnp.where(seen[:, None], score, -1e30), axis=-1)
    out = jnp.einsum('BNTS,BSNH->BTNH', weight, value)
    return jnp.where(jnp.any(within, axis=1)[..., None, None], out, jnp.nan)


@pytest.fixture
def by_hand(monkeypatch):
  """The packed form and the mask run on a CPU."""
  masked = functools.partial(cudnn.masked, implementation='xla')
  monkeypatch.setattr(cudnn, 'fused', ByHand)
  monkeypatch.setattr(cudnn, 'masked', masked)


def results(fn, segments, kv_heads=2, window=0, counts=True):
  query = draw(len(segments), LENGTH, 4, 8)
  key, value = draw(2, len(segments), LENGTH, kv_heads, 8, seed=1)
  counts = np.broadcast_to(counts, segments.shape)[..., None, None]
  weight = jnp.asarray(draw(*query.shape, seed=2) * counts)
  segments = jnp.asarray(segments, jnp.int32)

  def with_gradients(*qkv):
    out, pull = jax.vjp(lambda *qkv: fn(qkv, segments, window), *qkv)
    return out, *pull(weight)

  return compiled(with_gradients)(query, key, value)


@pytest.mark.parametrize(
  ('segments', 'kv_heads', 'window'),
  [(FIT, 2, 5), (MANY, 4, 0)],
  ids=['fit', 'too many'],
)
def test_packed_is_masked(by_hand, segments, kv_heads, window):
  sizes = segments, kv_heads, window
  expected = results(blocked_attention.attention, *sizes)
  found = results(cudnn.attention, *sizes)
  for one, two in zip(found, expected):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('fn', [cudnn.attention, blocked_attention.attention])
def test_no_gradient_reaches_another_document(by_hand, fn):
  counts = FIT[:, :1] == FIT  # the first document of each row
  for gradient in results(fn, FIT, counts=counts)[1:]:
    assert (np.asarray(gradient)[~counts] == 0).all()
    # The first query has one key to choose from.
    assert (np.abs(gradient).max(axis=(2, 3)) > 0)[:, 1:][counts[:, 1:]].all()


def test_each_device_packs_its_rows_and_heads(by_hand):
  # One device holds rows that fit and the other one some that do not.
  segments = np.concatenate([FIT[:2], MANY[:2]])
  expected = results(blocked_attention.attention, segments)
  mesh = sharding.make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
  with jax.sharding.set_mesh(mesh):
    found = results(cudnn.attention, segments)
  for one, two in zip(found, expected):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


documents = compiled(cudnn.documents)


def test_places_and_lengths_are_those_of_the_documents():
  """Every row of up to 8 documents, empty places being one of them."""
  rng, rows, expected = np.random.default_rng(0), [], []
  for number in range(40):
    sizes = rng.multinomial(256, rng.dirichlet(np.ones(1 + number % 8)))
    sizes = sizes[sizes > 0]
    ids = np.arange(1, len(sizes) + 1)
    if number % 2:
      ids[-1] = 0
    rows.append(np.repeat(ids, sizes))
    starts = np.cumsum(sizes) - sizes
    pad = [-1] * (8 - len(sizes))
    expected.append(([*starts, *pad], [*sizes, *pad]))
  starts_BM, lengths_BM, fits = documents(np.array(rows))
  assert fits
  np.testing.assert_array_equal(starts_BM, [starts for starts, _ in expected])
  np.testing.assert_array_equal(lengths_BM, [sizes for _, sizes in expected])


def test_more_documents_than_there_is_room_for_are_told():
  rows = np.ones((2, 256), np.int32)
  rows[1] = np.minimum(np.arange(256) // 2, 8)  # nine
  starts_BM, lengths_BM, fits = documents(rows)
  assert not fits
  np.testing.assert_array_equal(starts_BM[1], np.arange(8) * 2)
  np.testing.assert_array_equal(lengths_BM[1], [2] * 7 + [256 - 14])
  assert documents(rows[[0, 0]])[2]


def lowered(kv_heads=2, window=0):
  x = jax.ShapeDtypeStruct((3, 256, 4, 64), jnp.bfloat16)
  kv = jax.ShapeDtypeStruct((3, 256, kv_heads, 64), jnp.bfloat16)
  segments = jax.ShapeDtypeStruct((3, 256), jnp.int32)

  def loss(*qkv, segments):
    return attention.attention(qkv, segments, window, 'cudnn').sum()

  traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(
    x, kv, kv, segments=segments
  )
  return traced.lower(lowering_platforms=('cuda',)).as_text()


def test_no_mask_of_a_batch_reaches_a_gpu(gpu):
  text = lowered(window=9)
  calls = {
    name: line
    for line in text.splitlines()
    for name in re.findall(r'@__cudnn\$(\w+)\(', line)
  }
  for name in ('fmhaSoftmax', 'fmhaSoftmaxBackward'):
    line = calls.pop(name).replace('\\22', '"')
    assert '"mask_type": "PADDING_CAUSAL"' in line
    assert '"max_seg_per_batch": 8' in line
    assert '"sliding_window_length": 9' in line
    # Lengths and places; what is as long as a row squared is not there.
    assert line.count('tensor<3x8xi32>') == line.count('tensor<3x9xi32>') == 2
    assert '256x256' not in line
  # Rows with more documents are taken one by one.
  assert calls.keys() == {
    'fmhaScaleBiasSoftmax',
    'fmhaScaleBiasSoftmaxBackward',
  }
  squares = set(re.findall(r'tensor<(\S*256x256)x\w+>', text))
  assert squares == {'1x1x256x256'}


@pytest.mark.parametrize(
  ('capability', 'version', 'packs'),
  [
    ('9.0', 90600, True),
    ('12.1', 91200, True),
    ('8.6', 91200, False),
    ('9.0', 90500, False),
  ],
)
def test_packing_needs_hopper_and_its_cudnn(
  monkeypatch, capability, version, packs
):
  gpu = types.SimpleNamespace(platform='gpu', compute_capability=capability)
  monkeypatch.setattr(jax, 'local_devices', lambda: [gpu])
  monkeypatch.setattr(cudnn.fused, 'check_cudnn_version', lambda: version)
  assert cudnn.can_pack.__wrapped__() == packs
  # An older or a later JAX whose function takes no places.
  monkeypatch.setattr(cudnn.fused, 'dot_product_attention', lambda query: query)
  assert not cudnn.can_pack.__wrapped__()


def test_a_gpu_that_takes_no_documents_is_told_so_once(caplog):
  attention.packs.cache_clear()
  with caplog.at_level(logging.WARNING):
    assert not attention.packs() and not attention.packs()
  (record,) = caplog.records
  assert 'T x T mask' in record.getMessage()
  assert "config.data.attend='row'" in record.getMessage()
