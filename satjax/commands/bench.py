"""satjax bench."""

from typing import Any

from satjax.commands import shared

SUMMARY = (
  'paired step times: dense, some omission rates, their compact twins, and'
  ' PyTorch where that is installed; --out writes JSON, and Markdown beside it'
)
OPTIONS = shared.required(
  shared.CONFIG
  | {
    '--rates': {
      'metavar': 'RATE',
      'nargs': '*',
      'type': float,
      'default': (0.25, 0.5, 0.75),
      'help': 'omission rates of heads and channels (default: 0.25 0.5 0.75)',
    },
    '--forwards': {
      'nargs': '*',
      'choices': ('skip', 'mean', 'exact'),
      'default': ('skip', 'exact'),
      'help': 'what the omitted part does in the forward pass (default: skip'
      ' exact)',
    },
    '--rounds': shared.number(
      'N', int, 'paired rounds (default: 21)', default=21
    ),
  }
  | shared.OUT,
  '--config',
)


def run(options: Any) -> None:
  from satjax import bench, bench_table, config_file

  config = config_file.load(options.config, options.overrides)
  result = bench.bench(
    config,
    rates=options.rates,
    forwards=options.forwards,
    rounds=options.rounds,
    out=options.out,
  )
  print(bench_table.render(result))
