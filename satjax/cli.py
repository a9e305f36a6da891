"""The command line: finds the command, and turns errors into exit codes.

A command is a module of `satjax.commands`: a SUMMARY, its OPTIONS as argparse
takes them, and `run(options)`, which imports what it needs, so that help is
instant.
"""

import argparse
from collections.abc import Sequence
import importlib
import os
import sys
import textwrap
import traceback
from typing import Any

from satjax import errors, hub, runtime

COMMANDS = (
  *('train', 'prepare', 'preview', 'evaluate', 'generate', 'export'),
  *('fetch', 'inspect', 'grow', 'plan', 'probe', 'report', 'bench'),
  'experiment',
)
# Those that run long enough to tune their process, and those that compile.
_LONG = ('train', 'bench', 'experiment')
_COMPILES = (*_LONG, 'evaluate', 'generate', 'plan', 'probe')
_DESCRIPTION = """\
satjax makes training large language models cheaper: sparsity-accelerated
training (SAT) and model growth, in JAX.

  satjax train --config=configs/tiny.py --workdir=runs/tiny
  satjax plan --config=configs/quickstart.py
  satjax plan --params=7e9 --tokens=2e12
  satjax generate --workdir=runs/tiny --prompt='def '
  satjax export --workdir=runs/tiny --out=models/tiny
  satjax grow --model=models/tiny --out=models/deep --operator=stack --factor=2
  satjax fetch HuggingFaceTB/SmolLM2-135M-Instruct --out=models/smollm2
  satjax probe --model=models/smollm2 --saving=0.3 --out=probe.json
  satjax report runs/tiny --out=report.html
  satjax experiment experiments/sat_rate.py --workdir=runs/experiments

`satjax COMMAND --help` says more. Every key of a configuration can be given on
the command line, such as --config.train.num_steps=100; configs/base.py lists
them with their units.
"""
_EXIT_CODES = """\
exit codes: 0 done; 75 stopped and saved, run the same command again; 78 bad
configuration; 65 bad data or checkpoint; 74 input/output; 70 the loss is no
longer finite, or an internal error
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit code."""
  arguments = list(sys.argv[1:] if argv is None else argv)
  overrides = [a for a in arguments if a.startswith('--config.')]
  parser = _parser()
  if problem := _problem(arguments):
    return _fail(problem, errors.ConfigError.exit_code)
  options = parser.parse_args([a for a in arguments if a not in overrides])
  if not hasattr(options, 'run'):
    parser.print_help()
    return 0
  if overrides and not options.takes_overrides:
    parser.error(f'{overrides[0]}: this command takes no configuration')
  options.overrides = overrides
  if options.command in _COMPILES:
    runtime.prepare()
  try:
    if getattr(options, 'model', None):
      options.model = os.fspath(hub.local(options.model))
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
  """Console script; does not wait for compilations in the background.

  Nor, after an error, for other processes of the run: they see it end.
  """
  if sys.argv[1:2] and sys.argv[1] in _LONG:
    runtime.use_huge_pages()
  sys.unraisablehook = _report
  try:
    code = main()
  except Exception:
    traceback.print_exc()
    code = 70
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _report(unraisable: Any) -> None:
  """What threads of C++ say; not what is left of a save that failed."""
  if 'Event loop is closed' not in str(unraisable.exc_value):
    sys.__unraisablehook__(unraisable)


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
  for name in COMMANDS:
    module = importlib.import_module(f'satjax.commands.{name}')
    command = commands.add_parser(
      name,
      help=module.SUMMARY,
      description=textwrap.fill(f'satjax {name}: {module.SUMMARY}.', 80),
      **shared,
    )
    command.set_defaults(
      command=name,
      run=module.run,
      takes_overrides='--config' in module.OPTIONS
      or hasattr(module, 'TAKES_OVERRIDES'),
    )
    for flag, option in module.OPTIONS.items():
      command.add_argument(flag, **option)
  return parser


def _problem(arguments: Sequence[str]) -> str:
  """What is wrong with arguments that argparse would misread, or ''."""
  names = [a.partition('=')[0] for a in arguments if a.startswith('--')]
  for name in names:
    if name.startswith('--config.') and name in arguments:
      return (
        f'{name}: write {name}=VALUE, joined, such as'
        ' --config.train.num_steps=100'
      )
  if arguments[:1] and arguments[0] in COMMANDS:
    module = importlib.import_module(f'satjax.commands.{arguments[0]}')
    for flag, option in module.OPTIONS.items():
      if names.count(flag) > 1 and option.get('action') != 'append':
        return f'{flag} is given {names.count(flag)} times; keep one of them'
  return ''


def _fail(message: object, code: int) -> int:
  print(f'satjax: {message}', file=sys.stderr)
  return code


if __name__ == '__main__':
  entry()
