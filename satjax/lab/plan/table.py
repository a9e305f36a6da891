"""What `plan_topology` finds, as Markdown and as JSON."""

from collections.abc import Iterator
import dataclasses
from importlib import metadata
from typing import Any

from satjax import console
from satjax.config.run import Config
from satjax.lab.plan import advice as plan_advice
from satjax.lab.plan import collectives
from satjax.lab.plan import memory as plan_memory
from satjax.lab.plan import step_time as plan_time
from satjax.lab.plan.topology import Result, Row, describe
from satjax.train import workdir

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


def render(result: Result) -> str:
  """Markdown: a table of the phases, and what follows from it."""
  topology, config = result.topology, result.config
  settings = [
    *(f'mesh.{x}={n}' for x, n in dataclasses.asdict(config.mesh).items()),
    f'train.batch_size={config.train.batch_size}',
    f'train.microbatch_size={config.train.microbatch_size}',
    f'train.loss_chunk={config.train.loss_chunk}',
    f'model.remat={config.model.remat}',
    f'sparsity.rest={config.sparsity.rest}',
  ]
  lines = [
    f'## {topology.label}: {topology.count} chips,'
    f' {_gb(topology.chip.memory)} GB each',
    '',
    f'{", ".join(settings)}.',
    *result.remarks,
    '',
  ]
  if result.rows:
    rows = [_cells(row, topology) for row in result.rows]
    lines.append(console.markdown(_COLUMNS, rows))
  return '\n'.join([*lines, *_verdict(result)])


# All figures are of one device and one step.
_COLUMNS = (
  *('phase', 'steps', 'TFLOPs', 'state GB', 'parked GB', 'temporaries GB'),
  *('total GB', 'fits', 'exchanged GB (arrays)', 'modelled s', 'bound by'),
  'from',
)


def _cells(row, topology):
  compiled, closed = row.compiled, row.closed
  if compiled and compiled.refusal:
    sizes = ['?', '?', _gb(compiled.temporaries), 'too much']
  else:
    state = compiled.arguments if compiled else closed.state
    parts = compiled or closed
    sizes = map(_gb, (state, parts.parked, parts.temporaries, row.total))
  exchanged = ', '.join(
    f'{kind} {_gb(size)} ({count})'
    for kind, (count, size) in sorted(row.exchanged.items())
  )
  return [
    row.name,
    str(row.program.steps),
    f'{row.flops / 1e12:.4g}',
    *sizes,
    'yes' if row.fits(topology) else 'NO',
    exchanged or '-',
    f'{row.modelled.total:.3g}' if row.modelled else '-',
    row.modelled.bound if row.modelled else '-',
    f'compiler, {compiled.seconds:.0f} s' if compiled else 'closed form',
  ]


def _verdict(result) -> Iterator[str]:
  topology = result.topology
  if any(row.modelled for row in result.rows):
    yield (
      'Seconds are modelled, not measured: the largest of'
      f' {plan_time.COMPUTE_SHARE:.0%} of peak FLOPs,'
      f' {plan_time.MEMORY_SHARE:.0%} of memory bandwidth and'
      f' {plan_time.NETWORK_SHARE:.0%} of network bandwidth of the data sheet.'
    )
  if result.rows and all(row.fits(topology) for row in result.rows):
    yield 'It fits.'
    return
  for row in result.rows:
    if row.compiled and row.compiled.refusal:
      yield f'{row.name} does not fit: {row.compiled.refusal}'
  if result.advice is None:
    yield 'Nothing that was tried fits; take more chips, or chips with more'
    yield 'memory.'
    return
  row = result.confirmed
  how = 'the compiler confirms it' if row.compiled else 'in closed form'
  yield (
    f'These settings fit, with {_gb(row.total)} GB of'
    f' {_gb(topology.chip.memory)} in the largest phase ({how}):'
  )
  flags = plan_advice.flags(result.config, result.advice)
  yield f'    {" ".join(flags)}'


def as_json(result: Result) -> dict[str, Any]:
  """All figures: bytes, FLOPs and seconds of one device and one step."""
  topology = result.topology
  compilers = (x.version for x in metadata.distributions(name='libtpu'))
  return {
    'topology': topology.label,
    'chip': {**dataclasses.asdict(topology.chip), 'flops': topology.chip.flops},
    'chips': topology.count,
    'environment': workdir.environment(),
    'libtpu': next(compilers, None),
    'config': result.config.to_dict(),
    'remarks': list(result.remarks),
    'phases': [_row(row, topology) for row in result.rows],
    'advice': result.advice
    and {
      'flags': plan_advice.flags(result.config, result.advice),
      'largest_phase': _row(result.confirmed, topology),
    },
  }


def _row(row: Row, topology):
  compiled = row.compiled
  return {
    'phase': row.name,
    'steps': row.program.steps,
    'flops': row.flops,
    'fits': row.fits(topology),
    'total_bytes': row.total,
    'closed_form_bytes': dataclasses.asdict(row.closed)
    | {'total': row.closed.total},
    'exchanged': {
      kind: {'count': count, 'bytes': size}
      for kind, (count, size) in row.exchanged.items()
    },
    'compiler': compiled
    and {
      'seconds': compiled.seconds,
      'argument_bytes': compiled.arguments,
      'temporary_bytes': compiled.temporaries,
      'parked_bytes': compiled.parked,
      'refusal': compiled.refusal,
      'largest': [
        dataclasses.asdict(x) for x in collectives.largest(compiled.exchanged)
      ],
    },
    'modelled_seconds': row.modelled
    and dataclasses.asdict(row.modelled) | {'total': row.modelled.total},
  }


def _gb(size):
  return f'{size / 1e9:.2f}' if size >= 1e7 else f'{size / 1e9:.2g}'
