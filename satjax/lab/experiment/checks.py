"""What an experiment file may say, found out before anything runs."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import math
from typing import Any

import ml_collections

from satjax import console, errors
from satjax.config import file, forms
from satjax.config.run import Config, field_of
from satjax.data import pipeline
from satjax.interop import llama
from satjax.lab.report import results

_CLAIM = {
  **dict.fromkeys(('text', 'source', 'paper'), str),
  'expects': [
    {
      **dict.fromkeys(('arm', 'other'), str),
      'relation': ('below', 'not above', 'faster'),
      'by': float,
    }
  ],
}
_ARM = {
  'name': str,
  'group': str,
  'overrides': {str: object},
  'label': {str: object},  # see `_PLAIN`
  'equal': ('steps', 'flops'),
  **dict.fromkeys(('length', 'prune', 'rate_factor'), float),
  'early_stop': bool,
}
_SCENARIO = {
  'name': str,
  'family': tuple(results.REFERENCES),
  'config': ml_collections.ConfigDict,
  'base': (ml_collections.ConfigDict, None),
  'seeds': [int],
  'learning_rates': [float],
  'lengths': [float],
  'baselines': [object],
  'finalists': (int, None),
  'widen': int,
}
_PAPER = ({'columns': [str], 'rows': {str: list}}, None)
# Of these the experiment says for all arms what they are; by what, if not so.
OWN = {
  'optimizer.peak_lr': 'learning_rates of the scenario',
  'train.seed': 'seeds of the scenario',
  'data.seed': 'seeds of the scenario',
}
_ALIKE = OWN | {'train.num_steps': 'length of an arm'}
# Of `data` and `train`, what changes the text or how it is read, and not what
# it is judged by. What is judged by other rows is compared with nothing.
_OF_DATA = ('data.train', 'data.seq_len')
_OF_ROWS = ('train.eval_batches', 'train.microbatch_size')
_PLAIN = str, int, float, bool  # of coordinates and of figures of a paper


def of_scenario(scenario: Any) -> None:
  """Raises ConfigError: a field is wrong, what it is, and what it may be."""
  if not dataclasses.is_dataclass(scenario):
    raise errors.ConfigError(
      f'scenario(scale) gives {errors.brief(scenario)}, not a spec.Scenario'
    )
  _refuse(_scenario_problems(scenario))


def _scenario_problems(scenario) -> Iterator[str]:
  yield from forms.misfits(vars(scenario), _SCENARIO, 'scenario')
  for key in ('seeds', 'learning_rates', 'lengths'):
    values = getattr(scenario, key)
    if not values or len({*values}) < len(values):
      yield f'scenario.{key} is {values}: name at least one, and none twice'
    least = 0 if key == 'seeds' else 1e-300
    if not all(least <= value < math.inf for value in values):
      yield f'scenario.{key} is {values}: each is a number above 0'
  if 1 not in scenario.lengths:
    yield f'scenario.lengths is {scenario.lengths}: 1 must be among them'
  for key in ('finalists', 'widen'):
    if (getattr(scenario, key) or 0) < 0:
      yield f'scenario.{key} is {getattr(scenario, key)}: 0 or more'
  if not scenario.name or not scenario.name.replace('-', '').isalnum():
    yield f'scenario.name is {scenario.name!r}: letters, digits and -'


def of_reference(scenario: Any) -> None:
  """Raises ConfigError: its configuration is no reference, or has no splits."""
  config = Config.from_dict(scenario.config)
  if scenario.base is not None:
    own, base = vars(config.model), vars(Config.from_dict(scenario.base).model)
    for key in own.keys() - llama.TRAINING.keys():
      if own[key] != base[key]:
        raise errors.ConfigError(
          f'config.model.{key}={own[key]} of the scenario, and {base[key]} of'
          ' its base, which all arms begin with; give both the same'
        )
  if not (config.data.held_out and config.data.test):
    raise errors.ConfigError(
      f'config.data.held_out={config.data.held_out:g} and'
      f' config.data.test={config.data.test:g}: arms are chosen by the one'
      ' split and judged by the other; both must be above 0'
    )
  _refuse(_judged_by_what_is_trained(config.data), 'the scenario: ')
  for key in _NO_REFERENCE:
    group, _, name = key.partition('.')
    if value := getattr(getattr(config, group), name):
      raise errors.ConfigError(
        f'config.{key}={value}: {scenario.reference!r}, which all arms are'
        ' compared with, does without; leave it to the arms'
      )


_NO_REFERENCE = (
  *(f'sparsity.{axis}_rate' for axis in ('head', 'channel', 'layer')),
  'growth.hops',
  'lora.rank',
)


def _judged_by_what_is_trained(data) -> Iterator[str]:
  if not pipeline.is_trained_on(data, data.eval[0]):
    yield (
      f'data.eval begins with {data.eval[0]!r}, and data.train is'
      f' {data.train}: what runs are judged by is a split of a text that they'
      ' train on; put that first'
    )


def of_arm(arm: Any, scenario: Any) -> None:
  """Raises ConfigError: a field, or a setting that is not the arm's own."""
  try:
    _refuse(_arm_problems(arm, scenario))
  except errors.ConfigError as error:
    raise errors.ConfigError(f'arm {arm.name!r}: {error}') from error


def _arm_problems(arm, scenario) -> Iterator[str]:
  yield from forms.misfits(vars(arm), _ARM, '')
  if not arm.name.isprintable() or arm.name in ('', *results.EQUAL):
    yield f'a name can be read, and is none of {", ".join(results.EQUAL)}'
  for key in ('length', 'rate_factor'):
    if not 0 < getattr(arm, key) < math.inf:
      yield f'{key} is {getattr(arm, key)}: a number above 0'
  if not 0 <= arm.prune < 1:
    yield f'prune is {arm.prune}: a share of the base, below 1'
  if arm.prune and scenario.base is None:
    yield f'prune is {arm.prune}, and there is no base to cut'
  if len(arm.label) > 2:
    yield f'label has {len(arm.label)} coordinates; a plot has two'
  if [*arm.label] == ['length'] and not arm.group:
    yield 'a label of a length joins the arms of a group; name one'
  yield from _odd_values(arm.label)
  values = scenario.config.to_dict()
  for key, value in arm.overrides.items():
    group, name = file.known_key(scenario.config, key)
    yield from _setting_problems(key, value, scenario)
    values[group][name] = value
  if arm.early_stop and not values['train']['eval_every']:
    yield 'early_stop is of a run that is evaluated: set train.eval_every'
  if 'data.train' in arm.overrides:
    yield from _judged_by_what_is_trained(Config.from_dict(values).data)
  if arm.prune and 'sparsity.channel_multiple' in arm.overrides:
    yield 'sparsity.channel_multiple is what the base was cut by'


def _setting_problems(key, value, scenario) -> Iterator[str]:
  """What an arm may not set, or not so."""
  group, _, name = key.partition('.')
  if key in _ALIKE:
    yield f'{key} is not its own; set the {_ALIKE[key]}'
  if key in _OF_ROWS or (group == 'data' and key not in _OF_DATA):
    yield f'{key}: arms are judged alike; set it in the config of the scenario'
  has_model = scenario.base is not None or scenario.config.model.init_from
  is_shape = group == 'model' and name not in llama.TRAINING
  if key == 'model.init_from' or (has_model and is_shape):
    yield f'{key}: the model that all arms begin with decides it'
  if group in ('optimizer', 'train') and (
    value == 'auto' or field_of(group, name).type is int and value != int(value)
  ):
    yield (
      f'{key}={value!r}: an arm says how many steps of the reference, whose'
      f' {scenario.config.train.num_steps} its length then scales'
    )


def _odd_values(values: Mapping[str, Any]) -> Iterator[str]:
  for key, value in values.items():
    odd = isinstance(value, float) and not math.isfinite(value)
    if type(value) not in _PLAIN or odd:
      yield f'{key!r} is {errors.brief(value)}: a text or a finite number'


def of_texts(experiment: Any) -> None:
  """Raises ConfigError: a title, a claim, a table; says what is not tested."""
  texts = {
    'TITLE': experiment.title,
    'ANSWERS': experiment.answers,
    'PAPER': experiment.paper,
    'CLAIMS': [_plain(claim) for claim in experiment.claims],
  }
  form = {'TITLE': str, 'ANSWERS': str, 'PAPER': _PAPER, 'CLAIMS': [_CLAIM]}
  _refuse(forms.misfits(texts, form, ''))
  if not callable(experiment.notes):
    raise errors.ConfigError('notes must be a function of the arms')
  if experiment.name in ('config', 'metrics'):
    raise errors.ConfigError(
      f'{experiment.name}.json is a file of runs; call the experiment otherwise'
    )
  for name, row in (experiment.paper or {'rows': {}})['rows'].items():
    found = dict(zip(experiment.paper['columns'], row))
    _refuse(
      _odd_values({k: v for k, v in found.items() if v is not None}), name
    )
    if len(row) > len(found):
      raise errors.ConfigError(f'PAPER has {len(row)} figures for {name!r}')
  expects = [x for claim in experiment.claims for x in claim.expects]
  for expect in expects:
    if expect.relation == 'faster' and expect.other in results.EQUAL:
      raise errors.ConfigError(
        f'{expect}: what is faster is faster than an arm; name one'
      )
    if not 1 <= expect.by < (1.001, math.inf)[expect.relation == 'faster']:
      raise errors.ConfigError(f'{expect}: by is 1 or more, of what is faster')
    if expect.arm == expect.other:
      raise errors.ConfigError(f'{expect}: an arm is compared with another')
  known = {*experiment.arms, *results.EQUAL}
  named = (name for x in expects for name in (x.arm, x.other))
  if unknown := [*dict.fromkeys(name for name in named if name not in known)]:
    console.say(
      f'claims name {", ".join(map(repr, unknown))}, and scale'
      f' {experiment.scale} has no such arm: not tested'
    )


def _plain(value: Any) -> Any:
  """Named tuples as objects, one within another."""
  if hasattr(value, '_asdict'):
    return {key: _plain(each) for key, each in value._asdict().items()}
  return [*map(_plain, value)] if isinstance(value, tuple) else value


def _refuse(problems: Iterable[str], where: str = '') -> None:
  for problem in problems:
    raise errors.ConfigError(f'{where}{problem}')
