"""Where the time of a step goes: a trace of the device, by kind of operation.

Of the dense step, of a SAT step and of a refresh. The time between the first
operation and the last is shared out without rest: groups and gaps add up to it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
import time
from typing import Any

import jax
import optax

from satjax import errors
from satjax.config.run import Config
from satjax.lab.bench import arms as bench_arms
from satjax.lab.bench import machine as bench_machine
from satjax.lab.bench import profiler_ops
from satjax.train import phases, programs, workdir
from satjax.train import setup as setup_lib

_WARMUP = 3
_LONGEST = 10
_MODULE = 'jit_train_step'


def profile(
  config: Config,
  directory: str | os.PathLike,
  *,
  rate: float = 0.5,
  forward: str = 'skip',
  steps: int = 3,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Traces the dense arm, and one of SAT, of random weights and tokens.

  Args:
    config: what to run.
    directory: for a trace of each section, and the tables, as profile.md.
    rate: omission rate of heads and channels.
    forward: what the omitted part does in the forward pass.
    steps: in a trace; as many refreshes.
    devices: to run on; None: all. The first is looked at.

  Returns:
    What `render` makes the tables from.

  Raises:
    SatjaxError: the profiler saw no operation.
    ConfigError: adapters train, or the model cannot realise the rate.
    StorageError: `directory` cannot be written.
  """
  config = bench_arms.fresh(config)
  batches = bench_arms.random_batches(config)
  path = _write(directory, '')
  sections = {}
  for name, changed in (
    ('dense', bench_arms.with_rate(config, 0.0, 'skip')),
    (f'{forward} {rate:g}', bench_arms.with_rate(config, rate, forward)),
  ):
    setup = _scoped(changed, devices)
    phase = phases.phase_at(setup.config, 0)
    # A cache would give back programs whose operations have other names.
    with bench_machine.empty_cache():
      program = programs.compile_phase(setup, batches[0], phase)
    known = profiler_ops.kinds(program.as_text())
    compiled = bench_arms.Compiled(setup, phase, program, {})
    arm = bench_arms.make_arm(compiled, batches)
    tasks = {f'{name}, step': arm.steps}
    if arm.window.chosen:
      tasks[f'{name}, refresh'] = arm.refresh
    for label, task in tasks.items():
      folder = path.parent / label.replace(', ', '_').replace(' ', '_')
      sections[label] = _trace(folder, task, known, steps)
    del arm, tasks, task
  result = {'environment': workdir.environment(), 'sections': sections}
  _write(directory, render(result))
  return result


def _scoped(config, devices):
  """A setup whose optimizer is to be told apart by its named scope."""
  setup = setup_lib.make_setup(config, devices)
  scope = jax.named_scope(profiler_ops.SCOPE)
  tx = optax.GradientTransformation(setup.tx.init, scope(setup.tx.update))
  return dataclasses.replace(setup, tx=tx)


def _trace(
  folder: pathlib.Path,
  task: Callable[[int], Any],
  known: Mapping[str, str],
  count: int,
) -> dict[str, Any]:
  """Where the time of `task` goes; milliseconds, of one of `count`."""
  task(_WARMUP)
  start = time.perf_counter()
  task(count)
  wall = time.perf_counter() - start
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with jax.profiler.trace(folder, profiler_options=options):
    task(count)
  spent, gaps = profiler_ops.shares(profiler_ops.read(folder))
  groups = dict.fromkeys((*profiler_ops.GROUPS, profiler_ops.GAPS), (0.0, 0))
  longest = {}
  for op, part in spent.items():
    group = profiler_ops.group_of(op, _MODULE, known)
    for table, key in ((groups, group), (longest, (op.name, group))):
      total, seen = table.get(key, (0.0, 0))
      table[key] = total + part, seen + 1
  groups[profiler_ops.GAPS] = gaps, 0
  whole = sum(part for part, _ in groups.values())

  def row(part, seen):
    return {
      'milliseconds': part / count / 1e6,
      'share': part / whole,
      'count': seen / count,
    }

  order = sorted(longest, key=lambda key: -longest[key][0])[:_LONGEST]
  return {
    'milliseconds': whole / count / 1e6,
    'untraced_milliseconds': 1e3 * wall / count,
    'groups': {name: row(*values) for name, values in groups.items()},
    'longest': [
      {'name': name, 'group': group, **row(*longest[name, group])}
      for name, group in order
    ],
  }


def render(result: Mapping[str, Any]) -> str:
  """The tables as Markdown."""
  lines = []
  for label, section in result['sections'].items():
    lines += [
      f'## {label}: {section["milliseconds"]:.3f} ms traced,'
      f' {section["untraced_milliseconds"]:.3f} ms untraced',
      '',
      '| group | ms | share | operations |',
      '| --- | --- | --- | --- |',
      *(
        f'| {name} | {_cells(row)} |'
        for name, row in sorted(
          section['groups'].items(), key=lambda item: -item[1]['share']
        )
      ),
      '',
      '| longest operations | group | ms | share | operations |',
      '| --- | --- | --- | --- | --- |',
      *(
        f'| `{row["name"]}` | {row["group"]} | {_cells(row)} |'
        for row in section['longest']
      ),
      '',
    ]
  environment = result['environment']
  packages = environment['packages']
  return '\n'.join(
    [
      *lines,
      '- Of the first device; operations that run at the same time share it,'
      ' so that everything adds up to the time from the first to the last.',
      '- A fusion with a matmul counts as one;'
      ' attention is its matmuls or its kernel, without a softmax of its own.'
      ' Operations of other programs than the step go by their names; other:'
      ' by names that do not tell.',
      f'- {environment["devices"]}, XLA_FLAGS {environment["xla_flags"]!r},'
      f' commit {environment["commit"]}, jax {packages["jax"]}, jaxlib'
      f' {packages["jaxlib"]}.',
      '',
    ]
  )


def _cells(row):
  return f'{row["milliseconds"]:.3f} | {row["share"]:.1%} | {row["count"]:g}'


def _write(directory, text):
  path = pathlib.Path(directory) / 'profile.md'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  except OSError as error:
    raise errors.StorageError(
      f'cannot write {path}: {error.strerror}; choose another folder'
    ) from error
  return path
