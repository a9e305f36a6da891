"""satjax grow."""

import os
from typing import Any

from satjax import errors
from satjax.commands import shared

SUMMARY = (
  'write a deeper or wider copy of a Hugging Face directory, tensor by'
  ' tensor, and say what it is made of'
)
# Options of an operator; `dest`, or else the name, is how `specs` calls it.
_OF_OPERATOR = {
  '--factor': shared.value('G', 'times as many layers; or as long rows', float),
  '--target_layers': shared.value(
    'N', 'layers afterwards', int, dest='num_layers'
  ),
  '--layer_map': shared.value(
    'MAP', 'the source of each layer, counted from 0, such as 0,1,0,1'
  ),
  '--pattern': shared.value(
    'PATTERN', 'of partial: layers counted from 1, such as 12-345*7-6'
  ),
  '--layers': shared.value('N', 'of gradual and midas: layers to repeat', int),
  '--drop': shared.value('N', 'of solar: layers that each copy loses', int),
  '--group': shared.value('N', 'of llama_pro: layers before each new one', int),
  '--width_factor': shared.value('G', 'times as wide', float),
  '--target_embed_dim': shared.value(
    'N', 'residual width afterwards', int, dest='embed_dim'
  ),
  '--target_heads': shared.value(
    'N', 'query heads afterwards', int, dest='num_heads'
  ),
  '--target_kv_heads': shared.value(
    'N', 'key/value heads afterwards', int, dest='num_kv_heads'
  ),
  '--target_mlp_dim': shared.value(
    'N', 'MLP channels afterwards', int, dest='mlp_dim'
  ),
  '--split': shared.value(
    'KIND', 'of what duplicates are read with: even, uneven or noisy'
  ),
  '--noise': shared.value('A', 'share of noise mixed into the matrices', float),
  '--noise_on': shared.value('WHERE', 'all or new matrices'),
  '--branch_scale': shared.value('S', 'factor on what new layers write', float),
  '--rope_theta': shared.value(
    'THETA', 'of length: base of the positions', float
  ),
}
OPTIONS = {
  '--model': shared.value('MODEL_DIR', 'Hugging Face directory', required=True),
  '--out': shared.value('MODEL_DIR', 'directory to write', required=True),
  '--seed': shared.preset(
    'N', 'of new weights, noise and random duplicates', 0
  ),
  '--operator': shared.value(
    'NAME',
    'stack, interpolate, partial, gradual, midas, solar, llama_pro,'
    ' map (default with --layer_map), direct, fpi, aki, zero, random or length',
  ),
  **_OF_OPERATOR,
  '--vocab_multiple': shared.preset(
    'N',
    'add words, the mean of the others, until every token of the tokenizer is'
    ' one and N divides their number, such as 64; needs no operator; 0: none',
    0,
  ),
  '--probe': shared.choice(
    ('auto', 'on', 'off'),
    'run both models on a short text and print the largest change of a'
    ' logit; auto: if there is memory enough (default)',
    default='auto',
  ),
}


def run(options: Any) -> None:
  # Growth off the run needs no accelerator, and takes none from a run.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from satjax.interop import grow, probe

  specs = _specs(options)
  summary = grow.grow(
    options.model,
    options.out,
    specs,
    seed=options.seed,
    vocab_multiple=options.vocab_multiple,
  )
  print(f'wrote {options.out}\n\n{grow.render(summary)}', flush=True)
  if options.probe != 'off':
    reason = options.probe == 'auto' and probe.why_not(options.out)
    print(reason or probe.measure(options.model, options.out))


def _specs(options: Any) -> tuple[Any, ...]:
  """The growth operators that a user names, for `specs`.

  Raises:
    ConfigError: they cannot be read, or name no operator.
  """
  given = {}
  for flag, option in _OF_OPERATOR.items():
    name = option.get('dest', flag.removeprefix('--'))
    if (value := getattr(options, name)) is not None:
      given[name] = value
  name = options.operator
  if 'layer_map' in given:
    name = name or 'map'
    given['layer_map'] = _layer_map(given['layer_map'])
  if not name and not given and options.vocab_multiple:
    return ()
  if not name:
    raise errors.ConfigError(
      'no growth operator; name --operator=NAME, such as --operator=stack'
      ' --factor=2, or --layer_map=0,1,0,1'
    )
  return ((name, given),)


def _layer_map(text: str) -> tuple[int, ...]:
  try:
    return tuple(int(part) for part in text.strip(',').split(','))
  except ValueError:
    raise errors.ConfigError(
      f'--layer_map={text}; allowed: the source of every target layer, such as'
      ' 0,1,0,1'
    ) from None
