"""Small results of experiments, as `satjax experiment` writes them."""

import copy
import json


def spread(mean):
  return {'mean': mean, 'low': mean - 0.004, 'high': mean + 0.005}


def arm(loss, *, steps=400, cost=1.0, seconds=True, rate=0.0, **changes):
  """An arm that trained; `cost`: of a step, as a share of the reference's."""
  tests = [loss - 0.004, loss, loss + 0.005]
  return {
    'group': '',
    'overrides': {'sparsity.head_rate': rate},
    'label': {},
    'learning_rate': 0.001,
    'search': {'0.0005': 2.4, '0.001': 2.3, '0.002': None},
    'at_edge': False,
    'steps': steps,
    'tokens': 1024 * steps,
    'flops': 3e9 * cost * steps,
    'seconds': 0.1 * cost * steps if seconds else None,
    'omission_rate': rate,
    'parameters': 1130000,
    'runs': [{'seed': n, 'test': test} for n, test in enumerate(tests)],
    'loss': spread(loss),
    'early_stop': False,
    'against': {},
    'speedup': {'time': None, 'flops': None},
    'growth': [],
    'failed': None,
    **changes,
  }


def failed(why, **changes):
  nothing = dict.fromkeys(('loss', 'seconds'))
  return {**arm(0.0, **changes), **nothing, 'runs': [], 'failed': why}


def against(other, difference, verdict):
  return {
    'other': other,
    'difference': spread(difference),
    'verdict': verdict,
  }


def claim(verdict, **changes):
  return {
    'claim': f'a claim that {verdict}',
    'source': 'SAT, table 3',
    'paper': 'better',
    'comparisons': [
      {
        'arm': 'rate 0.5 2.0400',
        'against': 'dense 2.0200',
        'change': '+0.0200 (+0.0160 to +0.0250)',
        'verdict': 'worse',
      }
    ],
    'verdict': verdict,
    **changes,
  }


def result(arms, family='sat', **changes):
  """A result of these arms and of a reference of two lengths."""
  reference = {'sat': 'dense', 'growth': 'scratch'}[family]
  timed = family == 'sat'
  short = f'{reference}, 50% of the steps'
  value = {
    'name': f'{family}_x',
    'title': f'What {family} does',
    'doc': 'What is asked?\n\nClaim     one that goes on\n          here.\n'
    'Command   satjax experiment x.py \\\n            --scale=cpu\n',
    'family': family,
    'scale': 'cpu',
    'scenario': 'cpt',
    'environment': {
      'command': ['satjax', 'experiment', 'experiments/x.py', '--scale=cpu'],
      'python': '3.11.7',
      'platform': 'Linux',
      'packages': {'jax': '0.10.2'},
      'devices': '1 x cpu',
      'cpu_count': 2,
      'commit': 'abc1234',
    },
    'seeds': [0, 1, 2],
    'learning_rates': [0.0005, 0.001, 0.002],
    'process_seconds': 5400.0,
    'source': 'stdlib:code',
    'reference': reference,
    'frontier': [short, reference],
    'arms': {
      reference: arm(2.02, seconds=timed, group=reference),
      short: arm(2.12, steps=200, seconds=timed, group=reference),
      **arms,
    },
    'timing': {'noise': 0.012} if timed else None,
    'paper': None,
    'notes': [],
    'claims': [claim('holds'), claim('not tested')],
    **changes,
  }
  return json.loads(json.dumps(value))  # nothing is shared, all is JSON


def sat(**changes):
  """Two groups over a rate; one that failed, one with much to say."""
  arms = {
    'rate <b>0.5</b> | x': arm(
      2.04,
      cost=0.7,
      rate=0.5,
      group='ladder',
      label={'rate': 0.5},
      at_edge=True,
      learning_rate=0.002,
      early_stop=True,
      against={
        'steps': against(2.02, 0.02, 'worse'),
        'time': against(2.06, -0.02, 'better'),
        'flops': against(2.04, 0.0, 'no difference'),
      },
      speedup={'time': 1.2, 'flops': None},
    ),
    'rate 0.25': arm(2.03, group='ladder', label={'rate': 0.25}, rate=0.25),
    'constant': arm(2.2, group='other', label={'rate': 0.25}, rate=0.3),
    'rate 0.9': failed(
      'the loss is NaN at step 17', group='ladder', label={'rate': 0.9}
    ),
  }
  return result(arms, **changes)


def growth(**changes):
  """Operators with the paper's figures; hops; nothing is timed."""
  hop = {'step': 40, 'loss_before': 4.1, 'loss_after': 4.4}
  arms = {
    'stack': arm(
      1.98, seconds=False, growth=[{**hop, 'steps_to_recover': 12.0}]
    ),
    'zero': arm(
      2.05, seconds=False, growth=[{**hop, 'steps_to_recover': None}]
    ),
    'learn': failed('it is not supported', seconds=False),
  }
  paper = {
    'columns': ['loss', 'speed-up'],
    'rows': {'stack': [2.151, '+49.1%'], 'learn': [2.2, None]},
  }
  return result(arms, 'growth', paper=paper, **changes)


def by_length():
  """Two recipes at three lengths; the slow one never does as well as dense."""
  cases = (('muon', 0.0, 1.0), ('slow', 0.3, 0.5))
  arms = {
    f'{group}, {length:.0%}': arm(
      more + loss,
      steps=round(400 * length),
      cost=cost,
      group=group,
      label={'length': length},
      against={'time': against(2.02, more + loss - 2.02, 'better')},
    )
    for group, more, cost in cases
    for length, loss in ((0.25, 2.12), (0.5, 1.92), (1.0, 1.9))
  }
  sooner = {'muon': [2.8, 2.9, 2.7]}
  return result(arms, answers='Pre-training', sooner=sooner)


def two_coordinates(rows=('uniform', 'maxip'), columns=('top_k', 'sample')):
  """An arm for each importance and selection; the first one failed."""
  arms = {}
  for i, row in enumerate(rows):
    for j, column in enumerate(columns):
      label = {'importance': row, 'selection': column}
      arms[f'{row}, {column}'] = arm(2.1 - 0.01 * i - 0.02 * j, label=label)
  name = f'{rows[0]}, {columns[0]}'
  arms[name] = failed('it diverged', label=arms[name]['label'])
  return result(arms)


def without(value, path):
  """A copy that lacks a key; `path`: of keys, such as ('arms', 'dense')."""
  changed = copy.deepcopy(value)
  del _at(changed, path)[path[-1]]
  return changed


def replaced(value, path, new):
  """A copy with another value at a path."""
  changed = copy.deepcopy(value)
  _at(changed, path)[path[-1]] = new
  return changed


def _at(value, path):
  for key in path[:-1]:
    value = value[key]
  return value
