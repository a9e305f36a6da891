"""What stands around the tables of a result: title, docstring, notes."""

from collections.abc import Iterator

from satjax.lab.report import results as results_lib
from satjax.lab.report.results import Result


def title(result: Result) -> str:
  """Without a full stop; of a result without one, its name."""
  return result['title'].strip().rstrip('.') or result['name']


def number(value: float | None, form: str) -> str:
  """A cell of a table; empty for none."""
  return '' if value is None else form.format(value)


def reading(result: Result) -> Iterator[str]:
  """How to read the table of arms."""
  arms_list = result['arms'].values()
  reference = results_lib.REFERENCES[result['family']]
  yield (
    f'Losses are of the test split of {result["source"]}, in nats a token:'
    f' lower is better. Differences are to {reference}, paired by seed; what is'
    ' no larger than the spread of the seeds is "no difference".'
  )
  if len(result['seeds']) < 2:
    yield 'Of one seed nothing is better or worse: there is no spread.'
  if any(arm['early_stop'] for arm in arms_list):
    yield '"best step": the step whose validation loss is lowest, not the last.'
  if any(any(arm['speedup'].values()) for arm in arms_list):
    yield (
      f'Speed-up: how much longer {reference} takes to the same loss; +20% is'
      ' 1.2 times as long. "Not reached": the loss lies outside of what the'
      ' lengths of the reference reached.'
    )
  if any(arm['at_edge'] for arm in arms_list):
    yield (
      'A learning rate at the edge of the search may not be the best one: the'
      ' loss of that arm is an upper bound.'
    )


def notes(result: Result) -> Iterator[str]:
  """What it takes to judge the tables, a sentence or a few at a time."""
  seeds, rates = result['seeds'], result['learning_rates']
  yield (
    f'Scale {result["scale"]!r}, scenario {result["scenario"]!r},'
    f' {len(seeds)} seed{"s" * (len(seeds) != 1)}:'
    f' {", ".join(map(str, seeds))}. The validation loss of the first seed'
    f' chose the learning rate among {", ".join(f"{x:g}" for x in rates)}; the'
    ' test split was looked at afterwards.'
  )
  lengths = [result['arms'][name]['steps'] for name in result['frontier']]
  if len(lengths) > 1:
    reference = results_lib.REFERENCES[result['family']]
    known = sorted(x for x in lengths if x is not None)
    yield (
      f'Equal time and equal FLOPs: {reference} was run for'
      f' {", ".join(f"{x:,}" for x in known)} steps, each with a full schedule'
      ' and a learning rate of its own. What it reaches at the cost of another'
      ' arm is read off between two of these, linear in the logarithm of the'
      ' cost; outside of them nothing is compared.'
    )
  yield from _notes_on_time(result)
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
  else:
    yield 'Nothing was timed: cost is counted in FLOPs.'
  if result['process_seconds'] is not None:
    hours = result['process_seconds'] / 3600
    yield f'All runs together took {hours:.2f} hours of one process.'


def doc(result: Result) -> list[tuple[str, str]]:
  """The docstring as (term, paragraph).

  A line such as 'Claim     a model that ...' begins a term; what follows it
  indented belongs to it. Other paragraphs have the term ''. The first line is
  left out where it only repeats the title.
  """
  parts: list[tuple[str, list[str]]] = []
  for line in result['doc'].strip().splitlines():
    term, gap, rest = line.partition('  ')
    if not line.strip():
      parts.append(('', []))
    elif term and gap and ' ' not in term:
      parts.append((term, [rest.strip()]))
    elif parts and (line.startswith(' ') or not parts[-1][0]):
      parts[-1][1].append(line.strip())
    else:
      parts.append(('', [line.strip()]))
  joined = [(term, ' '.join(lines)) for term, lines in parts if lines]
  if joined and joined[0][1].rstrip('.') == title(result):
    joined = joined[1:]
  return [(term, text.replace(' \\ ', ' ')) for term, text in joined]
