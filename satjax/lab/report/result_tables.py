"""Tables of the results of experiments, and what stands around them."""

from collections.abc import Iterator, Mapping, Sequence
import re
from typing import Any

import numpy as np

from satjax.lab.report import results as results_lib
from satjax.lab.report import run_tables
from satjax.lab.report.results import Result
from satjax.lab.report.table import Table

# Of what an arm is run for, steps count; memory is that of any step.
_COSTS = {
  'seconds': ('time saved a step', 'steps'),
  'flops': ('FLOPs saved a step', 'steps'),
  'bytes': ('memory saved', None),
}


def comparisons(claim: Mapping[str, Any]) -> Table:
  """What a claim was judged by, a row each."""
  columns = ('arm', 'against', 'change')
  rows = [
    [x['arm'], x['against'], f'{x["verdict"]}\n{x["change"]}'.strip()]
    for x in claim['comparisons']
  ]
  return Table('', columns, rows, prose=True)


def ranked(result: Result) -> list[str]:
  """Arms that were compared at equal time, the best first.

  Of one that was run at several lengths, the longest.
  """
  differences = {
    name: arm['against']['time']['difference']['mean']
    for name, arm in result['arms'].items()
    if arm['failed'] is None and arm['against'].get('time')
  }
  for names in results_lib.by_length(result['arms']).values():
    known = differences.keys() & names
    for name in sorted(known, key=lambda n: result['arms'][n]['steps'])[:-1]:
      del differences[name]
  return sorted(differences, key=differences.get)


def trade(result: Result, names: Sequence[str]) -> Table:
  """What some arms save beside the reference, and what it costs in loss."""
  reference, rows = result['arms'][result['reference']], []
  chosen = [result['arms'][name] for name in names]
  for equal in ('time', 'flops', 'steps'):
    found = (_difference(arm['against'].get(equal), False) for arm in chosen)
    rows.append([f'loss at {results_lib.EQUAL[equal]}', *found])
  again = [arm['against'].get('time', {}).get('validation') for arm in chosen]
  if any(x is not None for x in again):
    row = ['equal time, validation', *(_number(x, '{:+.4f}') for x in again)]
    rows.insert(1, row)
  for equal, cost in (('time', 'seconds'), ('flops', 'flops')):
    speedups = [_speedup(result, x, equal, cost) for x in chosen]
    if any(speedups):
      kind = results_lib.EQUAL[equal].removeprefix('equal ')
      rows.append([f'speed-up in {kind}', *speedups])
  for key, (head, per) in _COSTS.items():
    whole, *costs = (
      arm.get(key) and arm[key] / (arm[per] if per else 1)
      for arm in (reference, *chosen)
    )
    if whole and all(costs):
      rows.append([head, *(f'{1 - x / whole:.0%}' for x in costs)])
  rows.append(['learning rate', *map(_rate, chosen)])
  rows.append(['seeds', *(str(len(arm['runs'])) for arm in chosen)])
  return Table('', ('', *names), rows, prose=True)


def size(result: Result) -> str:
  """Parameters, steps and tokens of the reference."""
  arm = result['arms'][result['reference']]
  text = f'{arm["steps"]:,} steps, {arm["tokens"]:,.0f} tokens'
  if number := arm['parameters']:
    each = arm['tokens'] / number
    text = f'{number:,.0f} parameters, {text}'
    if each >= 0.1:  # else the model was trained before
      text += f' ({each:.2g} a parameter)'
  return text


def count_verdicts(results: Sequence[Result]) -> str:
  """Such as 'holds 5, does not hold 1'."""
  found = [claim['verdict'] for result in results for claim in result['claims']]
  words = results_lib.VERDICTS
  return ', '.join(f'{v} {found.count(v)}' for v in words if v in found)


def hops(result: Result) -> Table:
  """Where arms grew, of the first seed; no rows where none did."""
  grown = {name: arm['growth'] for name, arm in result['arms'].items()}
  return run_tables.growth(grown, '; of the first seed')


def sooner(result: Result) -> Table:
  """Seconds to the reference's own loss, of arms by length."""
  whole, rows = result['arms'][result['reference']]['seconds'], []
  for group, times in result.get('sooner', {}).items():
    if whole and times:
      gain, seconds = np.mean(times), np.mean(whole / np.array(times))
      spread = f'\n({min(times):.2f} to {max(times):.2f})' * (len(times) > 1)
      rows.append([group, f'{seconds:,.1f}', f'{gain:.2f}{spread}'])
  name = results_lib.REFERENCES[result['family']]
  note = (
    f'Until an arm ends with the loss of {name}, which takes {whole or 0:,.1f}'
    ' seconds. An arm is here if every seed comes to that loss between two of'
    ' its lengths, where the time is read off.'
  )
  columns = ('arm', 'seconds', 'times as fast')
  return Table('time to the same loss', columns, rows, note)


def besides(result: Result) -> list[Table]:
  """What stands below the arms, if there is any."""
  return [each for each in (sooner(result), hops(result)) if each.rows]


def arms(result: Result, brief: bool = False) -> Table:
  """A row an arm, under its group; the paper's figures beside ours.

  The reference comes first, its other lengths last. Of an arm that failed the
  row says why. If `brief`, ranges and settings are left out, to fit a terminal.
  """
  cells = {
    name: _cells(result, name, brief)
    for name, arm in result['arms'].items()
    if arm['failed'] is None
  }
  every = next(iter(cells.values()), {'loss': ''})
  columns = [
    c for c in every if not cells or any(own[c] for own in cells.values())
  ]
  rows, last = [], ''
  for group, name in _order(result):
    if group not in ('', last):
      rows.append([group])
    last = group
    if name in cells:
      rows.append([name, *(cells[name][column] for column in columns)])
    else:
      rows.append([name, _failure(result, name)])
  note = ' '.join(_reading(result))
  return Table('arms', ['arm', *columns], rows, note)


def _order(result: Result) -> Iterator[tuple[str, str]]:
  """Groups and names of arms."""
  reference = result['reference']
  yield '', reference
  for name in results_lib.compared(result):
    yield result['arms'][name]['group'], name
  for name in reversed(result['frontier']):
    if name != reference:
      yield f'{reference}, other lengths', name


def _cells(result: Result, name: str, brief: bool) -> dict[str, str]:
  """What there is to say of an arm, by column; the same ones for all arms."""
  arm, number = result['arms'][name], _number
  form = '{mean:.4f}, best step' if arm['early_stop'] else '{mean:.4f}'
  seeds = '' if brief or len(arm['runs']) < 2 else '{low:.4f} to {high:.4f}'
  cells = {
    'loss': form.format(**arm['loss']),
    'lowest to highest seed': seeds.format(**arm['loss']),
  }
  for equal, head in results_lib.EQUAL.items():
    against = arm['against'].get(equal)
    cells[f'at {head}'] = _difference(against, brief)
    again = (against or {}).get('validation')
    if again is not None and not brief:
      cells[f'at {head}'] += f'\nvalidation {again:+.4f}'
  cells['speed-up in time'] = _speedup(result, arm, 'time', 'seconds')
  cells['speed-up in FLOPs'] = _speedup(result, arm, 'flops', 'flops')
  for source, loss in arm.get('other', {}).items():
    cells[f'on {source}'] = number(loss, '{:.4f}')
  for head, value in _published(result, name).items():
    cells[f'paper: {head}'] = number(value, '{}')
  if brief:
    return cells
  return cells | {
    'learning rate': _rate(arm),
    'steps': f'{arm["steps"]:,}',
    'FLOPs': f'{arm["flops"]:.2e}',
    'seconds': number(arm['seconds'], '{:,.1f}'),
    'omission rate': number(arm['omission_rate'] or None, '{:.1%}'),
    'parameters': number(arm['parameters'], '{:,.0f}'),
    'MB of memory': _mega(arm.get('bytes')),
    'MB of state': _mega(arm.get('state_bytes')),
  }


def _mega(size: float | None) -> str:
  return _number(
    size and size / 1e6, '{:,.1f}' if (size or 0) < 1e8 else '{:,.0f}'
  )


def _difference(against: Mapping[str, Any] | None, brief: bool) -> str:
  if against is None:
    return ''
  own = against['difference']
  change = f'{own["mean"]:+.4f}' if brief else results_lib.in_words(own, '\n')
  return f'{against["verdict"]}: {change}'


def _rate(arm: Mapping[str, Any]) -> str:
  edge = '\nat the edge of the search' if arm['at_edge'] else ''
  return _number(arm['learning_rate'], '{:g}') + edge


def _speedup(result: Result, arm, equal: str, cost: str) -> str:
  """In percent, as the papers have it; or a bound; or that there is none."""
  ratio, bound = arm['speedup'].get(equal), ''
  if ratio is None:
    against = arm['against'].get(equal)
    if against is None:
      return ''
    lengths = (result['arms'][name] for name in result['frontier'])
    known = (x[cost] or 0 for x in lengths if not x['failed'])
    ratio = max(known, default=0) / arm[cost]
    if against['verdict'] != 'better' or ratio <= 1:
      return 'not reached'
    bound = 'over '
  return f'{bound}{ratio - 1:+.1%}'


def _published(result: Result, name: str) -> dict[str, Any]:
  """The paper's figures for an arm, or None, by what they are of."""
  if result['paper'] is None:
    return {}
  row = result['paper']['rows'].get(name, ())
  heads = result['paper']['columns']
  return dict(zip(heads, [*row, *[None] * len(heads)]))


def _failure(result: Result, name: str) -> str:
  """Why an arm failed, and the paper's figures, which have no cells then."""
  named = _published(result, name).items()
  known = [f'{head} {value}' for head, value in named if value is not None]
  paper = f' (paper: {", ".join(known)})' if known else ''
  return f'failed: {result["arms"][name]["failed"]}{paper}'


def _number(value: float | None, form: str) -> str:
  """A cell of a table; empty for none."""
  return '' if value is None else form.format(value)


def title(result: Result) -> str:
  """Without a full stop; of a result without one, its name."""
  return result['title'].strip().rstrip('.') or result['name']


def _reading(result: Result) -> Iterator[str]:
  """How to read the table of arms."""
  arms_list = result['arms'].values()
  reference = results_lib.REFERENCES[result['family']]
  yield (
    f'Losses are of the test split of {result["source"]}, in nats a token:'
    f' lower is better. Differences are to {reference}, paired by seed. "No'
    ' difference": the seeds disagree about its sign, the mean is no larger'
    f' than the spread of {reference} over them, or it has another sign on the'
    ' validation documents.'
  )
  if len(result['seeds']) < 2:
    yield 'Of one seed nothing is better or worse: there is no spread.'
  elif any(len(arm['runs']) == 1 for arm in arms_list):
    yield (
      'A loss without a range is of one seed, and judged by a spread that three'
      ' of four other arms are within.'
    )
  if any(arm['early_stop'] for arm in arms_list):
    yield '"best step": the step whose validation loss is lowest, not the last.'
  if any(arm['against'] for arm in arms_list):
    yield (
      f'Speed-up: how much longer {reference} takes to the same loss; +20% is'
      ' 1.2 times as long. "Over": every length of it ends higher, the longest'
      ' is the bound. "Not reached": none says.'
    )
  if any(arm['at_edge'] for arm in arms_list):
    yield (
      'A learning rate at the edge of the search may not be the best one: the'
      ' loss of that arm is an upper bound, and a length of the reference that'
      ' has one flatters what is compared with it.'
    )


def notes(result: Result) -> Iterator[str]:
  """What it takes to judge the tables, a sentence or a few at a time."""
  seeds, rates = result['seeds'], result['learning_rates']
  tried = {x for arm in result['arms'].values() for x in arm['search']}
  others = tried - {f'{x:g}' for x in rates}
  yield (
    f'Scale {result["scale"]!r}, scenario {result["scenario"]!r},'
    f' {len(seeds)} seed{"s" * (len(seeds) != 1)}:'
    f' {", ".join(map(str, seeds))}. The validation loss of the first seed'
    f' chose the learning rate among {", ".join(f"{x:g}" for x in rates)}'
    f'{", of some arms others" if others else ""}; the test split was looked at'
    ' afterwards.'
  )
  every = [result['arms'][name] for name in result['frontier']]
  lengths = [arm['steps'] for arm in every if not arm['failed']]
  if len(lengths) > 1:
    reference = results_lib.REFERENCES[result['family']]
    yield (
      f'Equal time and equal FLOPs: {reference} was run for'
      f' {", ".join(f"{x:,}" for x in sorted(lengths))} steps, each with'
      ' a full schedule and a learning rate of its own. What it reaches at the'
      ' cost of another arm is read off between two, linear in the logarithm of'
      ' the cost; outside of them nothing is compared.'
    )
  if judged := result['arms'][result['reference']].get('judged'):
    yield (
      f'Each loss is of at most {judged[0] * judged[1]:,} tokens, of documents'
      ' that no run trains on and that are the same for all runs: seeds do not'
      ' tell how much another draw of text would move a difference. The'
      ' validation documents are such a draw, though they chose the learning'
      ' rates of the first seed.'
    )
  yield from _notes_on_time(result)
  for name, digest in result.get('files', {}).items():
    yield f'SHA-256 of {name}: {digest}.'
  yield from result['notes']
  environment = result['environment']
  packages = ', '.join(f'{n} {v}' for n, v in environment['packages'].items())
  where = [
    environment['devices'],
    environment.get('cpu_count') and f'{environment["cpu_count"]} CPUs',
    environment['platform'],
  ]
  yield f'{", ".join(filter(None, where))}.'
  commit = environment['commit'] or 'unknown'
  yield f'Commit {commit}, Python {environment["python"]}, {packages}.'


def _notes_on_time(result: Result) -> Iterator[str]:
  timing = result['timing']
  timed = any(arm['seconds'] is not None for arm in result['arms'].values())
  if timed:
    text = (
      'Seconds are of training: step times, measured in turns with the'
      ' reference, summed over the steps and refreshes of a run.'
    )
    if timing and timing.get('cores'):
      text += f' Measured on {timing["cores"]} of the CPU cores.'
    if timing and timing.get('noise') is not None:
      text += f' Two equal arms differ by {timing["noise"]:.1%}.'
    yield text
    yield (
      'FLOPs are of forward and backward passes: what a choice of units or an'
      ' optimizer takes besides is in the seconds alone.'
    )
  else:
    yield 'Nothing was timed: cost is counted in FLOPs.'
  if result['process_seconds'] is not None:
    hours = result['process_seconds'] / 3600
    yield f'All runs together took {hours:.2f} hours of one process.'


def doc(result: Result) -> Iterator[tuple[str, str]]:
  """The docstring as (term, paragraph).

  A line such as 'Claim     a model that ...' begins a term; what follows it
  indented belongs to it. Other paragraphs have the term ''. The first line is
  left out where it only repeats the title.
  """
  blocks = re.split(r'\n\s*\n|\n(?=\S+  )', result['doc'].strip())
  for number, block in enumerate(blocks):
    term, text = re.fullmatch(r'(?:(\S+)  )?(.*)', block, re.DOTALL).groups('')
    text = ' '.join(text.split()).replace(' \\ ', ' ')
    if number or text.rstrip('.') != title(result):
      yield term, text
