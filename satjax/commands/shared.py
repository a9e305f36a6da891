"""Options that several commands have, and what they open."""

from collections.abc import Callable, Sequence
from typing import Any

from satjax import console, errors

Option = dict[str, Any]


def value(
  metavar: str, text: str, kind: Callable[[str], Any] = str, **more: Any
) -> Option:
  """An option with a value, and what the value is for."""
  return {'metavar': metavar, 'help': text, 'type': kind, **more}


def preset(metavar: str, text: str, default: float, **more: Any) -> Option:
  """An option with a number, and the number that it has by default."""
  text = f'{text} (default: {default})'
  return value(metavar, text, type(default), default=default, **more)


def flag(text: str) -> Option:
  """An option without a value: off, unless it is given."""
  return {'action': 'store_true', 'help': text}


def choice(choices: Sequence[str], text: str, **more: Any) -> Option:
  """An option with one of a few values."""
  return {'choices': choices, 'help': text, **more}


def required(options: dict[str, Option], *flags: str) -> dict[str, Option]:
  """The options, of which some have to be given."""
  return {
    flag: option | {'required': True} if flag in flags else option
    for flag, option in options.items()
  }


CONFIG = {
  '--config': value(
    'FILE',
    'Python file with get_config(), or the config.json of a run;'
    ' FILE.py:ARGUMENT calls get_config(ARGUMENT); configs/tiny.py and its like'
    ' come with satjax, and are found from any folder',
  )
}
# Rates by layer that a probe found: see `load_config`.
ALLOCATION = {
  '--allocation': value(
    'FILE',
    'of `satjax probe --out=FILE.json`: sets config.sparsity as it recommends',
  )
}
WORKDIR = {'--workdir': value('DIR', 'folder of a run')}
STEP = {
  '--step': value(
    'N',
    'checkpoint to take, in completed steps; best: of the lowest held-out'
    ' loss; or the model on either side of a growth: before_growth:N,'
    ' after_growth:N (default: the newest)',
  )
}
OUT = {'--out': value('PATH', 'what to write')}
TOKENIZER = {
  '--tokenizer': value(
    'TOKENIZER',
    'byte, hf:PATH of a tokenizer.json or a directory that has one, or'
    ' sentencepiece:PATH of a .model file (default: that of the model'
    ' directory or of the run; byte where there is none)',
    default='',
  )
}
# Of a run in several processes (`distributed.processes`).
PROCESSES = {
  '--coordinator': value(
    'HOST:PORT',
    'of process 0, if the run has several; or auto, to ask the'
    ' launcher. SLURM, Open MPI, GKE and TPU pods that say so in the'
    ' environment need no option',
  ),
  '--num_processes': value('N', 'processes of the run', int),
  '--process_id': value('I', 'number of this process, from 0', int),
  '--heartbeat': preset(
    'SECONDS', 'silence after which a process counts as lost', 60
  ),
}
# Of commands that take a run or a model directory; see `is_run`.
MODEL = {
  **WORKDIR,
  **STEP,
  '--model': value(
    'MODEL_DIR', 'Hugging Face directory, or id on its hub, not --workdir'
  ),
  **TOKENIZER,
}


# How records become text, where no configuration says so.
TEXT = {
  '--columns': value(
    'NAMES',
    'field of a record with its text or messages, or two, of prompt and'
    ' answer, such as question,answer (default: the usual names)',
    lambda names: tuple(filter(None, names.split(','))),
    default=(),
  ),
  '--template': value(
    'NAME',
    'how pairs and chats are written: model, as the tokenizer has it;'
    ' model:NAME; plain, bare, alpaca, llama2, llama3 or chatml (default: auto,'
    ' model if there is one, else plain; a run and its export know their own)',
    default='auto',
  ),
  '--reasoning': choice(
    ('template', 'think', 'drop'),
    'what becomes of the reasoning of messages: written as the template has it'
    ' (default); before the answer in <think> tags; left out',
    default='template',
  ),
}


def is_run(options: Any) -> bool:
  """Whether a run is meant, and not a model directory.

  Raises:
    ConfigError: both are named, or neither.
  """
  if bool(options.workdir) == bool(options.model):
    raise errors.ConfigError('name one of --workdir=DIR and --model=MODEL_DIR')
  return bool(options.workdir)


def load_config(options: Any, begun: Any = None) -> Any:
  """The configuration that options name, with the allocation if there is one.

  `begun`: as of `settings.load`.
  """
  from satjax.config import allocation
  from satjax.interop import settings
  from satjax.lab.probe import allocation as probed

  overrides, forward = options.overrides, 'auto'
  is_given = options.allocation is not None
  if is_given:
    overrides = allocation.overrides(options.allocation, overrides)
    forward = allocation.FORWARD
  config = settings.load(options.config, overrides, begun, forward)
  if is_given:
    allocation.check(options.allocation, config)
    if said := probed.falls_short(options.allocation, config):
      console.say(said)
  return config


def open_model(options: Any) -> tuple[Any, Any]:
  """The model and the tokenizer that the options of `MODEL` name.

  Of a directory, the tokenizer that lies there, unless another is named.
  """
  from satjax.data import tokenizers
  from satjax.interop import models
  from satjax.train import saved

  if is_run(options):
    run = saved.restore(options.workdir, options.step, options.tokenizer)
    return run.model, run.tokenizer
  spec = options.tokenizer or models.tokenizer_spec(options.model)
  tokenizer = tokenizers.get_tokenizer(spec)
  return models.load(options.model, tokenizer), tokenizer


def open_subject(options: Any) -> Any:
  """The same as the subject of an evaluation, which knows how text is read."""
  from satjax.train import subjects

  if is_run(options):
    return subjects.of_run(options.workdir, options.step, options.tokenizer)
  found = open_model(options)
  template = template_of(options, found[1])
  return subjects.of_model(options.model, *found, template)


def template_of(options: Any, tokenizer: Any) -> str:
  """How chats of a model directory are written: as it says, by default."""
  from satjax.interop import models

  if getattr(options, 'template', None) not in (None, 'auto'):
    return options.template
  return models.template_of(options.model, tokenizer)
