"""The wall clock of whole runs: a configuration's own ladder against dense.

Each run has a process of its own, with an empty compile cache, and pays for
everything from its first compile to its last step. Weights and tokens are
random, and the tokens are in memory.
"""

from collections.abc import Mapping, Sequence
from concurrent import futures
import contextlib
import multiprocessing
import os
from typing import Any

import jax
import numpy as np

from satjax import console, errors
from satjax.config.run import Config
from satjax.lab.bench import arms as bench_arms
from satjax.lab.bench import groups as bench_groups
from satjax.lab.bench import machine as bench_machine
from satjax.lab.bench import table as bench_table
from satjax.lab.plan import stretches
from satjax.train import metrics, phases, programs, window, workdir
from satjax.train import setup as setup_lib


def ladder(
  config: Config,
  *,
  rounds: int = 3,
  out: str | os.PathLike | None = None,
) -> dict[str, Any]:
  """Times runs of `config.train.num_steps`: dense, dense again, the ladder.

  One that grows is timed without growth. The kinds of run take turns.

  `config` has a ladder, and there are `rounds` runs of each kind. Returns the
  result, as it goes to the JSON file `out`; its table goes beside it, as .md.

  Raises:
    ConfigError: nothing is left out, or adapters train.
    StorageError: `out` cannot be written.
  """
  config = bench_arms.fresh(config)
  if not config.sparsity.is_on:
    raise errors.ConfigError(
      'config.sparsity.head_rate, channel_rate and layer_rate are 0: there is'
      ' no ladder to time; set one of them'
    )
  bench_table.check(out)
  dense = bench_arms.with_rate(config, 0.0, 'skip')
  runs = {'dense': [], 'dense again': [], 'ladder': []}
  before = os.getloadavg(), bench_machine.clocks()

  def task(name):
    changed = config if name == 'ladder' else dense

    def run():
      """In a process that has compiled nothing yet."""
      context = multiprocessing.get_context('spawn')
      with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        runs[name].append(pool.submit(run_whole, changed).result())

    return run

  bench_groups.take_turns('runs', {name: task(name) for name in runs}, rounds)
  # As a run saw it; this process has opened no device.
  environment = [x.pop('environment') for found in runs.values() for x in found]
  result = {
    'environment': environment[0] | {'command': workdir.command()},
    'load_average': {'before': before[0], 'after': os.getloadavg()},
    'clocks': {'before': before[1], 'after': bench_machine.clocks()},
    'config': config.to_dict(),
    'rounds': rounds,
    'limit': stretches.plan(config).speedup,
    'arms': _summarise(runs),
  }
  again = result['arms']['dense again']['ratio']
  result['noise'] = bench_table.noise_floor(again)
  return bench_table.publish(out, result, render)


def run_whole(
  config: Config, devices: Sequence[jax.Device] | None = None
) -> dict[str, Any]:
  """Trains from the first step to the last, on all devices if None are given.

  Returns:
    'seconds' in all, and 'spent' on each activity as in metrics.jsonl; 'loss'
    of the last step, 'flops' as executed, how many 'programs' were compiled,
    and the 'environment'.
  """
  setup = setup_lib.make_setup(config, devices)
  config = setup.config  # what it left open is settled now
  host = bench_arms.random_batches(config)
  total, device = config.train.num_steps, setup.mesh.devices.flat[0]
  with bench_machine.empty_cache():
    clock = metrics.Clock()
    with clock('init'):
      batches = [setup.put_batch(batch) for batch in host]
      compiled = programs.Programs(setup, batches[0])
      compiled.prepare(phases.phase_at(config, 0))
      now = window.first(setup, setup_lib.initial_state(setup))
    with contextlib.closing(compiled):
      loss = _steps(setup, compiled, now, batches, clock)
      spent = clock.totals()
  return {
    'seconds': sum(spent.values()),
    'spent': spent,
    'loss': loss,
    'flops': sum(phases.step_flops(config, step) for step in range(total)),
    'programs': compiled.count,
    'peak_memory': bench_machine.peak_memory(device),
    'environment': workdir.environment(),
  }


def _steps(setup, compiled, now, batches, clock):
  """The steps of the training loop, which also saves, looks and logs."""
  config, pending, loss = setup.config, None, None
  for step in range(config.train.num_steps):
    phase, batch = phases.phase_at(config, step), batches[step % len(batches)]
    timer, outer = clock, contextlib.nullcontext()
    if step == 0:
      timer, outer = contextlib.nullcontext, clock('compile')
    with outer:
      now = window.turn_over(setup, now, step, batch, timer)
    with clock('compile'):
      program = compiled.get(phase)
      ahead = phases.next_phase(config, step)
      if ahead:
        compiled.prepare(ahead)
    now.state, scalars = program(now.state, batch, now.forward_extra)
    # One step late, as the loop does: the device never waits for the host.
    if pending is not None:
      float(pending)
    pending = scalars['loss']
  loss = float(pending)
  jax.block_until_ready(window.close(setup, now, config.train.num_steps))
  return loss


def _summarise(runs):
  seconds = {n: np.array([r['seconds'] for r in rs]) for n, rs in runs.items()}
  return {
    name: {
      'seconds': float(np.median(seconds[name])),
      'ratio': bench_table.spread(seconds[name] / seconds['dense']),
      'spent': {
        key: float(np.median([row['spent'].get(key, 0.0) for row in rows]))
        for key in rows[0]['spent']
      },
      'runs': rows,
    }
    for name, rows in runs.items()
  }


def render(result: Mapping[str, Any]) -> str:
  """The result as a Markdown table, and what it takes to judge it."""
  arms, config, floor = result['arms'], result['config'], result['noise']
  activities = list(arms['ladder']['spent'])
  heads = ['run', 'seconds', 'time / dense', 'range', 'speed-up', *activities]
  fixed = {'dense': '1', 'dense again': ''}
  rows = [
    [
      name,
      f'{arm["seconds"]:.1f}',
      f'{arm["ratio"]["median"]:.3f}',
      bench_table.RANGE.format(**arm['ratio']),
      fixed.get(name, bench_table.speedup(arm, floor)),
      *(f'{arm["spent"].get(key, 0.0):.2f}' for key in activities),
    ]
    for name, arm in arms.items()
  ]
  limit, speedup = result['limit'], 1 / arms['ladder']['ratio']['median']
  notes = [
    f'Noise floor {floor:.3f}, from two equal dense runs: ratios that are no'
    ' further from 1 are "no difference".',
    f'Whole runs of {config["train"]["num_steps"]} steps of'
    f' {config["train"]["batch_size"]} x {config["data"]["seq_len"]} tokens in'
    f' {config["model"]["dtype"]}, {result["rounds"]} of each kind in turn,'
    ' each in a process of its own with an empty compile cache; compiles,'
    ' refreshes and all, in seconds by activity. `compile` is what the run'
    ' waited for: the next rung compiles while the one before it trains.',
    f'The FLOPs of the ladder allow {limit:.3f}x; efficiency'
    f' {speedup / limit:.3f}.',
    f'Programs compiled: {arms["dense"]["runs"][0]["programs"]} dense,'
    f' {arms["ladder"]["runs"][0]["programs"]} with the ladder.',
    *bench_table.notes_on_machine(result),
  ]
  text = ''.join(f'- {note}\n' for note in notes)
  return f'{console.markdown(heads, rows)}\n{text}'
