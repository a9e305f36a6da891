"""Which arms share the memory, and what the machine is asked."""

import math
import stat

import jax
import jax.numpy as jnp

from satjax.lab.bench import groups as bench_groups
from satjax.lab.bench import machine as bench_machine
from satjax.lab.bench.groups import Unit


def names(groups):
  return [[unit.names[0] for unit in group] for group in groups]


def unit(name, rests=1.0, works=1.0, alone=False):
  return Unit((name,), rests, works, alone)


def pack(units, limit, size=1):
  return bench_groups.pack(units, (size, size), limit)


def test_without_a_limit_there_is_one_group():
  groups, reasons = pack([unit('a'), unit('b')], math.inf)
  assert names(groups) == [['a', 'b']] and not reasons
  assert pack([], math.inf) == ([], {})


def test_a_group_rests_together_and_works_in_turn():
  units = [unit('a'), unit('b'), unit('c', rests=2), unit('d', works=2)]
  # Dense and two others rest: 3; the work of one of them: 1.
  groups, _ = pack(units, 4)
  assert names(groups) == [['a', 'b'], ['c'], ['d']]
  groups, _ = pack(units, 3.9)
  assert names(groups)[0] == ['a']
  assert names(pack(units, 8)[0]) == [list('abcd')]


def test_what_fits_nowhere_is_named_with_its_size():
  gib = 2**30
  pair = Unit(('x', 'x, twin'), 3 * gib, 0)
  groups, reasons = pack([pair, unit('a')], 4.5 * gib, gib)
  assert names(groups) == [['a']]
  assert set(reasons) == {'x', 'x, twin'}
  assert '5 GiB, of 4.5' in reasons['x']


def test_arms_of_unknown_size_come_first_and_alone():
  units = [unit('a'), unit('t', alone=True), unit('b'), unit('u', alone=True)]
  assert names(pack(units, 10)[0]) == [['t'], ['u'], ['a', 'b']]


def test_turns_go_back_and_forth():
  order = []
  tasks = {name: lambda n=name: order.append(n) for name in 'abc'}
  seconds = bench_groups.take_turns('test', tasks, 6)
  assert ''.join(order) == 'abccbabcaacbcabbac'
  assert {name: len(of) for name, of in seconds.items()} == dict.fromkeys(
    'abc', 6
  )
  assert bench_groups.take_turns('nothing to do', {}, 2) == {}


def test_the_second_compile_finds_the_first_on_disk():
  seen = []

  def count(event, **_):
    seen.append(event)

  def compile_program():
    lowered = jax.jit(lambda x: jnp.sin(x) @ x).lower(jnp.ones((8, 8)))
    return lowered.compile()

  before = jax.config.jax_compilation_cache_dir
  jax.monitoring.register_event_listener(count)
  try:
    program, seconds = bench_machine.compile_seconds(compile_program)
  finally:
    jax.monitoring.unregister_event_listener(count)
  hits = [event for event in seen if event.endswith('/cache_hits')]
  misses = [event for event in seen if event.endswith('/cache_misses')]
  assert len(hits) == len(misses) > 0
  assert program(jnp.ones((8, 8))).shape == (8, 8)
  assert set(seconds) == {'cold', 'warm'}
  assert jax.config.jax_compilation_cache_dir == before


def test_memory_of_a_machine_that_does_not_count_it():
  device = jax.devices()[0]
  assert bench_machine.memory_limit(device) == math.inf
  assert bench_machine.peak_memory(device) is None


def test_memory_of_a_machine_that_does(monkeypatch):
  class Device:
    def memory_stats(self):
      return {'bytes_limit': 100, 'peak_bytes_in_use': 7}

  assert bench_machine.memory_limit(Device()) == 90
  assert bench_machine.peak_memory(Device()) == 7


def test_clocks_are_those_of_nvidia_smi(tmp_path, monkeypatch):
  program = tmp_path / 'nvidia-smi'
  program.write_text(
    '#!/bin/sh\n'
    'echo "NVIDIA H200, 1980 MHz, 3201 MHz, 612.30 W, 700.00 W, 54"\n'
  )
  program.chmod(program.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv('PATH', str(tmp_path))
  (gpu,) = bench_machine.clocks()
  assert gpu['name'] == 'NVIDIA H200' and gpu['clocks.sm'] == '1980 MHz'
  assert gpu['power.draw'] == '612.30 W' and gpu['temperature.gpu'] == '54'
  program.write_text('#!/bin/sh\necho "No devices were found"; exit 6\n')
  assert bench_machine.clocks() == []
  program.unlink()
  assert bench_machine.clocks() == []
