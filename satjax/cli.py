"""The command line: commands to functions, nothing else.

Imports happen inside the commands, so that help is instant.
"""

import argparse
from collections.abc import Sequence
import json
import os
import sys

from satjax import cli_options, errors


def _train(options) -> None:
  from satjax import config_file
  from satjax.train import loop

  config = config_file.load(options.config, options.overrides)
  loop.train(config, options.workdir)


def _evaluate(options) -> None:
  from satjax import config as config_lib
  from satjax.train import evaluation

  if _is_run(options):
    result = evaluation.evaluate_run(
      options.workdir, options.step, options.data, options.batches
    )
  else:
    sources = tuple(options.data or ['stdlib:docs'])
    data = config_lib.DataConfig(
      train=sources,
      eval=sources,
      tokenizer=options.tokenizer,
      seq_len=options.seq_len,
      held_out=0.05,
      seed=0,
    )
    result = evaluation.evaluate_model(
      options.model, data, max_batches=options.batches or 16
    )
  for source, values in result['eval'].items():
    text = '  '.join(f'{name} {value:.4f}' for name, value in values.items())
    print(f'{source}  {text}')
  print(json.dumps(result))


def _generate(options) -> None:
  from satjax import generate
  from satjax.data import tokenizers
  from satjax.interop import models
  from satjax.train import saved

  if _is_run(options):
    run = saved.restore(options.workdir, options.step)
    model, tokenizer = run.model, run.tokenizer
  else:
    model = models.load(options.model)
    tokenizer = tokenizers.get_tokenizer(options.tokenizer)
  prompts = options.prompt or ['']
  texts = generate.generate(
    model.config,
    model.params,
    tokenizer,
    prompts,
    max_tokens=options.max_tokens,
    temperature=options.temperature,
    top_p=options.top_p,
    seed=options.seed,
    stop=options.stop,
  )
  # An empty line between the texts.
  print('\n\n'.join(map(''.join, zip(prompts, texts))))


def _export(options) -> None:
  from satjax.interop import models
  from satjax.train import saved

  run = saved.restore(options.workdir, options.step)
  models.save(
    run.model,
    options.out,
    dtype=options.dtype,
    tokenizer=run.tokenizer,
    seq_len=run.stage.seq_len,
  )
  print(f'wrote step {run.step} of {options.workdir} to {options.out}')


def _grow(options) -> None:
  # Growth off the run needs no accelerator, and takes none from a run.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from satjax.interop import grow, grow_table, probe, progress

  specs = cli_options.growth_specs(options)
  with progress.shown('grow') as start:
    summary = grow.grow(
      options.model, options.out, specs, seed=options.seed, start=start
    )
  print(f'wrote {options.out}\n\n{grow_table.render(summary)}', flush=True)
  if options.probe != 'off':
    reason = options.probe == 'auto' and probe.why_not(options.out)
    print(reason or probe.measure(options.model, options.out))


def _plan(options) -> None:
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


def _report(options) -> None:
  from satjax import report

  print(report.tables(options.workdirs), end='')
  if options.out:
    report.report(options.workdirs, options.out)
    print(f'wrote {options.out}')


def _bench(options) -> None:
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


_MODEL = ('--workdir', '--step', '--model', '--tokenizer')

# Command: function, summary, options, of which these are required.
_COMMANDS = {
  'train': (
    _train,
    'train a model, or go on with the run in --workdir',
    ('--config', '--workdir'),
    ('--config', '--workdir'),
  ),
  'evaluate': (
    _evaluate,
    'held-out loss, perplexity and bits per byte of a run or a model; the last'
    ' line of stdout is one JSON object',
    (*_MODEL, '--data', '--seq_len', '--batches'),
    (),
  ),
  'generate': (
    _generate,
    'continue a text, or several, with a run or a model',
    (*_MODEL, '--prompt', '--max_tokens', '--temperature', '--top_p')
    + ('--stop', '--seed'),
    (),
  ),
  'export': (
    _export,
    'write a run as a Hugging Face directory: config.json, safetensors and'
    ' tokenizer',
    ('--workdir', '--step', '--out', '--dtype'),
    ('--workdir', '--out'),
  ),
  'grow': (
    _grow,
    'write a deeper or wider copy of a Hugging Face directory, tensor by'
    ' tensor, and say what it is made of',
    ('--model', '--out', *cli_options.GROWTH, '--seed', '--probe'),
    ('--model', '--out'),
  ),
  'plan': (
    _plan,
    'the ladder of a configuration before it runs: what each rung keeps, and'
    ' the speed-up that its FLOPs allow; or, from --params and --tokens, when'
    ' to grow a model and what that saves',
    ('--config', '--params', '--tokens', '--factor'),
    (),
  ),
  'report': (
    _report,
    'tables of some runs; --out writes them with plots as one HTML file',
    ('workdirs', '--out'),
    (),
  ),
  'bench': (
    _bench,
    'paired step times: dense, some omission rates, their compact twins, and'
    ' PyTorch where that is installed; --out writes JSON, and Markdown beside'
    ' it',
    ('--config', '--rates', '--forwards', '--rounds', '--out'),
    ('--config',),
  ),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit code."""
  arguments = list(sys.argv[1:] if argv is None else argv)
  overrides = [a for a in arguments if a.startswith('--config.')]
  parser = _parser()
  options = parser.parse_args([a for a in arguments if a not in overrides])
  if not hasattr(options, 'run'):
    parser.print_help()
    return 0
  if overrides and not hasattr(options, 'config'):
    parser.error(f'{overrides[0]}: this command takes no configuration')
  options.overrides = overrides
  try:
    options.run(options)
  except errors.SatjaxError as error:
    return _fail(error, error.exit_code)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except KeyboardInterrupt:
    return _fail('interrupted; what was saved is whole', 75)
  except MemoryError:
    return _fail('out of memory; lower config.train.microbatch_size', 70)
  except OSError as error:
    return _fail(f'{error}; make room, or choose another path', 74)
  return 0


def entry() -> None:
  """Console script; does not wait for compilations in the background."""
  code = main()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _parser() -> argparse.ArgumentParser:
  shared = {
    'epilog': cli_options.EXIT_CODES,
    'formatter_class': argparse.RawDescriptionHelpFormatter,
    'allow_abbrev': False,
  }
  parser = argparse.ArgumentParser(
    prog='satjax', description=cli_options.DESCRIPTION, **shared
  )
  commands = parser.add_subparsers(metavar='COMMAND')
  for name, (run, summary, flags, required) in _COMMANDS.items():
    command = commands.add_parser(
      name, help=summary, description=f'satjax {name}: {summary}.', **shared
    )
    command.set_defaults(run=run)
    for flag in flags:
      extra = {'required': True} if flag in required else {}
      told = cli_options.OPTIONS.get(f'{name} {flag}')
      told = told or cli_options.OPTIONS[flag]
      command.add_argument(flag, **(told | extra))
  return parser


def _is_run(options) -> bool:
  """Whether a run is meant, and not a model directory."""
  if bool(options.workdir) == bool(options.model):
    raise errors.ConfigError('name one of --workdir=DIR and --model=MODEL_DIR')
  return bool(options.workdir)


def _fail(message: object, code: int) -> int:
  print(f'satjax: {message}', file=sys.stderr)
  return code


if __name__ == '__main__':
  entry()
