"""satjax bench."""

import os
from typing import Any

from satjax.commands import shared

SUMMARY = (
  'paired step times: dense, some omission rates, their compact twins, and'
  ' PyTorch where that is installed; --out writes JSON, and Markdown beside it'
)
OPTIONS = shared.required(
  shared.CONFIG
  | {
    '--rates': shared.value(
      'RATE',
      'omission rates of heads and channels (default: 0.25 0.5 0.75);'
      ' --profile takes the first (default: 0.5)',
      float,
      nargs='*',
    ),
    '--layers': shared.value(
      'RATE',
      'omission rates of layers, timed besides (default: none); --profile takes'
      ' the first instead of one of --rates',
      float,
      nargs='*',
      default=(),
    ),
    '--forwards': shared.choice(
      ('skip', 'mean', 'exact', 'through'),
      'what the omitted part does in the forward pass (default: skip'
      ' exact); --profile takes the first',
      nargs='*',
      default=('skip', 'exact'),
    ),
    '--torch': shared.value(
      'NAME',
      "beginnings of the names of PyTorch arms, such as 'torch"
      " compile'; none: no such arm (default: all, where PyTorch is installed)",
      nargs='*',
    ),
    '--rounds': shared.value(
      'N', 'paired rounds (default: 21; with --ladder 3)', int
    ),
    '--steps': shared.preset('N', 'steps in a visit of an arm', 2),
    '--memory': shared.value(
      'BYTES',
      'of a device, that arms may take together; those that do not fit are'
      ' timed in groups (default: what the device has)',
      float,
    ),
    '--ladder': shared.flag(
      'instead: the wall clock of whole runs of train.num_steps steps,'
      ' the ladder of the configuration against dense'
    ),
    '--profile': shared.value(
      'DIR',
      'instead: trace a few steps and refreshes, for ui.perfetto.dev, or'
      ' for TensorBoard with XProf',
    ),
  }
  | shared.OUT,
  '--config',
)


def run(options: Any) -> None:
  from satjax import errors
  from satjax.interop import settings

  if options.ladder and options.profile:
    raise errors.ConfigError('choose one of --ladder and --profile=DIR')
  _set_defaults(named=bool(options.profile))
  config = settings.load(options.config, options.overrides)
  if options.profile:
    from satjax.lab.bench import profiler

    found = profiler.profile(
      config,
      options.profile,
      rate=(options.layers or options.rates or (0.5,))[0],
      forward=(options.forwards or ('skip',))[0],
      unit='layers' if options.layers else 'neurons',
    )
    print('\n'.join(f'wrote {path}' for path in found))
  elif options.ladder:
    from satjax.lab.bench import ladder

    rounds = options.rounds or 3
    result = ladder.ladder(config, rounds=rounds, out=options.out)
    print(ladder.render(result))
  else:
    from satjax.lab.bench import paired
    from satjax.lab.bench import table as bench_table

    result = paired.bench(
      config,
      rates=paired.RATES if options.rates is None else options.rates,
      forwards=options.forwards,
      layers=options.layers,
      rounds=options.rounds or 21,
      steps=options.steps,
      torch=options.torch,
      memory=options.memory,
      out=options.out,
    )
    print(bench_table.render(result))


def _set_defaults(named):
  """What XLA is told, unless the user has; GPUs alone heed it.

  `named` operations keep their names, which a command buffer (a CUDA graph)
  loses.
  """
  # PyTorch needs what JAX does not use.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.95')
  flags = os.environ.get('XLA_FLAGS', '')
  if named and 'xla_gpu_enable_command_buffer' not in flags:
    flags = f'{flags} --xla_gpu_enable_command_buffer='
    os.environ['XLA_FLAGS'] = flags.strip()
