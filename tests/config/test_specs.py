"""What a user writes of growth becomes operators, or says what is wrong."""

import dataclasses
import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from satjax import errors
from satjax.config import specs as specs_lib
from satjax.growth.operators import Depth, Learn, Length, Width


@dataclasses.dataclass(frozen=True)
class Model:
  """The fields of `ModelConfig` that growth reads."""

  num_layers: int = 4
  embed_dim: int = 16
  num_heads: int = 4
  num_kv_heads: int = 2
  head_dim: int = 4
  mlp_dim: int = 24
  tied: bool = False
  rope_theta: float = 100.0
  norm_eps: float = 1e-3


MODEL = Model()
# Of every option a value that every operator which knows it can use.
GOOD = {
  'factor': 2,
  'num_layers': 8,
  'pattern': '12-34*2',
  'layers': 2,
  'drop': 1,
  'group': 2,
  'layer_map': (0, 1, 2, 3, 3),
  'width_factor': 2,
  'embed_dim': 20,
  'num_heads': 6,
  'num_kv_heads': 3,
  'mlp_dim': 25,
  'noise': 0.2,
  'noise_on': 'new',
  'branch_scale': 0.5,
  'split': 'uneven',
  'ramp_tokens': 100,
  'steps': 7,
  'learning_rate': 0.1,
  'rope_theta': 50.0,
}
TARGETS = {*specs_lib.DEEPER, *specs_lib.WIDER, 'pattern', 'layers', 'drop'}
TARGETS |= {'group', 'layer_map'}
EVERY_OPTION = [
  (name, option)
  for name, options in specs_lib.OPTIONS.items()
  for option in options
]


def resolve(*specs, model=MODEL, **more):
  return specs_lib.resolve_all(specs, model, **more)


def one(name, target, model=MODEL):
  return specs_lib.resolve((name, target), model)


def refuse(*specs, said, model=MODEL):
  with pytest.raises(errors.ConfigError, match=said):
    resolve(*specs, model=model)


@pytest.mark.parametrize(
  'name, target, layer_map',
  [
    ('stack', 2, (0, 1, 2, 3, 0, 1, 2, 3)),
    ('stack', 1.5, (0, 1, 2, 3, 0, 1)),
    ('interpolate', 2, (0, 0, 1, 1, 2, 2, 3, 3)),
    ('partial', '1-23*2-4', (0, 1, 2, 1, 2, 3)),
    ('gradual', 2, (0, 1, 2, 3, 2, 3)),
    ('midas', 1, (0, 1, 1, 2, 3)),
    ('solar', 1, (0, 1, 2, 1, 2, 3)),
    ('llama_pro', 2, (0, 1, 1, 2, 3, 3)),
    ('map', [3, 2, 1, 0], (3, 2, 1, 0)),
    ('zero', 2, (0, 0, 1, 1, 2, 2, 3, 3)),
    ('random', 1.25, (0, 1, 2, 3, 3)),
  ],
)
def test_a_bare_target_in_depth_makes_a_map(name, target, layer_map):
  found = one(name, target)
  assert isinstance(found, Depth) and found.layer_map == layer_map
  silent = found.is_new if name in ('zero', 'llama_pro') else ()
  fresh = found.is_new if name == 'random' else ()
  assert (found.zero_out, found.fresh) == (silent, fresh)
  assert found.target(MODEL) == Model(num_layers=len(layer_map))
  bare = specs_lib.OPTIONS[name][0]
  assert one(name, {bare: target}) == found


@pytest.mark.parametrize('name', ['direct', 'fpi', 'aki'])
def test_a_bare_target_in_width_widens_everything(name):
  found = one(name, 1.5)
  assert isinstance(found, Width)
  assert found.method == ('aki' if name == 'aki' else 'direct')
  assert found.order == ('random' if name == 'fpi' else 'tile')
  assert found.old._asdict() == dict(embed=16, heads=4, kv_heads=2, mlp=24)
  assert found.new._asdict() == dict(embed=24, heads=6, kv_heads=3, mlp=36)
  wide = found.target(MODEL)
  assert dataclasses.astuple(wide)[:6] == (4, 24, 6, 3, 4, 36)


def test_bare_targets_of_the_others():
  found = one('learn', 2)
  assert isinstance(found, Learn) and found.num_layers == (4, 8)
  assert found.old == found.new
  found = one('length', 2)
  assert found == Length(2, 400.0, 100.0)  # 100 x 2^(4 / (4 - 2))
  assert found.target(MODEL) == Model(rope_theta=400.0)
  assert not found.preserves
  assert one('length', {'factor': 2, 'rope_theta': 100}).preserves
  assert one('length', 1).preserves


@pytest.mark.parametrize('name, option', EVERY_OPTION)
def test_every_option_reaches_its_operator(name, option):
  bare, value = specs_lib.OPTIONS[name][0], GOOD[option]
  options = {option: value}
  if option not in TARGETS:
    options |= {bare: GOOD[bare]}
  model = Model(num_kv_heads=4) if name == 'learn' else MODEL
  if option == 'num_kv_heads' and name == 'learn':
    options = {option: 6}
  found = one(name, options, model)
  grown = found.target(model)
  if option in (*specs_lib.WIDER[1:], 'num_layers'):
    assert getattr(grown, option) == options[option]
  elif option in ('factor', 'width_factor', 'layers', 'pattern', 'group'):
    assert grown != model
  elif option == 'drop':
    assert grown.num_layers == 6
  else:
    assert getattr(found, option) == value
  assert not (option == 'noise' and found.preserves)
  as_pairs = tuple(options.items())
  assert one(name, as_pairs, model) == found
  assert one(name, json.loads(json.dumps(as_pairs)), model) == found


@pytest.mark.parametrize('name, option', EVERY_OPTION)
def test_values_of_another_type_are_quoted(name, option):
  for bad in (None, [], {}, float('nan'), float('inf'), -1, object):
    with pytest.raises(errors.ConfigError) as caught:
      one(name, {option: bad})
    said = re.match(
      r"operator '(\w+)': (\w+) = .+; allowed: ", str(caught.value)
    )
    assert said.groups() == (name, option)


@pytest.mark.parametrize('name, option', EVERY_OPTION)
def test_a_flag_is_no_number(name, option):
  refuse((name, {option: True}), said=f'{option} = True is a bool; allowed')


@pytest.mark.parametrize('name', specs_lib.OPTIONS)
def test_unknown_options_are_refused_with_those_that_are_known(name):
  known = ', '.join(specs_lib.OPTIONS[name])
  said = f"operator {name!r} has no option 'depth'; allowed: {known}"
  refuse((name, {'depth': 3}), said=re.escape(said))


@pytest.mark.parametrize(
  'spec, said',
  [
    (('stack', 1.3), 'num_layers 4 cannot grow to 5.2.*whole'),
    (('stack', 0.5), 'factor = 0.5; allowed: from 1 to below 1001'),
    (
      ('stack', {'num_layers': 3}),
      'num_layers 4 cannot grow to 3.*at least 4',
    ),
    (('stack', {'factor': 2, 'num_layers': 8}), 'one of factor and num_layers'),
    (('stack', {}), 'one of factor and num_layers'),
    (('stack', {'noise': 0.1}), 'one of factor and num_layers'),
    (('stack', '2'), "factor = '2'"),
    (('zero', {'num_layers': 6}), 'num_layers 6 is no multiple'),
    (('zero', {'factor': 2, 'embed_dim': 32}), 'factor and embed_dim.*time'),
    (('random', {'num_layers': 8, 'width_factor': 2}), 'one direction'),
    (('map', (0, 4, 1, 2)), r'layer_map \(0, 4, 1, 2\) names layer 4'),
    (('map', (0, 1)), 'from 4 to 2 layers'),
    (('map', (0, True, 1, 2)), r'layer_map = \(0, True, 1, 2\)'),
    (('map', (0, 1.0, 2, 3)), r'layer_map = \(0, 1.0, 2, 3\)'),
    (('map', (0, 1, 2, -1)), r'layer_map = \(0, 1, 2, -1\)'),
    (('partial', '1-2'), 'from 4 to 2 layers'),
    (('partial', '1-5'), "'5' is no group of layers 1 to 4"),
    (('partial', {'noise': 0.1}), "'partial' needs its target 'pattern'"),
    (('midas', 3), 'layers 3 of MIDAS cut 4'),
    (('gradual', 1.5), 'layers = 1.5'),
    (('solar', 2), 'drop 2 of SOLAR'),
    (('llama_pro', 3), 'group 3 of LLaMA-Pro'),
    (('direct', 1.1), 'embed_dim 16 cannot grow to 17.6'),
    (('direct', {'mlp_dim': 23}), 'mlp_dim 24 cannot grow to 23.*at least 24'),
    (('direct', {'num_heads': 5}), 'num_heads 5 and num_kv_heads 2.*heads 4'),
    (('aki', {'num_heads': 6, 'num_kv_heads': 2}), 'groups with their 2 query'),
    (('direct', {}), "'direct' needs its target 'width_factor'"),
    (('direct', {'split': 'even'}), "'direct' needs its target 'width_factor'"),
    (('aki', {'noise': 0.1}), "'aki' needs its target 'width_factor'"),
    (('direct', {'width_factor': 2, 'split': 'odd'}), "split = 'odd'"),
    (('direct', {'width_factor': 2, 'noise': 1.5}), 'noise = 1.5'),
    (('learn', {'steps': 5}), "'learn' needs a factor or sizes"),
    (('learn', {'width_factor': 2}), '4 query heads on 2 key/value heads'),
    (('length', 1.5), 'factor = 1.5'),
    (('length', {'rope_theta': 0}), 'rope_theta = 0.0; allowed: above 0'),
    (('grow', 2), "'grow' is no growth operator; allowed: stack,"),
    ((2, 'stack'), '2 is no growth operator; allowed'),
    (('stack', 2, 3), r"\('stack', 2, 3\) is no growth operator"),
    ('stack', "'stack' is no growth operator"),
    (None, 'None is no growth operator'),
  ],
)
def test_what_does_not_fit_is_quoted_with_a_remedy(spec, said):
  refuse(spec, said=said)


def test_operators_that_can_not_be_joined_are_refused():
  ramped = ('random', {'factor': 2, 'ramp_tokens': 9})
  refuse(('learn', 2), ('stack', 2), said="'learn'.*two hops")
  refuse(('stack', 2), ('learn', 2), said="'learn'.*two hops")
  refuse(ramped, ('direct', 2), said="'random'.*put it last")
  refuse(ramped, ('length', 2), said="'random'.*put it last")
  assert len(resolve(('direct', 2), ramped)[0]) == 2
  assert len(resolve(('random', 2), ('direct', 2))[0]) == 2


def test_compound_growth_goes_from_model_to_model():
  found, model = resolve(
    ('zero', {'embed_dim': 24}),
    ('direct', {'embed_dim': 36, 'num_kv_heads': 3}),
    ('stack', 2),
    ('length', 2),
    ('interpolate', {'num_layers': 12}),
    seed=5,
  )
  wide = dict(embed_dim=36, num_heads=6, num_kv_heads=3)
  assert model == Model(
    num_layers=12, rope_theta=400.0, norm_eps=model.norm_eps, **wide
  )
  # Old channels make up 16 of 24, and these 24 of 36.
  assert model.norm_eps == pytest.approx(1e-3 * 16 / 36, rel=1e-12)
  assert found[1].old == found[0].new
  assert found[4].layer_map == (*sorted([*range(8), *range(0, 8, 2)]),)
  assert found[0].seed == found[1].seed == 5
  assert resolve() == ((), MODEL)


def test_epsilon_follows_the_share_of_old_channels():
  assert resolve(('direct', 2))[1].norm_eps == 1e-3
  assert one('direct', {'embed_dim': 40}).copies == 2
  assert one('zero', {'embed_dim': 40}).copies == 1
  eps = resolve(('direct', {'embed_dim': 40}))[1].norm_eps
  assert eps == pytest.approx(1e-3 * 32 / 40)


def test_factors_that_are_whole_but_for_rounding_fit():
  model = Model(embed_dim=100, num_heads=10, num_kv_heads=10, mlp_dim=100)
  assert 100 * 1.1 != 110
  assert resolve(('direct', 1.1), model=model)[1].embed_dim == 110
  assert resolve(('stack', 4 / 3), model=Model(num_layers=3))[1].num_layers == 4


@settings(max_examples=40, deadline=None)
@given(*[st.integers(0, 9)] * 3, st.sampled_from(['direct', 'zero', 'aki']))
def test_any_larger_sizes_are_reached(embed, groups, channels, name):
  sizes = {
    'embed_dim': 16 + embed,
    'num_kv_heads': 2 + groups,
    'mlp_dim': 24 + channels,
  }
  (found,), model = resolve((name, sizes))
  assert {key: getattr(model, key) for key in sizes} == sizes
  assert model.num_heads == 2 * model.num_kv_heads
  assert 0.5 < found.old_share <= 1 or name == 'zero'
  assert model.norm_eps == pytest.approx(1e-3 * found.old_share)
