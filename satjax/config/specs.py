"""What a user writes of growth, checked: specs to operators; no JAX.

A *spec* is `('stack', 2)` or, with options, `('direct', {'embed_dim': 512,
'split': 'uneven'})`. A tuple of specs is compound growth, one after the other.
A *hop* says when a run grows, by which specs, and for how long it lasts.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from satjax import errors
from satjax.config import history, schema
from satjax.growth import layer_maps
from satjax.growth.operators import (
  Depth,
  Learn,
  Length,
  Operator,
  Width,
  Widths,
)
from satjax.tree import Sizes

# Bounds what a check computes, and the tensor names of a forged config.json.
MAX_LAYERS = 10_000


@dataclasses.dataclass(frozen=True)
class GrowthOptions(schema.Group):
  """Every option that some operator has, with its rule."""

  factor: float = schema.between(1, 1001)
  num_layers: int = schema.between(1, MAX_LAYERS + 1)
  width_factor: float = schema.between(1, 1001)
  embed_dim: int = schema.at_least(1)
  num_heads: int = schema.at_least(1)
  num_kv_heads: int = schema.at_least(1)
  mlp_dim: int = schema.at_least(1)
  pattern: str = schema.rule(lambda v: True, "such as '12-345*7-6'")
  layers: int = schema.at_least(1)
  drop: int = schema.at_least(0)
  group: int = schema.at_least(1)
  layer_map: tuple = schema.rule(
    lambda v: v and all(schema.is_whole(x) and x >= 0 for x in v),
    'the source of every target layer, such as (0, 1, 0, 1)',
  )
  noise: float = schema.rule(lambda v: 0 <= v <= 1, 'a share from 0 to 1')
  noise_on: str = schema.one_of('all', 'new')
  branch_scale: float = schema.above(0)
  split: str = schema.one_of('even', 'uneven', 'noisy')
  ramp_tokens: int = schema.at_least(1)
  steps: int = schema.at_least(1)
  learning_rate: float = schema.above(0)
  rope_theta: float = schema.above(0)


RULES = {field.name: field for field in dataclasses.fields(GrowthOptions)}
DEEPER = ('factor', 'num_layers')
WIDER = ('width_factor', 'embed_dim', 'num_heads', 'num_kv_heads', 'mlp_dim')
_NOISE = ('noise', 'noise_on')
_OF_NEW_LAYERS = (*_NOISE, 'branch_scale')
_DUPLICATE = (*WIDER, *_NOISE, 'split')
# The options of every operator; a bare target is the first.
OPTIONS: dict[str, tuple[str, ...]] = {
  'stack': (*DEEPER, *_OF_NEW_LAYERS),
  'interpolate': (*DEEPER, *_OF_NEW_LAYERS),
  'partial': ('pattern', *_OF_NEW_LAYERS),
  'gradual': ('layers', *_OF_NEW_LAYERS),
  'midas': ('layers', *_OF_NEW_LAYERS),
  'solar': ('drop', *_OF_NEW_LAYERS),
  'llama_pro': ('group', *_OF_NEW_LAYERS),
  'map': ('layer_map', *_OF_NEW_LAYERS),
  'direct': _DUPLICATE,
  'fpi': _DUPLICATE,
  'aki': _DUPLICATE,
  'zero': (*DEEPER, *WIDER, *_NOISE),
  'random': (*DEEPER, *WIDER, 'ramp_tokens'),
  'learn': (*DEEPER, *WIDER, 'steps', 'learning_rate'),
  'length': ('factor', 'rope_theta'),
}
_MAPS = {
  'stack': layer_maps.stack,
  'interpolate': layer_maps.interpolate,
  'zero': layer_maps.interpolate,
  'random': layer_maps.append,
  'partial': layer_maps.partial,
  'gradual': layer_maps.gradual,
  'midas': layer_maps.midas,
  'solar': layer_maps.solar,
  'llama_pro': layer_maps.llama_pro,
  'map': layer_maps.given,
}


def resolve_all(
  specs: Sequence[Any], model: Sizes, seed: int = 0
) -> tuple[tuple[Operator, ...], Sizes]:
  """The operators of compound growth, and the model that they lead to.

  `seed` is that of random duplicates.

  Raises:
    ConfigError: value, rule and remedy.
  """
  found = []
  for spec in specs:
    found.append(resolve(spec, model, seed))
    model = found[-1].target(model)
  if any(operator.ramp_tokens for operator in found[:-1]):
    raise errors.ConfigError(
      "operator 'random' with ramp_tokens is not the last one; its mask would"
      ' not find its layers again: put it last'
    )
  if len(found) > 1 and any(isinstance(op, Learn) for op in found):
    raise errors.ConfigError(
      "operator 'learn' trains its maps for a while and cannot be joined with"
      ' others; give it depth and width at once, or use two hops'
    )
  return tuple(found), model


def resolve(spec: Any, model: Sizes, seed: int = 0) -> Operator:
  """One operator against a model; raises as `resolve_all`."""
  name, options = _parse(spec)
  if name == 'length':
    return _length(model, **options)
  deep = {k: options.pop(k) for k in DEEPER if k in options}
  wide = {k: options.pop(k) for k in WIDER if k in options}
  if name == 'learn':
    return _learn(model, deep, wide, options)
  if wide and deep:
    raise errors.ConfigError(
      f'operator {name!r} with {min(deep)} and {min(wide)}: one direction at a'
      f' time; join two, such as (({name!r}, ...), ({name!r}, ...))'
    )
  if wide:
    method = 'direct' if name == 'fpi' else name
    order = 'random' if name == 'fpi' else 'tile'
    old, new = Widths.of(model), _widths(model, **wide)
    return Width(
      method, old, new, order=order, tied=model.tied, seed=seed, **options
    )
  return _depth(name, model.num_layers, deep, options)


def _parse(spec: Any) -> tuple[str, dict[str, Any]]:
  """Name and checked options of what a user wrote."""
  if not isinstance(spec, (tuple, list)) or len(spec) != 2:
    raise errors.ConfigError(
      f'{spec!r} is no growth operator; write (name, target) or (name,'
      " options), such as ('stack', 2)"
    )
  name, target = spec
  if not isinstance(name, str) or name not in OPTIONS:
    raise errors.ConfigError(
      f'{name!r} is no growth operator; allowed: {", ".join(OPTIONS)}'
    )
  known, options = OPTIONS[name], schema.pairs(target)
  options = {known[0]: target} if options is None else dict(options)
  for key, value in options.items():
    if (gone := f'growth.hops: {key}') in history.REMOVED:
      raise errors.ConfigError(history.removed(gone))
    if key not in known:
      raise errors.ConfigError(
        f'operator {name!r} has no option {key!r}; allowed: {", ".join(known)}'
      )
    if RULES[key].type is int and isinstance(value, float):
      value = int(value) if value.is_integer() else value
    problems = []
    label = f'operator {name!r}: {key}'
    options[key] = schema.read(label, RULES[key], value, problems)
    if problems:
      raise errors.ConfigError(problems[0])
  return name, options


def _depth(name, layers, deep, options) -> Depth:
  """`options`: of `Depth`, and the target of a map that has its own."""
  target = OPTIONS[name][0]
  if target in DEEPER:
    layer_map = _MAPS[name](layers, _deeper(name, layers, **deep))
  elif target in options:
    layer_map = _MAPS[name](layers, options.pop(target))
  else:
    raise errors.ConfigError(f'operator {name!r} needs its target {target!r}')
  if len(layer_map) < layers:
    raise errors.ConfigError(
      f'operator {name!r} leads from {layers} to {len(layer_map)} layers;'
      ' growth needs a target that is no smaller'
    )
  if name == 'zero' and len(layer_map) % layers:
    raise errors.ConfigError(
      f"operator 'zero' puts as many new layers after each of {layers};"
      f' num_layers {len(layer_map)} is no multiple'
    )
  is_new = layer_maps.is_new(layer_map)
  return Depth(
    layer_map,
    zero_out=is_new if name in ('zero', 'llama_pro') else (),
    fresh=is_new if name == 'random' else (),
    **options,
  )


def _deeper(name, layers, factor=None, num_layers=None) -> int:
  if (factor is None) == (num_layers is None):
    raise errors.ConfigError(
      f'operator {name!r} needs one of factor and num_layers'
    )
  target = layers * factor if num_layers is None else num_layers
  return _whole_size('num_layers', layers, target)


def _whole_size(key, old, new) -> int:
  if not math.isclose(new, round(new)):
    raise errors.ConfigError(
      f'{key} {old} cannot grow to {new:g}: it has to be whole; use another'
      f' factor, or give {key}'
    )
  if new < old:
    raise errors.ConfigError(
      f'{key} {old} cannot grow to {round(new)}: the target is smaller than'
      f' the source; use at least {old}'
    )
  return round(new)


def _widths(model: Sizes, width_factor=1.0, **sizes) -> Widths:
  """Widths afterwards; key/value heads grow with their query heads."""
  group = model.num_heads // model.num_kv_heads
  if width_factor == 1 and 'num_kv_heads' in sizes:
    sizes = {'num_heads': group * sizes['num_kv_heads'], **sizes}
  elif width_factor == 1 and 'num_heads' in sizes:
    sizes = {'num_kv_heads': sizes['num_heads'] // group, **sizes}
  new = Widths(
    *(
      _whole_size(key, old, sizes.get(key, old * width_factor))
      for key, old in zip(WIDER[1:], Widths.of(model))
    )
  )
  if new.heads != group * new.kv_heads:
    raise errors.ConfigError(
      f'num_heads {new.heads} and num_kv_heads {new.kv_heads}: key/value heads'
      f' grow as whole groups with their {group} query heads; use num_heads'
      f' {group * new.kv_heads}'
    )
  return new


def _learn(model: Sizes, deep, wide, options) -> Learn:
  if not deep and not wide:
    raise errors.ConfigError("operator 'learn' needs a factor or sizes")
  layers = model.num_layers
  target = _deeper('learn', layers, **deep) if deep else layers
  old, new = Widths.of(model), _widths(model, **wide)
  if old != new and model.num_heads != model.num_kv_heads:
    raise errors.ConfigError(
      "operator 'learn' in width ties the columns of the output projection to"
      f' the rows of the values; with {model.num_heads} query heads on'
      f" {model.num_kv_heads} key/value heads they differ; use 'direct', or"
      " 'learn' in depth"
    )
  return Learn((layers, target), old, new, model.head_dim, **options)


def _length(model: Sizes, factor=1.0, rope_theta=None) -> Length:
  """Rotary base that keeps the slowest wave in proportion (NTK-aware)."""
  if factor % 1:
    raise errors.ConfigError(
      f"operator 'length': factor = {factor}; allowed: a whole number"
    )
  if rope_theta is None:
    power = model.head_dim / max(model.head_dim - 2, 1)
    rope_theta = model.rope_theta * factor**power
  return Length(int(factor), float(rope_theta), model.rope_theta)


_FORMS = (
  '(at_tokens, operator, target), (at_tokens, ((operator, target), ...)), or'
  " either with options at the end, such as (1000000, 'stack', 2,"
  " {'freeze_tokens': 50000})"
)
# What may train besides new layers while the others are frozen.
TRAINS = {'new': (), 'new+head': ('final_norm', 'unembed')}
_HOP_OPTIONS = {'freeze_tokens': 0, 'trains': 'new+head'}


@dataclasses.dataclass(frozen=True)
class Hop(schema.Group):
  """One growth.

  Attributes:
    at_tokens: tokens read before it; 0 grows what the run starts from.
    specs: its operators, one after the other.
    freeze_tokens: for how long after it the old layers stand still.
    trains: what does not, a key of `TRAINS`.
  """

  at_tokens: int = schema.at_least(0)
  specs: tuple = schema.rule(bool, 'one operator or more')
  freeze_tokens: int = schema.at_least(0)
  trains: str = schema.one_of(*TRAINS)


def parse_hop(hop: Any) -> Hop:
  """Reads one entry of `growth.hops`.

  Raises:
    ConfigError: it has another form.
  """
  match hop:
    case [at_tokens, str(operator), target, *rest] if len(rest) <= 1:
      specs = ((operator, target),)
    case [at_tokens, [*specs], *rest] if len(rest) <= 1:
      pass
    case _:
      raise errors.ConfigError(f'{hop!r} is no growth; write {_FORMS}')
  pairs = schema.pairs(rest[0]) if rest else []
  options = dict(pairs or ())
  if pairs is None or options.keys() - _HOP_OPTIONS.keys():
    raise errors.ConfigError(
      f'{rest[0]!r}: the options of a hop are {" and ".join(_HOP_OPTIONS)}'
    )
  values = {'at_tokens': at_tokens, 'specs': specs, **_HOP_OPTIONS, **options}
  problems = []
  found = schema.build(Hop, 'hop', values, problems)
  if problems:
    raise errors.ConfigError('; '.join(problems))
  return found
