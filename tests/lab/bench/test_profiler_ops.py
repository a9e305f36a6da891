"""From planes, lines and program texts to groups and shares."""
# ruff: noqa: E501, the lines of the compiler are long

import types

import jax
import jax.numpy as jnp
import pytest

from satjax import errors
from satjax.lab.bench import profiler_ops
from satjax.lab.bench.profiler_ops import Op

HLO = """\
HloModule jit_train_step, is_scheduled=true

%add.clone (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %add.9 = f32[] add(%x, %y), metadata={op_name="jit(train_step)/optimizer/add"}
}

%inner (p: f32[4,8], q: f32[8,2]) -> f32[4,2] {
  %p = f32[4,8]{1,0} parameter(0)
  %dot.1 = f32[4,2]{1,0} dot(%p, %q), lhs_contracting_dims={1}, metadata={op_name="jit(train_step)/blocks/attention/XD,FD->XF/dot_general"}
  ROOT %neg = f32[4,2]{1,0} negate(%dot.1)
}

%moves (p: f32[4,8]) -> f32[8,4] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  %t = f32[8,4]{1,0} transpose(%p.1), dimensions={1,0}
  ROOT %c = f32[8,4]{1,0} copy(%t)
}

%adam (p: f32[4]) -> f32[4] {
  %p.2 = f32[4]{0} parameter(0)
  %m = f32[4]{0} multiply(%p.2, %p.2), metadata={op_name="jit(train_step)/optimizer/mul"}
  %s = f32[4]{0} sqrt(%m), metadata={op_name="jit(train_step)/optimizer/sqrt"}
  ROOT %u = f32[4]{0} subtract(%p.2, %s), metadata={op_name="jit(train_step)/sub"}
}

%rows (p: f32[4,8]) -> f32[2,8] {
  %p.3 = f32[4,8]{1,0} parameter(0)
  ROOT %g = f32[2,8]{1,0} gather(%p.3, %i), offset_dims={1}
}

ENTRY %main.1 (a: f32[4,8]) -> (f32[4,2], /*index=1*/f32[4]) {
  %a = f32[4,8]{1,0} parameter(0)
  %fusion.1 = f32[4,2]{1,0} fusion(%a, %b), kind=kOutput, calls=%inner
  %fusion.2 = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%moves
  %fusion.3 = f32[4]{0} fusion(%v), kind=kLoop, calls=%adam
  %fusion.4 = f32[2,8]{1,0} fusion(%a), kind=kLoop, calls=%rows
  %wrapped = f32[4]{0} fusion(%v), kind=kLoop, calls=%add.clone
  %scores = f32[2,4,4]{2,1,0} dot(%k, %k), lhs_batch_dims={0}, lhs_contracting_dims={2}, metadata={op_name="jit(train_step)/blocks/attention/scores/dot_general"}
  %gemm.1 = (bf16[4,8]{1,0}, /*index=1*/s8[33]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(train_step)/blocks/mlp/dot_general"}
  %gemm.2 = (bf16[2,4,8]{2,1,0}, s8[33]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", metadata={op_name="jit(train_step)/blocks/attention/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_batch_dimensions":["0"]}}}
  %fmha = (bf16[4,8]{1,0}, u8[0]{0}) custom-call(%a, %b), custom_call_target="__cudnn$fmhaSoftmax"
  %all-reduce-start = f32[4]{0} all-reduce-start(%v), to_apply=%add.clone
  %exp = f32[4]{0} exponential(%v)
  ROOT %out = (f32[4,2]{1,0}, /*index=1*/f32[4]{0}) tuple(%fusion.1, %fusion.3)
}
"""


@pytest.mark.parametrize(
  'name, group',
  [
    ('fusion.1', 'matmul'),
    ('fusion.2', 'copy/transpose'),
    ('fusion.3', 'optimizer'),
    ('fusion.4', 'gather/scatter'),
    ('wrapped', 'optimizer'),
    ('scores', 'attention'),
    ('gemm.1', 'matmul'),
    ('gemm.2', 'attention'),
    ('fmha', 'attention'),
    ('all-reduce-start', 'collective'),
    ('exp', 'elementwise'),
  ],
)
def test_the_program_says_what_an_operation_is(name, group):
  assert profiler_ops.kinds(HLO)[name] == group


@pytest.mark.parametrize(
  'name, group',
  [
    ('nvjet_hsh_128x256_64x4_2x1_v_bz_TNT', 'matmul'),
    ('cudnn_generated_fort_native_sdpa_sm90_flash_bprop', 'attention'),
    ('MemcpyD2D', 'copy/transpose'),
    ('ncclDevKernel_AllReduce_Sum_f32', 'collective'),
    ('input_scatter_fusion', 'gather/scatter'),
    ('loop_multiply_fusion_2', 'elementwise'),
  ],
)
def test_kernels_without_a_program_go_by_their_names(name, group):
  op = Op(name, '', 0, 1)
  assert profiler_ops.group_of(op, 'jit_train_step', {}) == group


def test_a_name_that_says_nothing_goes_by_its_kernel():
  op = Op('custom-call.5', 'jit_f', 0, 1, 'nvjet_hsh_128x256')
  assert profiler_ops.group_of(op, 'jit_train_step', {}) == 'matmul'
  op = Op('ynn_fusion.5', 'jit_f', 0, 1, 'ynn_fusion.5')
  assert profiler_ops.group_of(op, 'jit_train_step', {}) == 'other'


def test_a_name_of_another_program_says_nothing():
  known = {'copy.1': 'optimizer'}
  op = Op('copy.1', 'jit_train_step', 0, 1)
  assert profiler_ops.group_of(op, 'jit_train_step', known) == 'optimizer'
  op = Op('copy.1', 'jit__choose', 0, 1)
  assert profiler_ops.group_of(op, 'jit_train_step', known) == 'copy/transpose'


def spent(*lines):
  parts, gaps = profiler_ops.shares(
    [[Op(name, '', a, b) for name, a, b in line] for line in lines]
  )
  return {op.name: part for op, part in parts.items()}, gaps


def test_nothing_of_the_time_is_lost():
  # Nested on one line: the innermost has the time.
  assert spent([('a', 0, 10), ('b', 2, 5), ('c', 3, 4)]) == (
    {'a': 7, 'b': 2, 'c': 1},
    0,
  )
  # One after the other, with a gap.
  assert spent([('a', 0, 2), ('b', 2, 3), ('c', 5, 6)]) == (
    {'a': 2, 'b': 1, 'c': 1},
    2,
  )
  # At the same time, on two lines: shared.
  assert spent([('a', 0, 4)], [('b', 2, 8)]) == ({'a': 3, 'b': 5}, 0)
  assert spent([('a', 0, 1), ('c', 9, 10)], [('b', 2, 8)]) == (
    {'a': 1, 'b': 6, 'c': 1},
    2,
  )


def event(name, start, length, **stats):
  return types.SimpleNamespace(
    name=name, start_ns=start, duration_ns=length, stats=stats.items()
  )


def line(name, *events):
  return types.SimpleNamespace(name=name, events=events)


def names(planes):
  found = profiler_ops._first_device(planes)
  return [[op.name for op in ops] for ops in found]


def test_a_gpu_has_streams():
  known = {'hlo_op': 'fusion.1', 'hlo_module': 'jit_train_step'}
  hidden = {'hlo_op': 'command_buffer_2', 'hlo_module': 'jit_train_step'}
  lines = [
    line('XLA Modules', event('jit_train_step', 0, 9)),
    line('XLA Ops', event('fusion.1', 0, 9, **known)),
    line(
      'Stream #13(Compute)',
      event('nvjet_tst', 0, 4, **known),
      event('loop_add_fusion', 5, 4, **hidden),
      event('MemcpyH2D', 9, 1),
    ),
    line('Stream #14(MemcpyD2D)', event('MemcpyD2D', 1, 2)),
  ]
  host = [line('main', event('Thunk', 0, 9, **known))]
  planes = {
    '/host:CPU': host,
    '/device:GPU:1': host,
    '/device:GPU:0': lines,
  }
  assert names(planes) == [
    ['fusion.1', 'loop_add_fusion', 'MemcpyH2D'],
    ['MemcpyD2D'],
  ]
  # Where there are no streams, as on a TPU.
  assert names({'/device:TPU:0': lines[:2]}) == [['fusion.1']]
  # Nothing is taken from elsewhere if the device was not seen.
  assert names({'/host:CPU': host, '/device:GPU:0': []}) == []


def test_a_cpu_has_threads():
  known = {'hlo_module': 'jit_f', 'device_ordinal': '0'}
  lines = [
    line(
      'python', event('PjitFunction(f)', 0, 9), event('ThunkExecutor', 0, 9)
    ),
    line(
      'tf_XLAEigen/1',
      event('while.3', 0, 9, hlo_op='while.3', **known),
      event('dot.1', 1, 2, hlo_op='dot.1', **known),
      event('end: dot.1', 3, 0),
      event('dot.1', 1, 2, hlo_op='dot.1', device_ordinal='1'),
    ),
  ]
  assert names({'/host:metadata': [], '/host:CPU': lines}) == [['dot.1']]


def test_a_trace_of_this_machine(tmp_path):
  @jax.jit
  def program(x):
    return jnp.sort(jnp.tanh(x @ x), axis=0)

  x = jax.device_put(jnp.ones((64, 64)), jax.devices()[0])
  compiled = program.lower(x).compile()
  known = profiler_ops.kinds(compiled.as_text())
  compiled(x).block_until_ready()
  with jax.profiler.trace(tmp_path):
    compiled(x).block_until_ready()
  lines = profiler_ops.read(tmp_path)
  module = 'jit_program'
  seen = {
    profiler_ops.group_of(op, module, known) for ops in lines for op in ops
  }
  assert {op.module for ops in lines for op in ops} == {module}
  assert {'matmul', 'gather/scatter'} <= seen
  parts, gaps = profiler_ops.shares(lines)
  ops = [op for ops in lines for op in ops]
  window = max(op.stop for op in ops) - min(op.start for op in ops)
  assert sum(parts.values()) + gaps == pytest.approx(window)


def test_a_folder_without_a_trace_is_refused(tmp_path):
  with pytest.raises(errors.SatjaxError, match='no operation'):
    profiler_ops.read(tmp_path)
