"""What the commands say of themselves, and the options that they share."""

import ast
from typing import Any

from satjax import errors

DESCRIPTION = """\
satjax makes training large language models cheaper: sparsity-accelerated
training (SAT) and model growth, in JAX.

  satjax train --config=configs/tiny.py --workdir=runs/tiny
  satjax plan --config=configs/quickstart.py
  satjax plan --params=7e9 --tokens=2e12
  satjax generate --workdir=runs/tiny --prompt='def '
  satjax export --workdir=runs/tiny --out=models/tiny
  satjax grow --model=models/tiny --out=models/deep --operator=stack --factor=2
  satjax report runs/tiny --out=report.html

`satjax COMMAND --help` says more. Every key of a configuration can be given on
the command line, such as --config.train.num_steps=100; configs/base.py lists
them with their units.
"""
EXIT_CODES = """\
exit codes: 0 done; 75 stopped and saved, run the same command again; 78 bad
configuration; 65 bad data or checkpoint; 74 input/output; 70 the loss is no
longer finite, or an internal error
"""

OPTIONS = {
  '--config': {
    'metavar': 'FILE',
    'help': 'Python file with get_config(), or the config.json of a run;'
    ' FILE.py:ARGUMENT calls get_config(ARGUMENT)',
  },
  '--params': {
    'metavar': 'N',
    'type': float,
    'help': 'parameters of the model that growth ends with, such as 7e9',
  },
  '--tokens': {
    'metavar': 'N',
    'type': float,
    'help': 'tokens of training it from scratch, such as 2e12',
  },
  '--factor': {
    'metavar': 'G',
    'type': float,
    'help': 'how many times its base model it is (default: 4)',
  },
  'workdirs': {'metavar': 'DIR', 'nargs': '+', 'help': 'folders of runs'},
  '--workdir': {'metavar': 'DIR', 'help': 'folder of a run'},
  '--model': {
    'metavar': 'MODEL_DIR',
    'help': 'Hugging Face directory, instead of --workdir',
  },
  '--step': {
    'metavar': 'N',
    'help': 'checkpoint to take, in completed steps, or the model on either'
    ' side of a growth: before_growth:N, after_growth:N (default: the newest)',
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
    'help': 'of a --model directory: byte (default), hf:PATH of a'
    ' tokenizer.json or a directory that has one, or sentencepiece:PATH of a'
    ' .model file',
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
  '--prompt': {
    'metavar': 'TEXT',
    'action': 'append',
    'help': 'text to continue (default: none); may be given several times',
  },
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
  '--top_p': {
    'metavar': 'P',
    'type': float,
    'default': 1.0,
    'help': 'sample among the most likely tokens alone that have this'
    ' probability together (default: 1, all)',
  },
  '--stop': {
    'metavar': 'TEXT',
    'action': 'append',
    'default': [],
    'help': 'end before this text; may be given several times',
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
  '--rounds': {
    'metavar': 'N',
    'type': int,
    'default': 21,
    'help': 'paired rounds (default: 21)',
  },
}

# Of `grow`: the option of `operator_specs` that each one sets.
GROWTH = {
  '--operator': None,
  '--operators': None,
  '--factor': 'factor',
  '--target_layers': 'num_layers',
  '--layer_map': 'layer_map',
  '--pattern': 'pattern',
  '--layers': 'layers',
  '--drop': 'drop',
  '--group': 'group',
  '--width_factor': 'width_factor',
  '--target_embed_dim': 'embed_dim',
  '--target_heads': 'num_heads',
  '--target_kv_heads': 'num_kv_heads',
  '--target_mlp_dim': 'mlp_dim',
  '--split': 'split',
  '--noise': 'noise',
  '--noise_on': 'noise_on',
  '--branch_scale': 'branch_scale',
  '--rope_theta': 'rope_theta',
  '--faithful_to_release': 'faithful_to_release',
}


def _number(metavar: str, kind: type, text: str) -> dict[str, Any]:
  return {'metavar': metavar, 'type': kind, 'help': text}


OPTIONS |= {
  'grow --model': {'metavar': 'MODEL_DIR', 'help': 'Hugging Face directory'},
  'grow --out': {'metavar': 'MODEL_DIR', 'help': 'directory to write'},
  'grow --seed': _number(
    'N', int, 'of new weights, noise and random duplicates (default: 0)'
  )
  | {'default': 0},
  'grow --factor': _number('G', float, 'times as many layers; or as long rows'),
  '--operator': {
    'metavar': 'NAME',
    'help': 'stack, interpolate, partial, gradual, midas, solar, llama_pro,'
    ' map (default with --layer_map), direct, fpi, aki, zero, random or length',
  },
  '--operators': {
    'metavar': 'TUPLE',
    'help': 'one operator or several, one after the other, as configurations'
    " write them: \"(('direct', 2), ('stack', 2))\"",
  },
  '--target_layers': _number('N', int, 'layers afterwards'),
  '--layer_map': {
    'metavar': 'MAP',
    'help': 'the source of each layer, counted from 0, such as 0,1,0,1',
  },
  '--pattern': {
    'metavar': 'PATTERN',
    'help': 'of partial: layers counted from 1, such as 12-345*7-6',
  },
  '--layers': _number('N', int, 'of gradual and midas: layers to repeat'),
  '--drop': _number('N', int, 'of solar: layers that each copy loses'),
  '--group': _number('N', int, 'of llama_pro: layers before each new one'),
  '--width_factor': _number('G', float, 'times as wide'),
  '--target_embed_dim': _number('N', int, 'residual width afterwards'),
  '--target_heads': _number('N', int, 'query heads afterwards'),
  '--target_kv_heads': _number('N', int, 'key/value heads afterwards'),
  '--target_mlp_dim': _number('N', int, 'MLP channels afterwards'),
  '--split': {
    'metavar': 'KIND',
    'help': 'of what duplicates are read with: even, uneven or noisy',
  },
  '--noise': _number('A', float, 'share of noise mixed into the matrices'),
  '--noise_on': {'metavar': 'WHERE', 'help': 'all or new matrices'},
  '--branch_scale': _number('S', float, 'factor on what new layers write'),
  '--rope_theta': _number('THETA', float, 'of length: base of the positions'),
  '--faithful_to_release': {
    'action': 'store_true',
    'default': None,
    'help': "of zero and direct in width: what the authors' released code does",
  },
  '--probe': {
    'choices': ('auto', 'on', 'off'),
    'default': 'auto',
    'help': 'run both models on a short text and print the largest change of a'
    ' logit; auto: if there is memory enough (default)',
  },
}


def growth_specs(options: Any) -> tuple[Any, ...]:
  """The growth operators that a user names, for `operator_specs`.

  Args:
    options: with an attribute for each of `GROWTH`; None: not given.

  Raises:
    ConfigError: they can not be read, or name no operator.
  """
  given = {
    flag: value
    for flag in GROWTH
    if (value := getattr(options, flag.removeprefix('--'))) is not None
  }
  name, written = given.pop('--operator', None), given.pop('--operators', None)
  if written is not None:
    if name or given:
      raise errors.ConfigError(
        f'--operators={written} says everything; leave out'
        f' {"--operator" if name else next(iter(given))}'
      )
    return _literal_specs(written)
  if '--layer_map' in given:
    name = name or 'map'
    given['--layer_map'] = _layer_map(given['--layer_map'])
  if not name:
    raise errors.ConfigError(
      'no growth operator; name --operator=NAME, such as --operator=stack'
      ' --factor=2, or --layer_map=0,1,0,1'
    )
  return ((name, {GROWTH[flag]: value for flag, value in given.items()}),)


def _layer_map(text: str) -> tuple[int, ...]:
  try:
    return tuple(int(part) for part in text.strip(',').split(','))
  except ValueError:
    raise errors.ConfigError(
      f'--layer_map={text}; allowed: the source of every target layer, such as'
      ' 0,1,0,1'
    ) from None


def _literal_specs(text: str) -> tuple[Any, ...]:
  try:
    specs = ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    specs = None
  if not isinstance(specs, (tuple, list)) or not specs:
    raise errors.ConfigError(
      f'--operators={text}; allowed: a tuple such as ("stack", 2) or (("direct"'
      ', 2), ("stack", 2))'
    )
  return (specs,) if isinstance(specs[0], str) else tuple(specs)
