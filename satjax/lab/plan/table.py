"""A plan as Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from satjax import console
from satjax.config.run import Config
from satjax.lab.plan import memory as plan_memory
from satjax.lab.plan import step_time as plan_time
from satjax.lab.plan.topology import describe

# Settings that decide on memory, beside the mesh.
_SHOWN = (
  ('train', 'batch_size'),
  ('train', 'microbatch_size'),
  ('train', 'loss_chunk'),
  ('model', 'remat'),
  ('sparsity', 'rest'),
)
_MOST = 24  # phases of a plain plan


def render_memory(config: Config) -> str:
  """Closed-form bytes of a device of `config.mesh`, by phase, as Markdown."""
  mesh = config.mesh
  count = max(1, mesh.data) * mesh.fsdp * mesh.tensor
  mesh = plan_memory.abstract_mesh(config, count)
  names = ('state', 'parked', 'gradients', 'activations', 'other', 'total')
  rows = []
  for program in plan_memory.distinct(config)[:_MOST]:
    needed = plan_memory.memory(config, program.phase, mesh)
    sizes = (getattr(needed, name) for name in names)
    rows.append((describe(program.phase), *map(_gb, sizes)))
  table = console.markdown(('phase', *(f'{n} GB' for n in names)), rows)
  where = f'each of {count} devices' if count > 1 else 'one device'
  title = f'Closed form, on {where} (remat {config.model.remat}):'
  return f'{title}\n\n{table}'.rstrip()


def render(result: Mapping[str, Any]) -> str:
  """Markdown of a plan: a table of the phases, and what follows from it."""
  config, memory = result['config'], result['chip']['memory']
  settings = [f'mesh.{axis}={n}' for axis, n in config['mesh'].items()]
  settings += [f'{group}.{key}={config[group][key]}' for group, key in _SHOWN]
  lines = [
    f'## {result["topology"]}: {result["chips"]} chips, {_gb(memory)} GB each',
    '',
    f'{", ".join(settings)}.',
    *result['remarks'],
    '',
  ]
  if result['phases']:
    rows = [_cells(row) for row in result['phases']]
    lines.append(console.markdown(_COLUMNS, rows))
  return '\n'.join([*lines, *_verdict(result)])


# All figures are of one device and one step.
_COLUMNS = (
  *('phase', 'steps', 'TFLOPs', 'state GB', 'parked GB', 'temporaries GB'),
  *('total GB', 'fits', 'exchanged GB (arrays)', 'modelled s', 'bound by'),
  'from',
)


def _cells(row):
  compiler, closed = row['compiler'], row['closed_form_bytes']
  sizes = [closed['state'], closed['parked'], closed['temporaries']]
  if compiler:
    names = ('argument_bytes', 'parked_bytes', 'temporary_bytes')
    sizes = [compiler[name] for name in names]
  sizes = [*map(_gb, [*sizes, row['total_bytes']])]
  if compiler and compiler['refusal']:
    sizes = ['?', '?', sizes[2], 'too much']
  exchanged = ', '.join(
    f'{kind} {_gb(of["bytes"])} ({of["count"]})'
    for kind, of in sorted(row['exchanged'].items())
  )
  seconds = row['modelled_seconds']
  return [
    row['phase'],
    str(row['steps']),
    f'{row["flops"] / 1e12:.4g}',
    *sizes,
    'yes' if row['fits'] else 'NO',
    exchanged or '-',
    f'{seconds["total"]:.3g}' if seconds else '-',
    seconds['bound'] if seconds else '-',
    f'compiler, {compiler["seconds"]:.0f} s' if compiler else 'closed form',
  ]


def _verdict(result) -> Iterator[str]:
  rows, advice = result['phases'], result['advice']
  if any(row['modelled_seconds'] for row in rows):
    yield (
      'Seconds are modelled, not measured: the largest of'
      f' {plan_time.COMPUTE_SHARE:.0%} of peak FLOPs,'
      f' {plan_time.MEMORY_SHARE:.0%} of memory bandwidth and'
      f' {plan_time.NETWORK_SHARE:.0%} of network bandwidth of the data sheet.'
    )
  if rows and all(row['fits'] for row in rows):
    yield 'It fits.'
    return
  for row in rows:
    if row['compiler'] and row['compiler']['refusal']:
      yield f'{row["phase"]} does not fit: {row["compiler"]["refusal"]}'
  if advice is None:
    yield 'Nothing that was tried fits; take more chips, or chips with more'
    yield 'memory.'
    return
  row = advice['largest_phase']
  how = 'the compiler confirms it' if row['compiler'] else 'in closed form'
  yield (
    f'These settings fit, with {_gb(row["total_bytes"])} GB of'
    f' {_gb(result["chip"]["memory"])} in the largest phase ({how}):'
  )
  yield f'    {" ".join(advice["flags"])}'


def _gb(size):
  return f'{size / 1e9:.2f}' if size >= 1e7 else f'{size / 1e9:.2g}'
