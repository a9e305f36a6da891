"""What a user writes of growth, checked: specs to operators; no JAX.

A *spec* is `('stack', 2)` or, with options, `('direct', {'embed_dim': 512,
'split': 'uneven'})`. A tuple of specs is compound growth, one after the other.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from satjax import errors
from satjax.growth import layer_maps
from satjax.growth.operators import (
  AXES,
  DEEPER,
  ON_DEPTH,
  OPTIONS,
  RAMP,
  WIDER,
  Depth,
  Learn,
  Length,
  Operator,
  Sizes,
  Width,
)

_MOST = 2**20  # of anything; guards against a slip of the keyboard


def resolve_all(
  specs: Sequence[Any], model: Any, seed: int = 0
) -> tuple[tuple[Operator, ...], Any]:
  """The operators of compound growth, and the model that they lead to.

  Args:
    specs: `(name, target)` or `(name, options)`, carried out in this order.
    model: the architecture; any dataclass with the fields of `ModelConfig`.
    seed: of random duplicates.

  Raises:
    ConfigError: value, rule and remedy.
  """
  found = []
  for spec in specs:
    found.append(resolve(spec, model, seed))
    model = found[-1].target(model)
  for operator in found[:-1]:
    if getattr(operator, 'ramp_tokens', 0):
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


def resolve(spec: Any, model: Any, seed: int = 0) -> Operator:
  """One operator against a model; raises as `resolve_all`."""
  name, options = _parse(spec)
  wide = sorted(set(options) & {'width_factor', *AXES})
  deep = sorted(set(options) & {'factor', 'num_layers'})
  if name == 'length':
    return _length(model, **options)
  if name == 'learn':
    return _learn(model, options)
  if wide and deep:
    raise errors.ConfigError(
      f'operator {name!r} with {deep[0]} and {wide[0]}: one direction at a'
      f' time; join two, such as (({name!r}, ...), ({name!r}, ...))'
    )
  if wide:
    return _width(name, model, options, seed)
  return _depth(name, model, options)


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
  bare, rules = OPTIONS[name]
  options = as_mapping(target)
  if options is None:
    options = {bare: target}
  for key, value in options.items():
    if key not in rules:
      raise errors.ConfigError(
        f'operator {name!r} has no option {key!r}; allowed: {", ".join(rules)}'
      )
    check, allowed = rules[key]
    try:
      good = check(value) and (not isinstance(value, bool) or 'True' in allowed)
    except (TypeError, ValueError, OverflowError):
      good = False
    if not good or (isinstance(value, float) and not math.isfinite(value)):
      raise errors.ConfigError(
        f'operator {name!r}: {key} = {value!r}; allowed: {allowed}'
      )
  return name, options


def as_mapping(value: Any) -> dict[str, Any] | None:
  """Options as a dictionary, from one or from pairs; None: it is neither."""
  if isinstance(value, Mapping):
    return dict(value)
  pairs = isinstance(value, (tuple, list)) and all(
    isinstance(x, (tuple, list)) and len(x) == 2 and isinstance(x[0], str)
    for x in value
  )
  return dict(value) if pairs and value else None


def _depth(name: str, model: Any, options: dict[str, Any]) -> Depth:
  layers = model.num_layers
  own = {k: options.pop(k) for k in list(options) if k in (*ON_DEPTH, *RAMP)}
  if options.pop('faithful_to_release', False):
    raise errors.ConfigError(
      f'operator {name!r}: faithful_to_release changes nothing in depth that a'
      ' run could see; leave it out'
    )
  if name in ('stack', 'interpolate', 'zero', 'random'):
    target = _target_layers(name, layers, **options)
    make = {
      'stack': layer_maps.stack,
      'interpolate': layer_maps.interpolate,
      'zero': layer_maps.interpolate,
      'random': layer_maps.append,
    }[name]
    layer_map = make(layers, target)
  else:
    layer_map = _named_map(name, layers, options)
  is_new = layer_maps.is_new(layer_map)
  if name == 'zero' and len(layer_map) % layers:
    raise errors.ConfigError(
      f"operator 'zero' puts as many new layers after each of {layers};"
      f' num_layers {len(layer_map)} is no multiple'
    )
  if name in ('zero', 'llama_pro'):
    own['zero_out'] = is_new
  if name == 'random':
    own['fresh'] = is_new
  return Depth(layer_map, **own)


def _named_map(name, layers, options) -> layer_maps.LayerMap:
  if set(options) != {OPTIONS[name][0]}:
    raise errors.ConfigError(
      f'operator {name!r} needs its target {OPTIONS[name][0]!r}'
    )
  (value,) = options.values()
  if name == 'map':
    if max(value) >= layers:
      raise errors.ConfigError(
        f'layer_map {tuple(value)} names layer {max(value)}; the model has'
        f' layers 0 to {layers - 1}'
      )
    layer_map = tuple(value)
  else:
    make = getattr(layer_maps, name)
    layer_map = make(layers, value if name == 'partial' else int(value))
  if len(layer_map) < layers:
    raise errors.ConfigError(
      f'operator {name!r} leads from {layers} to {len(layer_map)} layers;'
      ' growth needs a target that is no smaller'
    )
  return layer_map


def _target_layers(name, layers, factor=None, num_layers=None) -> int:
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


def _sizes(model, width_factor=None, **sizes) -> tuple[Sizes, Sizes]:
  """Sizes before and after, by axis; whole key/value groups only."""
  old = {key: getattr(model, key) for key in AXES}
  new = {
    key: _whole_size(key, size, sizes.get(key, size * (width_factor or 1)))
    for key, size in old.items()
  }
  group = old['num_heads'] // old['num_kv_heads']
  if 'num_heads' in sizes and 'num_kv_heads' not in sizes and not width_factor:
    new['num_kv_heads'] = new['num_heads'] // group
  if 'num_kv_heads' in sizes and 'num_heads' not in sizes and not width_factor:
    new['num_heads'] = new['num_kv_heads'] * group
  if new['num_heads'] != group * new['num_kv_heads']:
    raise errors.ConfigError(
      f'num_heads {new["num_heads"]} and num_kv_heads {new["num_kv_heads"]}:'
      f' key/value heads grow as whole groups with their {group} query heads;'
      f' use num_heads {group * new["num_kv_heads"]}'
    )

  def by_axis(values):
    return tuple((axis, values[key]) for key, axis in AXES.items())

  return by_axis(old), by_axis(new)


def _width(name: str, model: Any, options: dict[str, Any], seed: int) -> Width:
  targets = {k: options.pop(k) for k in list(options) if k in WIDER}
  old, new = _sizes(model, **targets)
  released = name == 'direct' and options.get('faithful_to_release')
  twice = all(2 * dict(old)[axis] == size for axis, size in new)
  if released and not (
    twice and model.num_heads == model.num_kv_heads and len(options) == 1
  ):
    raise errors.ConfigError(
      "operator 'direct' with faithful_to_release: the released code doubles"
      ' every size of a model without grouped queries; use width_factor 2 and'
      ' no other option'
    )
  method = 'direct' if name == 'fpi' else name
  order = 'random' if name == 'fpi' else 'tile'
  return Width(
    method, old, new, order=order, tied=model.tied, seed=seed, **options
  )


def _learn(model: Any, options: dict[str, Any]) -> Learn:
  targets = {k: options.pop(k) for k in list(options) if k in WIDER}
  deeper = {k: options.pop(k) for k in list(options) if k in DEEPER}
  if not deeper and not targets:
    raise errors.ConfigError("operator 'learn' needs a factor or sizes")
  layers = model.num_layers
  target = _target_layers('learn', layers, **deeper) if deeper else layers
  old, new = _sizes(model, **targets)
  if old != new and model.num_heads != model.num_kv_heads:
    raise errors.ConfigError(
      "operator 'learn' in width ties the columns of the output projection to"
      f' the rows of the values; with {model.num_heads} query heads on'
      f" {model.num_kv_heads} key/value heads they differ; use 'direct', or"
      " 'learn' in depth"
    )
  if 'steps' in options:
    options['steps'] = int(options['steps'])
  return Learn((layers, target), old, new, model.head_dim, **options)


def _length(model: Any, factor: float = 1, rope_theta=None) -> Length:
  """Rotary base that keeps the slowest wave in proportion (NTK-aware)."""
  if rope_theta is None:
    power = model.head_dim / max(model.head_dim - 2, 1)
    rope_theta = model.rope_theta * factor**power
  return Length(int(factor), float(rope_theta), model.rope_theta)
