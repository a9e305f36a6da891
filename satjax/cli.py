"""The command line: commands to functions, nothing else.

Imports happen inside the commands, so that help is instant.
"""

import argparse
from collections.abc import Sequence
import json
import os
import sys

from satjax import errors

_DESCRIPTION = """\
satjax makes training large language models cheaper: sparsity-accelerated
training (SAT) and model growth, in JAX.

  satjax train --config=configs/tiny.py --workdir=runs/tiny
  satjax generate --workdir=runs/tiny --prompt='def '
  satjax export --workdir=runs/tiny --out=models/tiny

`satjax COMMAND --help` says more. Every key of a configuration can be given on
the command line, such as --config.train.num_steps=100; configs/base.py lists
them with their units.
"""
_EXIT_CODES = """\
exit codes: 0 done; 75 stopped and saved, run the same command again; 78 bad
configuration; 65 bad data or checkpoint; 74 input/output; 70 the loss is no
longer finite, or an internal error
"""


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
  text = generate.generate(
    model.config,
    model.params,
    tokenizer,
    options.prompt,
    max_tokens=options.max_tokens,
    temperature=options.temperature,
    seed=options.seed,
  )
  print(options.prompt + text)


def _export(options) -> None:
  from satjax.interop import models
  from satjax.train import saved

  run = saved.restore(options.workdir, options.step)
  models.save(
    run.model,
    options.out,
    dtype=options.dtype,
    tokenizer=run.tokenizer,
    seq_len=run.config.data.seq_len,
  )
  print(f'wrote step {run.step} of {options.workdir} to {options.out}')


def _bench(options) -> None:
  from satjax import bench, bench_table, config_file

  config = config_file.load(options.config, options.overrides)
  result = bench.bench(config, rounds=options.rounds, out=options.out)
  print(bench_table.render(result))


_OPTIONS = {
  '--config': {
    'metavar': 'FILE',
    'required': True,
    'help': 'Python file with get_config(), or the config.json of a run',
  },
  '--workdir': {'metavar': 'DIR', 'help': 'folder of a run'},
  '--model': {
    'metavar': 'MODEL_DIR',
    'help': 'Hugging Face directory, instead of --workdir',
  },
  '--step': {
    'metavar': 'N',
    'type': int,
    'help': 'checkpoint to take, in completed steps (default: the newest)',
  },
  '--out': {'metavar': 'PATH', 'help': 'what to write'},
  '--data': {
    'metavar': 'SOURCE',
    'action': 'append',
    'help': 'held-out text, such as stdlib:docs or text:books/*.txt; may be'
    ' given again (default: that of the run, or stdlib:docs)',
  },
  '--tokenizer': {
    'metavar': 'TOKENIZER',
    'default': 'byte',
    'help': 'of a --model directory (default: byte)',
  },
  '--seq_len': {
    'metavar': 'N',
    'type': int,
    'default': 256,
    'help': 'tokens in a row, for a --model directory (default: 256)',
  },
  '--batches': {
    'metavar': 'N',
    'type': int,
    'help': 'batches of each source, at most (default: as the run, or 16)',
  },
  '--prompt': {'metavar': 'TEXT', 'default': '', 'help': 'text to continue'},
  '--max_tokens': {
    'metavar': 'N',
    'type': int,
    'default': 128,
    'help': 'new tokens, at most (default: 128)',
  },
  '--temperature': {
    'metavar': 'T',
    'type': float,
    'default': 0.0,
    'help': '0: always the most likely token (default); 1: sample',
  },
  '--seed': {
    'metavar': 'N',
    'type': int,
    'default': 0,
    'help': 'of the sampling (default: 0)',
  },
  '--dtype': {
    'choices': ('float32', 'bfloat16'),
    'default': 'float32',
    'help': 'of the stored weights (default: float32)',
  },
  '--rounds': {
    'metavar': 'N',
    'type': int,
    'default': 21,
    'help': 'paired rounds (default: 21)',
  },
}
_MODEL = ('--workdir', '--step', '--model', '--tokenizer')

# Command: function, summary, options, of which these are required.
_COMMANDS = {
  'train': (
    _train,
    'train a model, or go on with the run in --workdir',
    ('--config', '--workdir'),
    ('--workdir',),
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
    'continue a text with a run or a model',
    (*_MODEL, '--prompt', '--max_tokens', '--temperature', '--seed'),
    (),
  ),
  'export': (
    _export,
    'write a run as a Hugging Face directory: config.json, safetensors and'
    ' tokenizer',
    ('--workdir', '--step', '--out', '--dtype'),
    ('--workdir', '--out'),
  ),
  'bench': (
    _bench,
    'paired step times: dense, every rung, its compact twin, and PyTorch where'
    ' that is installed; --out writes JSON, and Markdown beside it',
    ('--config', '--rounds', '--out'),
    (),
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
    'epilog': _EXIT_CODES,
    'formatter_class': argparse.RawDescriptionHelpFormatter,
    'allow_abbrev': False,
  }
  parser = argparse.ArgumentParser(
    prog='satjax', description=_DESCRIPTION, **shared
  )
  commands = parser.add_subparsers(metavar='COMMAND')
  for name, (run, summary, flags, required) in _COMMANDS.items():
    command = commands.add_parser(
      name, help=summary, description=f'satjax {name}: {summary}.', **shared
    )
    command.set_defaults(run=run)
    for flag in flags:
      extra = {'required': True} if flag in required else {}
      command.add_argument(flag, **(_OPTIONS[flag] | extra))
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
