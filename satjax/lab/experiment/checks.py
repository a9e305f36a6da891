"""What an experiment file may say, found out before anything runs."""

from collections.abc import Iterable, Iterator
import dataclasses
import math
from typing import Any

import ml_collections

from satjax import console, errors
from satjax.config import forms
from satjax.config.run import Config
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
  'label': {str: object},
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
_ALIKE = OWN | {
  'train.num_steps': 'length of an arm',
  **dict.fromkeys(
    ('data.eval', 'data.held_out', 'data.test', 'data.tokenizer'),
    'config of the scenario: arms are judged by the same tokens',
  ),
  'train.eval_batches': 'config of the scenario: arms are judged alike',
}


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
  if not (config.data.held_out and config.data.test):
    raise errors.ConfigError(
      f'config.data.held_out={config.data.held_out:g} and'
      f' config.data.test={config.data.test:g}: arms are chosen by the one'
      ' split and judged by the other; both must be above 0'
    )
  rates = (f'sparsity.{key}_rate' for key in ('head', 'channel', 'layer'))
  left_out = {'sat': rates, 'growth': ('growth.hops',)}[scenario.family]
  for key in left_out:
    group, _, name = key.partition('.')
    if value := getattr(getattr(config, group), name):
      raise errors.ConfigError(
        f'config.{key}={value}: {scenario.reference!r}, which all arms are'
        ' compared with, does without; leave it to the arms'
      )


def of_arm(arm: Any, scenario: Any) -> None:
  """Raises ConfigError: a field, or a setting that is not the arm's own."""
  _refuse(_arm_problems(arm, scenario), f'arm {arm.name!r}: ')


def _arm_problems(arm, scenario) -> Iterator[str]:
  yield from forms.misfits(vars(arm), _ARM, '')
  if not arm.name or not arm.name.isprintable():
    yield 'its name must be a word that can be read'
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
  own = {f'model.{name}' for name in llama.TRAINING} - {'model.init_from'}
  has_model = scenario.base is not None or scenario.config.model.init_from
  for key in arm.overrides:
    if key in _ALIKE:
      yield f'{key} is not its own; set the {_ALIKE[key]}'
    if has_model and key.startswith('model.') and key not in own:
      yield f'{key}: the model that all arms begin with decides it'


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
  expects = [x for claim in experiment.claims for x in claim.expects]
  for expect in expects:
    if expect.relation == 'faster' and expect.other in results.EQUAL:
      raise errors.ConfigError(
        f'{expect}: what is faster is faster than an arm; name one'
      )
    if not 0 < expect.by < math.inf:
      raise errors.ConfigError(f'{expect}: by is a number above 0')
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
