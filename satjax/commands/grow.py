"""satjax grow."""

import ast
import os
from typing import Any

from satjax import errors
from satjax.commands import shared

SUMMARY = (
  'write a deeper or wider copy of a Hugging Face directory, tensor by'
  ' tensor, and say what it is made of'
)
# The option of `specs` that each one sets.
_SPECS = {
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
}
OPTIONS = {
  '--model': {
    'metavar': 'MODEL_DIR',
    'help': 'Hugging Face directory',
    'required': True,
  },
  '--out': {
    'metavar': 'MODEL_DIR',
    'help': 'directory to write',
    'required': True,
  },
  '--seed': shared.number(
    'N',
    int,
    'of new weights, noise and random duplicates (default: 0)',
    default=0,
  ),
  '--factor': shared.number(
    'G', float, 'times as many layers; or as long rows'
  ),
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
  '--target_layers': shared.number('N', int, 'layers afterwards'),
  '--layer_map': {
    'metavar': 'MAP',
    'help': 'the source of each layer, counted from 0, such as 0,1,0,1',
  },
  '--pattern': {
    'metavar': 'PATTERN',
    'help': 'of partial: layers counted from 1, such as 12-345*7-6',
  },
  '--layers': shared.number('N', int, 'of gradual and midas: layers to repeat'),
  '--drop': shared.number('N', int, 'of solar: layers that each copy loses'),
  '--group': shared.number(
    'N', int, 'of llama_pro: layers before each new one'
  ),
  '--width_factor': shared.number('G', float, 'times as wide'),
  '--target_embed_dim': shared.number('N', int, 'residual width afterwards'),
  '--target_heads': shared.number('N', int, 'query heads afterwards'),
  '--target_kv_heads': shared.number('N', int, 'key/value heads afterwards'),
  '--target_mlp_dim': shared.number('N', int, 'MLP channels afterwards'),
  '--split': {
    'metavar': 'KIND',
    'help': 'of what duplicates are read with: even, uneven or noisy',
  },
  '--noise': shared.number(
    'A', float, 'share of noise mixed into the matrices'
  ),
  '--noise_on': {'metavar': 'WHERE', 'help': 'all or new matrices'},
  '--branch_scale': shared.number(
    'S', float, 'factor on what new layers write'
  ),
  '--rope_theta': shared.number(
    'THETA', float, 'of length: base of the positions'
  ),
  '--probe': {
    'choices': ('auto', 'on', 'off'),
    'default': 'auto',
    'help': 'run both models on a short text and print the largest change of a'
    ' logit; auto: if there is memory enough (default)',
  },
}


def run(options: Any) -> None:
  # Growth off the run needs no accelerator, and takes none from a run.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from satjax import console
  from satjax.interop import grow, grow_table, probe

  specs = _specs(options)
  with console.Progress('grow') as bar:
    summary = grow.grow(
      options.model, options.out, specs, seed=options.seed, start=bar.start
    )
  print(f'wrote {options.out}\n\n{grow_table.render(summary)}', flush=True)
  if options.probe != 'off':
    reason = options.probe == 'auto' and probe.why_not(options.out)
    print(reason or probe.measure(options.model, options.out))


def _specs(options: Any) -> tuple[Any, ...]:
  """The growth operators that a user names, for `specs`.

  Args:
    options: with an attribute for each of `_SPECS`; None: not given.

  Raises:
    ConfigError: they cannot be read, or name no operator.
  """
  given = {
    flag: value
    for flag in _SPECS
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
  return ((name, {_SPECS[flag]: value for flag, value in given.items()}),)


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
