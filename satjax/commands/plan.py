"""satjax plan."""

from typing import Any

from satjax import console, errors
from satjax.commands import shared

SUMMARY = (
  'the ladder of a configuration before it runs: what each rung keeps, and'
  ' the speed-up that its FLOPs allow; or, from --params and --tokens, when'
  ' to grow a model and what that saves; with --topology, what each rung needs'
  ' on accelerators that are not here, compiled for them where that is possible'
)
OPTIONS = (
  shared.CONFIG
  | shared.ALLOCATION
  | {
    '--topology': shared.value(
      'CHIP:SHAPE', 'such as v5e:4x4, v6e:8x8, v5p:2x4x4, 2*v5e:16x16 or h200:8'
    ),
    '--params': shared.value(
      'N', 'parameters of the model that growth ends with, such as 7e9', float
    ),
    '--tokens': shared.value(
      'N', 'tokens of training it from scratch, such as 2e12', float
    ),
    '--factor': shared.value(
      'G', 'how many times its base model it is (default: 4)', float
    ),
  }
  | shared.OUT
)


def run(options: Any) -> None:
  sizes = (options.params, options.tokens, options.factor)
  others = (options.out, options.topology, options.allocation)
  if options.config is None and not options.overrides:
    if any(others):
      raise errors.ConfigError(
        '--out, --topology and --allocation are of a plan of a configuration;'
        ' name it with --config=FILE'
      )
    from satjax.lab.plan import growth as plan_growth

    print(plan_growth.render(plan_growth.plan(*sizes)))
    return
  if options.config is None or any(size is not None for size in sizes):
    raise errors.ConfigError(
      '--params, --tokens and --factor plan growth without a configuration;'
      ' name either --config=FILE or these'
    )
  if options.out and not options.topology:
    raise errors.ConfigError('--out=PATH is for a plan with --topology')
  from satjax.lab.bench import table as bench_table
  from satjax.lab.plan import devices as plan_devices
  from satjax.lab.plan import stretches
  from satjax.lab.plan import table as plan_table
  from satjax.lab.plan import topology as plan_topology

  bench_table.check(options.out)
  plan_devices.use_host()
  config = shared.load_config(options)
  ladder = stretches.render(stretches.plan(config))
  if not options.topology:
    print(f'{ladder}\n\n{plan_table.render_memory(config)}')
    return
  topology = plan_devices.parse(options.topology)
  result = plan_topology.plan(config, topology, console.say)
  text = f'{ladder}\n\n{plan_table.render(result)}'
  print(text)
  if options.out:
    bench_table.write(options.out, result, text + '\n')
