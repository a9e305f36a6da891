"""Where the time of a step goes: a trace of the device, by kind of operation.

Of the dense step, of a SAT step and of a refresh. The time between the first
operation and the last is shared out without rest: groups and gaps add up to it.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
import time
from typing import Any

import jax

from satjax import console, files
from satjax.config.run import Config
from satjax.lab.bench import arms as bench_arms
from satjax.lab.bench import machine as bench_machine
from satjax.lab.bench import profiler_ops
from satjax.train import setup as setup_lib
from satjax.train import workdir

_WARMUP = 3
_LONGEST = 10
_MODULE = 'jit_train_step'


def profile(
  config: Config,
  directory: str | os.PathLike,
  *,
  rate: float = 0.5,
  forward: str = 'skip',
  unit: str = 'neurons',
  steps: int = 3,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Traces the dense arm, and one of SAT, of random weights and tokens.

  Args:
    directory: for a trace of each section, and the tables, as profile.md.
    rate: omission rate.
    forward: what the omitted part does in the forward pass.
    unit: what is left out, one of `arms.UNITS`.
    steps: in a trace; as many refreshes.
    devices: None: all. The first is looked at.

  Returns:
    What `render` makes the tables from.

  Raises:
    SatjaxError: the profiler saw no operation.
    ConfigError: adapters train, or the model cannot realise the rate.
    StorageError: `directory` cannot be written.
  """
  config = bench_arms.fresh(config)
  path = pathlib.Path(directory) / 'profile.md'
  files.save(path, '')
  wanted = {
    'dense': bench_arms.with_rate(config, 0.0, 'skip'),
    f'{forward} {rate:g}': bench_arms.with_rate(config, rate, forward, unit),
  }
  sections = {}
  for name, changed in wanted.items():
    # A cache would give back programs whose operations have other names.
    with bench_machine.empty_cache():
      arm = bench_arms.open_arm(setup_lib.make_setup(changed, devices))
    known = profiler_ops.kinds(arm.program.as_text())
    tasks = {f'{name}, step': arm.steps}
    if arm.refreshes:
      tasks[f'{name}, refresh'] = arm.refresh
    for label, task in tasks.items():
      folder = path.parent / label.replace(', ', '_').replace(' ', '_')
      sections[label] = _trace(folder, task, known, steps)
    del arm, tasks, task
  result = {'environment': workdir.environment(), 'sections': sections}
  files.save(path, render(result))
  return result


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
  part_of = collections.Counter({profiler_ops.GAPS: gaps})
  seen = collections.Counter()
  for op, part in spent.items():
    group = profiler_ops.group_of(op, _MODULE, known)
    for key in (group, (op.name, group)):
      part_of[key] += part
      seen[key] += 1
  whole = sum(spent.values()) + gaps

  def row(key):
    return {
      'milliseconds': part_of[key] / count / 1e6,
      'share': part_of[key] / whole,
      'count': seen[key] / count,
    }

  groups = (*profiler_ops.GROUPS, profiler_ops.GAPS)
  named = [key for key, _ in part_of.most_common() if key not in groups]
  return {
    'milliseconds': whole / count / 1e6,
    'untraced_milliseconds': 1e3 * wall / count,
    'groups': {name: row(name) for name in groups},
    'longest': [
      {'name': key[0], 'group': key[1], **row(key)} for key in named[:_LONGEST]
    ],
  }


def render(result: Mapping[str, Any]) -> str:
  """The tables as Markdown."""
  parts, columns = [], ('ms', 'share', 'operations')
  for label, section in result['sections'].items():
    groups = section['groups']
    order = sorted(groups, key=lambda name: -groups[name]['share'])
    longest = [
      (f'`{row["name"]}`', row['group'], *_cells(row))
      for row in section['longest']
    ]
    parts += [
      f'## {label}: {section["milliseconds"]:.3f} ms traced,'
      f' {section["untraced_milliseconds"]:.3f} ms untraced\n',
      console.markdown(
        ('group', *columns), [(name, *_cells(groups[name])) for name in order]
      ),
      console.markdown(('longest operations', 'group', *columns), longest),
    ]
  environment = result['environment']
  packages = environment['packages']
  notes = (
    '- Of the first device; operations that run at the same time share it,'
    ' so that everything adds up to the time from the first to the last.\n'
    '- A fusion with a matmul counts as one;'
    ' attention is its matmuls or its kernel, without a softmax of its own.'
    ' Operations of other programs than the step go by their names; other:'
    ' by names that do not tell.\n'
    f'- {environment["devices"]}, XLA_FLAGS {environment["xla_flags"]!r},'
    f' commit {environment["commit"]}, jax {packages["jax"]}, jaxlib'
    f' {packages["jaxlib"]}.\n'
  )
  return '\n'.join([*parts, notes])


def _cells(row):
  return (
    f'{row["milliseconds"]:.3f}',
    f'{row["share"]:.1%}',
    f'{row["count"]:g}',
  )
