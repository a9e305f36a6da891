"""Options that several commands have, and what they open."""

from typing import Any

from satjax import errors

Option = dict[str, Any]


def number(metavar: str, kind: type, text: str, **more: Any) -> Option:
  """An option that takes a number."""
  return {'metavar': metavar, 'type': kind, 'help': text, **more}


def required(options: dict[str, Option], *flags: str) -> dict[str, Option]:
  """The options, of which some have to be given."""
  return {
    flag: option | {'required': True} if flag in flags else option
    for flag, option in options.items()
  }


CONFIG = {
  '--config': {
    'metavar': 'FILE',
    'help': 'Python file with get_config(), or the config.json of a run;'
    ' FILE.py:ARGUMENT calls get_config(ARGUMENT)',
  },
}
WORKDIR = {'--workdir': {'metavar': 'DIR', 'help': 'folder of a run'}}
STEP = {
  '--step': {
    'metavar': 'N',
    'help': 'checkpoint to take, in completed steps, or the model on either'
    ' side of a growth: before_growth:N, after_growth:N (default: the newest)',
  },
}
OUT = {'--out': {'metavar': 'PATH', 'help': 'what to write'}}
TOKENIZER = {
  '--tokenizer': {
    'metavar': 'TOKENIZER',
    'default': 'byte',
    'help': 'of a --model directory: byte (default), hf:PATH of a'
    ' tokenizer.json or a directory that has one, or sentencepiece:PATH of a'
    ' .model file',
  },
}
# Of a run in several processes (`distributed.processes`).
PROCESSES = {
  '--coordinator': {
    'metavar': 'HOST:PORT',
    'help': 'of process 0, if the run has several; or auto, to ask the'
    ' launcher. SLURM, Open MPI, GKE and TPU pods that say so in the'
    ' environment need no option',
  },
  '--num_processes': number('N', int, 'processes of the run'),
  '--process_id': number('I', int, 'number of this process, from 0'),
  '--heartbeat': number(
    'SECONDS',
    int,
    'silence after which a process counts as lost (default: 60)',
    default=60,
  ),
}
# Of commands that take a run or a model directory; see `is_run`.
MODEL = {
  **WORKDIR,
  **STEP,
  '--model': {
    'metavar': 'MODEL_DIR',
    'help': 'Hugging Face directory, instead of --workdir',
  },
  **TOKENIZER,
}


# How records become text, where no configuration says so.
TEXT = {
  '--columns': {
    'metavar': 'NAMES',
    'type': lambda names: tuple(filter(None, names.split(','))),
    'default': (),
    'help': 'field of a record with its text or messages, or two, of prompt and'
    ' answer, such as question,answer (default: the usual names)',
  },
  '--template': {
    'choices': ('plain', 'alpaca', 'llama2', 'llama3', 'chatml'),
    'default': 'plain',
    'help': 'how pairs and chats are written (default: plain; a run knows its'
    ' own)',
  },
}


def is_run(options: Any) -> bool:
  """Whether a run is meant, and not a model directory.

  Raises:
    ConfigError: both are named, or neither.
  """
  if bool(options.workdir) == bool(options.model):
    raise errors.ConfigError('name one of --workdir=DIR and --model=MODEL_DIR')
  return bool(options.workdir)


def open_model(options: Any) -> tuple[Any, Any]:
  """The model and the tokenizer that the options of `MODEL` name."""
  from satjax.data import tokenizers
  from satjax.interop import models
  from satjax.train import saved

  if is_run(options):
    run = saved.restore(options.workdir, options.step)
    return run.model, run.tokenizer
  tokenizer = tokenizers.get_tokenizer(options.tokenizer)
  return models.load(options.model, tokenizer), tokenizer
