"""Collectives of small programs on eight devices, and in the TPU's words."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from satjax.lab.plan import collectives


def compile_text(program, x, spec):
  mesh = jax.make_mesh((4, 2), ('a', 'b'))
  program = jax.shard_map(
    functools.partial(program),
    mesh=mesh,
    in_specs=spec,
    out_specs=P(),
    check_vma=False,
  )
  x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
  return jax.jit(program).lower(x).compile().as_text()


def summary(program, x=jnp.zeros((8, 16)), spec=P('a')):  # noqa: B008
  found = collectives.read(compile_text(program, x, spec))
  return [(c.kind, c.shape, c.dtype, c.bytes, c.times, c.group) for c in found]


def test_a_gather_has_the_shape_that_it_gives():
  found = summary(lambda x: lax.all_gather(x, 'a', tiled=True).sum())
  assert found == [('all-gather', (8, 16), 'f32', 512, 1, 4)]


def test_a_reduce_scatter_has_the_shape_that_it_gets():
  found = summary(
    lambda x: lax.psum_scatter(x, 'a', scatter_dimension=1, tiled=True)
  )
  assert found == [('reduce-scatter', (2, 16), 'f32', 128, 1, 4)]


def test_sums_over_one_axis_and_over_all():
  found = summary(lambda x: lax.psum(x, 'b') + lax.psum(x, ('a', 'b')))
  assert sorted(c[-1] for c in found) == [2, 8]
  assert {c[:-1] for c in found} == {('all-reduce', (2, 16), 'f32', 128, 1)}


def test_loops_count_as_often_as_they_run():
  def inner(x, _):
    x = x + lax.ppermute(x, 'a', [(0, 1), (1, 0)])
    return jnp.sin(x), None

  def outer(x, _):
    x, _ = lax.scan(inner, x, None, length=3)
    return lax.psum(x, 'a') * 0.5, None

  found = summary(lambda x: lax.scan(outer, x, None, length=5)[0])
  times = {(kind, times) for kind, _, _, _, times, _ in found}
  assert times == {('collective-permute', 15), ('all-reduce', 5)}


def test_a_loop_of_unknown_length_is_refused():
  def program(x):
    return lax.while_loop(
      lambda x: x.sum() < 9, lambda x: lax.psum(x, 'a') + 1, x
    )

  with pytest.raises(ValueError, match='no known length'):
    summary(program)


def test_a_loop_whose_length_is_data_counts_its_mean():
  def program(x):
    first = x[0, 0].astype(int)

    def once(_, x):
      return lax.psum(x, 'a') + 1

    x = lax.fori_loop(0, first, once, x)
    x = lax.fori_loop(first, 7, once, x)  # whose end alone is known
    return lax.fori_loop(0, 3, once, x)

  text = compile_text(program, jnp.zeros((8, 16)), P('a'))
  found = collectives.read(text, 2.5)
  assert sorted(one.times for one in found) == [2.5, 2.5, 3]


def test_total_and_largest():
  def one(kind, size, times):
    return collectives.Collective(kind, (size,), 'u8', size, times, 2)

  found = [one('all-gather', 8, 3), one('all-gather', 1, 1)]
  found += [one('all-reduce', 2, 5), one('all-reduce', 2, 5)]
  assert collectives.total(found) == {
    'all-gather': {'count': 4, 'bytes': 25},
    'all-reduce': {'count': 10, 'bytes': 20},
  }
  assert [c.bytes for c in collectives.largest(found, 2)] == [8, 2]


@pytest.mark.parametrize(
  ('kind', 'bytes_sent'),
  [
    ('all-gather', 2 * 64 * 3 / 4),
    ('reduce-scatter', 2 * 64 * 3 / 4),
    ('all-reduce', 2 * 2 * 64 * 3 / 4),
    ('collective-permute', 2 * 64),
  ],
)
def test_bytes_of_a_ring(kind, bytes_sent):
  one = collectives.Collective(kind, (64,), 'u8', 64, 2, 4)
  assert collectives.sent(one) == bytes_sent


# Cut from a program of the TPU compiler: a gather that overlaps with compute is
# written twice, and its loop says nowhere that it runs 32 times: by twos to 63.
TPU = """\
HloModule jit_train_step, is_scheduled=true

%start (p: bf16[1,8,4]) -> (bf16[1,8,4], bf16[1,8,16], s32[2]) {
  %p = bf16[1,8,4]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} all-gather(%p), \
channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, \
dimensions={2}, frontend_attributes={chain_id="3"}
  ROOT %c = (bf16[1,8,4]{2,1,0}, bf16[1,8,16]{2,1,0:T(8,128)(2,1)S(1)}, \
s32[2]{0:S(4)}) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%done (p.1: bf16[1,8,4]) -> bf16[1,8,16] {
  %p.1 = bf16[1,8,4]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.2 = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} all-gather(%p.1), \
channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, \
dimensions={2}, frontend_attributes={chain_id="3"}
  ROOT %d = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} custom-call(%all-gather.2), \
custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.6.clone.1 (input: bf16[8,16]) -> bf16[8,4] {
  %input = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.8 = bf16[8,16]{1,0:T(8,128)(2,1)} all-reduce(%input), \
channel_id=5, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = bf16[8,4]{1,0} dynamic-slice(%all-reduce.8, %a, %b)
}

%cond (arg: (s32[], bf16[8,16])) -> pred[] {
  %n = s32[]{:T(128)} constant(63)
  %arg = (s32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (arg.1: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %arg.1 = (s32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %i.2 = s32[]{:T(128)S(6)} copy(%i.1)
  %one = s32[]{:T(128)} constant(1)
  %j.1 = s32[]{:T(128)} add(%i.2, %one), metadata={op_name="a"}
  %j = s32[]{:T(128)} add(%j.1, %one), metadata={op_name="b"}
  %f.1 = (bf16[1,8,4]{2,1,0}, bf16[1,8,16]{2,1,0}, s32[2]{0}) fusion(%x), \
kind=kCustom, calls=%start
  %f.2 = bf16[1,8,16]{2,1,0} fusion(%x, %y), kind=kCustom, calls=%done
  %f.3 = bf16[8,4]{1,0} fusion(%y), kind=kCustom, \
calls=%all-reduce-scatter.6.clone.1
  ROOT %t = (s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%j, %f.2)
}

ENTRY %main (w: bf16[8,16]) -> bf16[8,16] {
  %zero = s32[]{:T(128)} constant(0)
  %begin = s32[]{:T(128)} copy(%zero)
  %t0 = (s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%begin, %w)
  %while.1 = (s32[]{:T(128)}, bf16[8,16]{1,0}) while(%t0), condition=%cond, \
body=%body, metadata={op_name="jit(train_step)/while"}
  %ag.3 = ((f32[2]{0}, f32[4]{0}), (f32[8]{0}, f32[16]{0})) \
all-gather-start(%u, %v), channel_id=1, replica_groups=[2,4]<=[8], \
dimensions={0}
  %ag.4 = (f32[8]{0}, f32[16]{0}) all-gather-done(%ag.3)
  %cp = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%z), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %ar = f32[3]{0} all-reduce(%q), channel_id=3, replica_groups=[8,1]<=[8], \
to_apply=%add
}
"""


def test_the_words_of_the_tpu_compiler():
  found = collectives.read(TPU)
  assert collectives.total(found) == {
    'all-gather': {'count': 32 + 2, 'bytes': 32 * 8 * 16 * 2 + (8 + 16) * 4},
    'reduce-scatter': {'count': 32, 'bytes': 32 * 8 * 16 * 2},
    'collective-permute': {'count': 1, 'bytes': 32},
  }
  assert {c.group for c in found if c.kind != 'collective-permute'} == {4}
