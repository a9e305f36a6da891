"""satjax plan."""

from typing import Any

from satjax import errors
from satjax.commands import shared

SUMMARY = (
  'the ladder of a configuration before it runs: what each rung keeps, and'
  ' the speed-up that its FLOPs allow; or, from --params and --tokens, when'
  ' to grow a model and what that saves'
)
OPTIONS = shared.CONFIG | {
  '--params': shared.number(
    'N', float, 'parameters of the model that growth ends with, such as 7e9'
  ),
  '--tokens': shared.number(
    'N', float, 'tokens of training it from scratch, such as 2e12'
  ),
  '--factor': shared.number(
    'G', float, 'how many times its base model it is (default: 4)'
  ),
}


def run(options: Any) -> None:
  sizes = (options.params, options.tokens, options.factor)
  if options.config is None and not options.overrides:
    from satjax import plan_growth

    print(plan_growth.render(plan_growth.plan(*sizes)))
    return
  from satjax import config_file, plan

  if options.config is None or any(size is not None for size in sizes):
    raise errors.ConfigError(
      '--params, --tokens and --factor plan growth without a configuration;'
      ' name either --config=FILE or these'
    )
  config = config_file.load(options.config, options.overrides)
  print(plan.render(plan.plan(config)))
